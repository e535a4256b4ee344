"""OpenWhisk's JSON in our terms: actions, activation records, refusals. No I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from yarl import URL

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    Conflict,
    FunctionMissing,
    InvocationFailed,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed, Package, PlatformLimits

DEFAULT_KIND: Final = "python:default"  # "python:3" is no kind any more; this one resolves everywhere
ACTIVATION_HEADER: Final = "x-openwhisk-activation-id"
DIGEST_ANNOTATION: Final = "fedkeeper-digest"
OWNER_ANNOTATION: Final = "fedkeeper-experiment"
AHEAD_ANNOTATION: Final = "fedkeeper-ahead"  # read by the embedded platform; a cluster keeps it, and no more
# Annotations that may be shown. Others can hold secrets: require-whisk-auth is a password.
_SHOWN: Final = {DIGEST_ANNOTATION, OWNER_ANNOTATION, "exec", "provide-api-key", "description", "final"}


def action(package: Package) -> dict[str, Any]:
    """The body of PUT. init parameters become environment variables, not arguments."""
    code = base64.b64encode(package.archive).decode()
    executable: dict[str, Any] = {"kind": package.runtime or DEFAULT_KIND}
    if package.image:
        executable = {"kind": "blackbox", "image": package.image}
    return {
        "exec": {**executable, "code": code, "main": package.entry},
        "limits": {
            "timeout": round(package.timeout_s * 1000),
            "memory": package.memory_mb,
            "concurrency": package.concurrency,
        },
        "parameters": [
            {"key": key, "value": value.get_secret_value(), "init": True}
            for key, value in sorted(package.environment.items())
        ],
        "annotations": [
            {"key": "provide-api-key", "value": False},  # else the function could act as its owner
            {"key": DIGEST_ANNOTATION, "value": package.digest},
            *([{"key": OWNER_ANNOTATION, "value": package.owner}] if package.owner else []),
            *([{"key": AHEAD_ANNOTATION, "value": True}] if package.ahead else []),
        ],
    }


def deployed(entity: Mapping[str, Any], api: URL) -> Deployed:
    """An action, from a row of the list or from the whole entity; parameters and code are left out."""
    namespace, _, package = str(entity.get("namespace", "_")).partition("/")
    name = str(entity.get("name", ""))
    function = f"{package}/{name}" if package else name
    notes = _annotations(entity)
    executable = entity.get("exec")
    return Deployed(
        function=function,
        state="active",  # an action that exists can be invoked: OpenWhisk builds nothing
        version=str(entity.get("version", "")),
        digest=str(notes.get(DIGEST_ANNOTATION, "")),
        owner=str(notes.get(OWNER_ANNOTATION, "")),
        url=str(api.parent / namespace / "actions" / function),
        updated_ms=int(entity.get("updated") or 0),
        details={
            "namespace": namespace,
            "publish": entity.get("publish", False),
            "limits": entity.get("limits", {}),
            "exec": {
                key: executable[key]
                for key in ("kind", "image", "main", "binary", "components")
                if isinstance(executable, dict) and key in executable
            },
            "annotations": {key: value for key, value in notes.items() if key in _SHOWN},
        },
    )


def activation(record: Mapping[str, Any], *, with_logs: bool) -> Activation:
    """A whole activation record (docs=true)."""
    notes = _annotations(record)
    response = record.get("response")
    response = response if isinstance(response, dict) else {}
    result = response.get("result")
    ok = response.get("success") is True
    start_ms = int(record.get("start") or 0)
    end_ms = int(record.get("end") or 0)
    limits = notes.get("limits")
    path = str(notes.get("path", "")).split("/", 1)
    return Activation(
        activation_id=str(record["activationId"]),
        function=path[1] if len(path) == 2 else str(record.get("name", "")),
        ok=ok,
        status=str(response.get("status", "")),
        reason="" if ok else _reason(result, str(response.get("status", "failed"))),
        result=result if isinstance(result, dict) else {"value": result},  # an action may return a list
        start_ms=start_ms,
        end_ms=end_ms,
        billed_ms=int(record.get("duration") or max(0, end_ms - start_ms)),
        memory_mb=int(limits.get("memory", 0)) if isinstance(limits, dict) else 0,
        cold="initTime" in notes,
        logs=tuple(str(line) for line in record.get("logs") or ()) if with_logs else (),
    )


def activation_id(answer: http.Answer) -> str:
    """The activation that an answer to an invocation belongs to, by its header or body; empty: none.

    The header is on every 200, 202 and 5xx of an invocation (contracts of Actions.scala, doInvoke).
    """
    named = answer.headers.get(ACTIVATION_HEADER, "")
    if not named:
        named = _object(answer.body).get("activationId", "")
    return named if isinstance(named, str) else ""


def refusal(
    cluster: str, function: str, answer: http.Answer, *, wrote: bool, now_ms: int, busy_wait_s: float
) -> ProviderError:
    """The error that an answer other than 2xx stands for.

    `wrote`: the request could change something, so that a 5xx leaves open whether it did. `busy_wait_s`: when
    to come back where too much is in flight.
    """
    status = answer.status
    problem = http.problem(answer)
    if status == 409 and "concurrent modification" in problem.lower():
        return Changing(cluster, function, problem, status=status, hint=_CHANGING_HINT)
    if status in _REFUSALS:
        kind, hint = _REFUSALS[status]
        return kind(cluster, function, problem, status=status, hint=hint)
    if status == 429:
        return Throttled(
            cluster,
            function,
            problem,
            retry_after_s=_retry_after_s(problem, answer.headers, now_ms, busy_wait_s),
            hint="lower the invocations in flight, or raise the namespace's limits",
        )
    if status == 503 and _is_openwhisk(answer):  # its load balancer has no invoker: nothing was begun
        return ProviderUnavailable(cluster, function, problem, status=status, hint="has it healthy invokers?")
    if wrote and status == 502 and (named := activation_id(answer)):
        reason = _failure(answer) or problem
        return InvocationFailed(cluster, function, reason, activation_id=named, status=status)
    return http.refusal(cluster, function, answer, wrote=wrote, key="api_host")


_CHANGING_HINT: Final = "another program may be changing it: try again"
_REFUSALS: Final[Mapping[int, tuple[type[RequestRefused], str]]] = {
    401: (AuthenticationRefused, "check auth (uuid:key) of this cluster"),
    403: (AuthenticationRefused, "the key is not for this namespace"),
    404: (FunctionMissing, ""),
    409: (Conflict, "something else has that name"),
    413: (TooLarge, "what is large belongs into the store, or into an image"),
}


def _is_openwhisk(answer: http.Answer) -> bool:
    """Whether the controller itself says it, and not a gateway in front of it."""
    plain = _object(answer.body)
    return isinstance(plain.get("error"), str) and "code" in plain


def _failure(answer: http.Answer) -> str:
    """Why the activation failed, where the answer is its record."""
    response = _object(answer.body).get("response")
    if not isinstance(response, dict):
        return ""
    return _reason(response.get("result"), str(response.get("status", "failed")))


def _object(body: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(body)
    except ValueError:
        return {}
    return plain if isinstance(plain, dict) else {}


def user_limits(plain: Mapping[str, Any]) -> PlatformLimits:
    """What the namespace may do: `GET /limits` (EntitlementProvider and Limits.scala: MB and ms)."""
    memory = (_count(plain, "minActionMemory"), _count(plain, "maxActionMemory"))
    timeout = (_count(plain, "minActionTimeout"), _count(plain, "maxActionTimeout"))
    concurrency = (_count(plain, "minActionConcurrency"), _count(plain, "maxActionConcurrency"))
    kinds = plain.get("allowedKinds")
    return PlatformLimits(
        per_minute=_count(plain, "invocationsPerMinute"),
        concurrent=_count(plain, "concurrentInvocations"),
        memory_mb=(memory[0] or 0, memory[1]) if memory[1] else None,
        timeout_s=((timeout[0] or 0) / 1000, timeout[1] / 1000) if timeout[1] else None,
        concurrency=(concurrency[0] or 1, concurrency[1]) if concurrency[1] else None,
        runtimes=tuple(str(kind) for kind in kinds) if isinstance(kinds, list) else (),
    )


def _count(plain: Mapping[str, Any], key: str) -> int | None:
    value = plain.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _retry_after_s(problem: str, headers: Mapping[str, str], now_ms: int, busy_wait_s: float) -> float:
    """OpenWhisk sends no Retry-After. Its window is the clock minute, in which every attempt counts."""
    given = http.retry_after_s(headers)
    if given is not None:
        return given
    if is_per_minute(problem):
        return 60.0 - http.server_second(headers, now_ms=now_ms) + 0.5
    return busy_wait_s


def is_per_minute(problem: str) -> bool:
    """Whether a 429 is of the window of a minute, rather than of what is in flight."""
    return "last minute" in problem


def _reason(result: Any, status: str) -> str:
    """Why it failed, in the function's or the platform's words; OpenWhisk puts them into `error`."""
    error = result.get("error") if isinstance(result, dict) else result
    if isinstance(error, dict):
        error = error.get("error") or error.get("message") or error
    return http.short(f"{status}: {error}" if error else status)


def _annotations(entity: Mapping[str, Any]) -> dict[str, Any]:
    rows = entity.get("annotations")
    return {
        str(row["key"]): row.get("value")
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and "key" in row
    }
