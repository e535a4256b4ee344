"""A gateway's functions in our terms: names, deployments, refusals. No I/O.

The API is that of openfaas/faas (api-docs/spec.openapi.yml), its types those of openfaas/faas-provider
(types/function_deployment.go, function_status.go).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    FunctionMissing,
    ProviderError,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Deployed, Package

NAME_NOTE: Final = "fedkeeper-function"  # annotations: of any length, unlike labels
DIGEST_NOTE: Final = "fedkeeper-digest"
OWNER_NOTE: Final = "fedkeeper-experiment"
UPDATED_NOTE: Final = "fedkeeper-updated"  # Unix ms; createdAt stays what it was when a function is updated
SERVER: Final = (
    "functions-framework --target=main --port=5000"  # what functions/*/openfaas/Dockerfile installs
)
UPSTREAM: Final = "http://127.0.0.1:5000"
GRACE_S: Final = 5  # that the watchdog's own limits outlast the function's: it has to send the 504
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")  # with our underscores
_UNITS: Final = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def platform_name(cluster: str, function: str) -> str:
    """ "client_3" -> "client-3": a name of DNS (RFC 1123), as faas-netes asks for."""
    if not _NAME.fullmatch(function):
        raise RequestRefused(
            cluster,
            function,
            "OpenFaaS does not take this name",
            hint="at most 63 of a-z, 0-9, _ and -, beginning and ending with a letter or digit",
        )
    return function.replace("_", "-")


def call_id(key: str) -> str:
    """32 hex digits of SHA-256 of `key`: the same attempt has the same X-Call-Id, whoever sends it."""
    return hashlib.sha256(f"fedkeeper activation {key}".encode()).hexdigest()[:32]


def deployment(package: Package, name: str, namespace: str, image: str, *, now_ms: int) -> dict[str, Any]:
    """The FunctionDeployment to POST or PUT.

    The environment is readable by whoever has the gateway's password, as on the other platforms by whoever
    may see the function. `secrets` are mounted by the gateway under /var/openfaas/secrets.
    """
    extras = package.extras
    timeout = f"{package.timeout_s:g}s"
    longer = f"{package.timeout_s + GRACE_S:g}s"
    memory = f"{package.memory_mb}Mi"
    cpu = str(extras.get("cpu") or "")
    requests = {
        "memory": f"{extras.get('memory_request_mb') or package.memory_mb}Mi",
        "cpu": str(extras.get("cpu_request") or cpu),
    }
    return {
        "service": name,
        "image": image,
        **({"namespace": namespace} if namespace else {}),
        "envProcess": SERVER,
        "envVars": {
            **{key: value.get_secret_value() for key, value in sorted(package.environment.items())},
            "mode": "http",
            "upstream_url": UPSTREAM,
            "http_buffer_req_body": "true",  # the server takes no chunked requests
            "exec_timeout": timeout,
            "read_timeout": longer,
            "write_timeout": longer,
            "max_inflight": str(extras.get("max_inflight") or 0),
            "THREADS": str(package.concurrency),  # of the functions framework's server
        },
        "annotations": {
            NAME_NOTE: package.function,
            DIGEST_NOTE: package.digest,
            **({OWNER_NOTE: package.owner} if package.owner else {}),
            UPDATED_NOTE: str(now_ms),
        },
        "limits": {"memory": memory, **({"cpu": cpu} if cpu else {})},
        "requests": {key: value for key, value in requests.items() if value},
        **({"secrets": list(extras["secrets"])} if extras.get("secrets") else {}),
        **({"constraints": list(extras["constraints"])} if extras.get("constraints") else {}),
    }


def deployed(status: Mapping[str, Any], url: str) -> Deployed:
    """A FunctionStatus; its environment is left out."""
    notes = _strings(status.get("annotations"))
    name = str(status.get("name", ""))
    said = notes.get(NAME_NOTE, "")
    digest = notes.get(DIGEST_NOTE, "")
    replicas, available = _count(status, "replicas"), _count(status, "availableReplicas")
    image = str(status.get("image", ""))
    return Deployed(
        function=said if said.replace("_", "-") == name else name,
        state="active" if available else "deploying",
        version=digest[:12] or image,
        digest=digest,
        owner=notes.get(OWNER_NOTE, ""),
        url=url,
        updated_ms=_updated_ms(notes, status),
        message="" if available else f"none of {replicas} replicas is available",
        details={
            "name": name,
            "namespace": status.get("namespace", ""),
            "image": image,
            "replicas": replicas,
            "availableReplicas": available,
            "annotations": notes,
            "labels": _strings(status.get("labels")),
            "limits": status.get("limits") or {},
            "requests": status.get("requests") or {},
            "secrets": status.get("secrets") or [],
        },
    )


def replicas_wanted(status: Mapping[str, Any]) -> int:
    """How many replicas there are to be."""
    return _count(status, "replicas")


def memory_mb(status: Mapping[str, Any]) -> int:
    """The memory limit in MB; 0 if the gateway does not say."""
    limits = status.get("limits")
    text = str(limits.get("memory", "")) if isinstance(limits, Mapping) else ""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k|M|G|Ki|Mi|Gi)?", text)
    return round(float(found[1]) * _UNITS[found[2] or ""] / 2**20) if found else 0


def refusal(
    cluster: str,
    function: str,
    answer: http.Answer,
    *,
    wrote: bool,
    busy_wait_s: float,
    of_function: bool = True,
) -> ProviderError:
    """The error that an answer other than 2xx stands for.

    Args:
        cluster: where it came from.
        function: what it was about; empty: none.
        answer: what the gateway, or something in between, said.
        wrote: the request could change something, so that a 5xx leaves open whether it did.
        busy_wait_s: of a 429 without a Retry-After: a replica has as many requests as it takes.
        of_function: a 404 means that the function is missing, not that this is no gateway.
    """
    status, problem = answer.status, http.problem(answer)
    if status in (401, 403):
        hint = "check username and password of this gateway, and that it lets them into the namespace"
        return AuthenticationRefused(cluster, function, problem, status=status, hint=hint)
    if status == 404 and of_function:
        return FunctionMissing(cluster, function, problem, status=status)
    if status == 404:
        return RequestRefused(
            cluster, function, problem, status=status, hint="is `gateway` an OpenFaaS gateway?"
        )
    if status == 409:
        hint = "another program may be changing it: try again"
        return Changing(cluster, function, problem, status=status, hint=hint)
    if status == 413:
        hint = "what is large belongs into the store, or into an image"
        return TooLarge(cluster, function, problem, status=status, hint=hint)
    if status == 429:
        wait_s = http.retry_after_s(answer.headers)
        return Throttled(
            cluster,
            function,
            problem,
            retry_after_s=busy_wait_s if wait_s is None else wait_s,
            hint="raise max_inflight of the function, or lower the invocations in flight",
        )
    return http.refusal(cluster, function, answer, wrote=wrote, key="gateway")


def _updated_ms(notes: Mapping[str, str], status: Mapping[str, Any]) -> int:
    if notes.get(UPDATED_NOTE, "").isdecimal():
        return int(notes[UPDATED_NOTE])
    try:
        return round(datetime.fromisoformat(str(status["createdAt"])).timestamp() * 1000)
    except (KeyError, ValueError):
        return 0


def _count(status: Mapping[str, Any], key: str) -> int:
    value = status.get(key, 0)  # Go leaves out zeros
    return int(value) if isinstance(value, int | float) else 0


def _strings(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}
