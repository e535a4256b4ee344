"""OpenWhisk's JSON in our terms: actions, activation records, refusals. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from yarl import URL

from fedkeeper.errors import (
    AuthenticationRefused,
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed

DIGEST_ANNOTATION: Final = "fedkeeper-digest"
BUSY_S: Final = 1.0  # until there may be room again, when too many activations are in flight
# Annotations that may be shown. Others can hold secrets: require-whisk-auth is a password.
_SHOWN: Final = {DIGEST_ANNOTATION, "exec", "provide-api-key", "description", "final"}


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


def refusal(cluster: str, function: str, answer: http.Answer, *, wrote: bool, now_ms: int) -> ProviderError:
    """The error that an answer other than 2xx stands for.

    `wrote`: the request could change something, so that a 5xx leaves open whether it did.
    """
    status = answer.status
    problem = f"HTTP {status}: {http.error_text(answer.body)}".rstrip(": ")
    if status == 401:
        return AuthenticationRefused(
            cluster, function, problem, status=status, hint="check auth (uuid:key) of this cluster"
        )
    if status == 403:
        return AuthenticationRefused(
            cluster, function, problem, status=status, hint="the key is not for this namespace"
        )
    if status == 404:
        return FunctionMissing(cluster, function, problem, status=status)
    if status == 429:
        return Throttled(
            cluster,
            function,
            problem,
            retry_after_s=_retry_after_s(problem, answer.headers, now_ms),
            hint="lower the invocations in flight, or raise the namespace's limits",
        )
    if status >= 500:
        unknown = InvocationUnknown if wrote else ProviderUnavailable
        return unknown(cluster, function, problem, status=status)
    if 300 <= status < 400:
        return RequestRefused(
            cluster,
            function,
            f"HTTP {status}: redirected, and credentials are not taken elsewhere",
            status=status,
            hint="api_host must be the API host itself; https instead of http?",
        )
    return RequestRefused(cluster, function, problem, status=status)


def _retry_after_s(problem: str, headers: Mapping[str, str], now_ms: int) -> float:
    """OpenWhisk sends no Retry-After. Its window is the clock minute, in which every attempt counts."""
    given = http.retry_after_s(headers)
    if given is not None:
        return given
    if "last minute" in problem:
        return 60.0 - http.server_second(headers, now_ms=now_ms) + 0.5
    return BUSY_S


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
