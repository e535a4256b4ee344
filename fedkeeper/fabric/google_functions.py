"""Cloud Functions v2: the rules for a Function's fields, and how one becomes a revision. Pure.

Source: google.cloud.functions_v2 types, and cloud.google.com/functions/quotas for the limits.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fedkeeper.fabric.model import Limits, Revision

MEMORY_MAX_MB: Final = 32 * 1024
TIMEOUT_MAX_S: Final = 3600
_MEMORY_UNITS: Final = {"k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_FUNCTION_ID: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_ENTRY_POINT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RUNTIME: Final = re.compile(r"python3[0-9]{1,2}\Z")
_RESERVED: Final = frozenset(
    {"FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE", "K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT"}
)
_OUTPUT_ONLY: Final = frozenset(
    {"name", "state", "stateMessages", "updateTime", "createTime", "url", "environment"}
)
_STATUS_WORDS: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "INVALID_ARGUMENT", 409: "ALREADY_EXISTS", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
}  # fmt: skip


class Refused(Exception):
    """The request breaks a rule: HTTP `status`, words, and the RPC status where it is not the usual one."""

    def __init__(self, status: int, words: str, rpc_status: str = "") -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.rpc_status = rpc_status or _STATUS_WORDS.get(status, "INTERNAL")


def new_function(function_id: str, name: str, body: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The stored form of a Function that is being created. Refused 400."""
    if not _FUNCTION_ID.match(function_id):
        raise Refused(
            400, f"Invalid function ID {function_id[:80]!r}: it must match [a-z]([a-z0-9-]{{0,61}}[a-z0-9])?."
        )
    given = {key: value for key, value in body.items() if key not in _OUTPUT_ONLY}
    function = {"name": name, "environment": "GEN_2", "createTime": now, **copy.deepcopy(given)}
    check(function)
    return function


def updated_function(old: Mapping[str, Any], body: Mapping[str, Any], mask: str) -> dict[str, Any]:
    """`old` with the fields of `mask` ("serviceConfig.availableMemory,labels") taken from `body`.

    Without a mask, every field that `body` has is taken. Refused 400.
    """
    function: dict[str, Any] = copy.deepcopy(dict(old))
    paths = [path for path in mask.split(",") if path] or [key for key in body if key not in _OUTPUT_ONLY]
    for path in paths:
        steps = [_camel(step) for step in path.split(".")]
        if steps[0] in _OUTPUT_ONLY or len(steps) > 6:
            raise Refused(400, f"Invalid field mask: {path[:80]!r} cannot be updated.")
        _take(function, body, steps)
    check(function)
    return function


def check(function: Mapping[str, Any]) -> None:
    """Refuse (400) what could not be deployed, naming the field."""
    build, service = _section(function, "buildConfig"), _section(function, "serviceConfig")
    runtime, entry = build.get("runtime"), build.get("entryPoint")
    if not isinstance(runtime, str) or not _RUNTIME.match(runtime):
        raise Refused(
            400, f"build_config.runtime {str(runtime)[:80]!r} is not supported; this one runs python3XX."
        )
    if not isinstance(entry, str) or not _ENTRY_POINT.match(entry):
        raise Refused(400, "build_config.entry_point must name a Python function.")
    source = _section(_section(build, "source"), "storageSource")
    if not isinstance(source.get("bucket"), str) or not isinstance(source.get("object"), str):
        raise Refused(400, "build_config.source.storage_source must name a bucket and an object.")
    for unsupported in ("secretEnvironmentVariables", "secretVolumes", "vpcConnector"):
        if service.get(unsupported):
            raise Refused(400, f"service_config.{unsupported} is not supported by this platform.")
    if function.get("eventTrigger"):
        raise Refused(
            400, "event_trigger is not supported by this platform: functions are invoked over HTTP."
        )
    limits(function)
    variables = _section(service, "environmentVariables")
    for key, value in variables.items():
        if not _VARIABLE.match(key) or key in _RESERVED or not isinstance(value, str) or "\0" in value:
            raise Refused(
                400, f"service_config.environment_variables: {key[:80]!r} is reserved or not valid."
            )


def limits(function: Mapping[str, Any]) -> Limits:
    """The service's limits; absent ones are the platform's defaults. Refused 400."""
    service = _section(function, "serviceConfig")
    timeout_s = _whole(service, "timeoutSeconds", default=60, most=TIMEOUT_MAX_S)
    concurrency = _whole(service, "maxInstanceRequestConcurrency", default=1, most=1000)
    if concurrency > 1 and _cpus(service.get("availableCpu")) < 1:
        raise Refused(
            400, "service_config.max_instance_request_concurrency above 1 needs available_cpu of 1 or more."
        )
    _whole(service, "maxInstanceCount", default=100, most=1000)
    return Limits(
        timeout_ms=timeout_s * 1000, memory_mb=memory_mb(service.get("availableMemory") or "256M"),
        concurrency=concurrency,
    )  # fmt: skip


def memory_mb(text: object) -> int:
    """MB (2^20 bytes, rounded up) of "512Mi", "1Gi", "256M"; a bare number is bytes. Refused 400."""
    match = (
        re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kMG]i?|Ki)?", text) if isinstance(text, str) else None
    )
    if match is None:
        raise Refused(
            400, f"service_config.available_memory {str(text)[:40]!r} is not a quantity such as 512Mi."
        )
    nbytes = float(match[1]) * _MEMORY_UNITS.get(match[2] or "", 1)
    megabytes = -int(-nbytes // 2**20)
    if not 1 <= megabytes <= MEMORY_MAX_MB:
        raise Refused(400, f"service_config.available_memory must be between 1Mi and {MEMORY_MAX_MB}Mi.")
    return megabytes


def revision(function: Mapping[str, Any], revision_id: str, folder: str) -> Revision:
    """What the workers run for the function as it is configured now."""
    service_name = function["name"].rpartition("/")[2]
    build, service = function["buildConfig"], _section(function, "serviceConfig")
    environment = {
        **_section(service, "environmentVariables"),
        "FUNCTION_TARGET": build["entryPoint"],
        "FUNCTION_SIGNATURE_TYPE": "http",
        "K_SERVICE": service_name,
        "K_CONFIGURATION": service_name,
        "K_REVISION": f"{service_name}-{revision_id[:8]}",
    }
    return Revision(
        id=revision_id, flavour="google", name=function["name"], folder=folder, entry=build["entryPoint"],
        limits=limits(function), environment=environment,
    )  # fmt: skip


def shown(function: Mapping[str, Any], url: str, revision_id: str) -> dict[str, Any]:
    """A Function as the API answers it: the stored one, and what the platform adds."""
    project, _, location, _, service_name = function["name"].split("/")[1:6]
    service = {
        "availableMemory": "256M",
        "timeoutSeconds": 60,
        "maxInstanceCount": 100,
        "maxInstanceRequestConcurrency": 1,
        **_section(function, "serviceConfig"),
        "uri": url,
        "service": f"projects/{project}/locations/{location}/services/{service_name}",
        "allTrafficOnLatestRevision": True,
    }
    if revision_id:
        service["revision"] = f"{service_name}-{revision_id[:8]}"
    return {**function, "url": url, "serviceConfig": service}


def rfc3339(ms: int) -> str:
    """Unix milliseconds as the API writes times."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _take(target: dict[str, Any], source: Mapping[str, Any], steps: Sequence[str]) -> None:
    first, *rest = steps
    if not rest:
        if first in source:
            target[first] = copy.deepcopy(source[first])
        else:
            target.pop(first, None)  # the client leaves out what is zero or empty
        return
    inner = dict(_section(target, first))
    _take(inner, _section(source, first), rest)
    target[first] = inner


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise Refused(400, f"{key} must be an object.")
    return inner


def _whole(service: Mapping[str, Any], key: str, *, default: int, most: int) -> int:
    value = service.get(key) or default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise Refused(400, f"service_config.{key} must be a whole number from 1 to {most}.")
    return value


def _cpus(text: object) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)(m?)", str(text)) if text else None
    return (float(match[1]) / (1000 if match[2] else 1)) if match else 0.0


def _camel(text: str) -> str:
    first, *rest = text.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)
