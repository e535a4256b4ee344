"""Cloud Functions v2: the rules for a Function's values, and how one becomes a revision. Pure.

Source: google.cloud.functions_v2 types; cloud.google.com/functions/quotas and configuring/{memory,timeout,
concurrency,env-var} for the limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fedkeeper.fabric import google_fields
from fedkeeper.fabric.google_rpc import invalid
from fedkeeper.fabric.model import Limits, Revision

MEMORY_MIN_MB, MEMORY_MAX_MB = 128, 32 * 1024
TIMEOUT_MAX_S: Final = 3600
CONCURRENCY_MAX: Final = 1000
INSTANCES_MAX: Final = 1000
INSTANCES: Final = 100  # where the function does not say
ENVIRONMENT_MAX_BYTES: Final = 32 * 1024
RUNTIMES: Final = {  # name -> stage
    "python39": "DEPRECATED", "python310": "GA", "python311": "GA", "python312": "GA", "python313": "GA",
    "python314": "GA",
}  # fmt: skip
_MEMORY_UNITS: Final = {"k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# vCPUs that an instance of so much memory (MB) gets where it says nothing of them
_CPUS: Final = ((128, "0.0833"), (256, "0.1666"), (512, "0.3333"), (1024, "0.5833"), (2048, "1"), (8192, "2"),
                (16_384, "4"), (32_768, "8"))  # fmt: skip
_FUNCTION_ID: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_ENTRY_POINT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_LABEL: Final = re.compile(r"[a-z0-9_-]{0,63}\Z")
_RESERVED: Final = frozenset(
    {"FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE", "K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT"}
)
_UNSUPPORTED: Final = (
    "secretEnvironmentVariables",
    "secretVolumes",
    "vpcConnector",
    "binaryAuthorizationPolicy",
)


def new_function(function_id: str, name: str, body: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The stored form of a Function that is being created. Refused INVALID_ARGUMENT."""
    if not _FUNCTION_ID.match(function_id):
        raise invalid(
            f"Invalid function ID {function_id[:80]!r}: it must match [a-z]([a-z0-9-]{{0,61}}[a-z0-9])?."
        )
    given = google_fields.settable(body)
    if given.pop("environment", "GEN_2") == "GEN_1":
        raise invalid("environment GEN_1 is not supported by this platform.")
    function = {"name": name, "environment": "GEN_2", "createTime": now, **given}
    check(function)
    return function


def updated_function(old: Mapping[str, Any], body: Mapping[str, Any], mask: str) -> dict[str, Any]:
    """`old` with the fields of `mask` taken from `body`, see google_fields.masked. Refused."""
    function = google_fields.masked(old, google_fields.settable(body), mask)
    check(function)
    return function


def check(function: Mapping[str, Any]) -> None:
    """Refuse what could not be deployed, naming the field."""
    build, service = section(function, "buildConfig"), section(function, "serviceConfig")
    runtime, entry = build.get("runtime"), build.get("entryPoint")
    if runtime not in RUNTIMES:
        raise invalid(
            f"build_config.runtime {str(runtime)[:80]!r} is not supported;"
            f" the runtimes are {', '.join(RUNTIMES)}."
        )
    if not isinstance(entry, str) or not _ENTRY_POINT.match(entry):
        raise invalid("build_config.entry_point must name a Python function.")
    source = section(section(build, "source"), "storageSource")
    if not all(isinstance(source.get(key), str) and source[key] for key in ("bucket", "object")):
        raise invalid("build_config.source.storage_source must name a bucket and an object.")
    for unsupported in _UNSUPPORTED:
        if service.get(unsupported):
            raise invalid(f"service_config.{unsupported} is not supported by this platform.")
    if function.get("eventTrigger"):
        raise invalid("event_trigger is not supported by this platform: functions are invoked over HTTP.")
    limits(function)
    _check_variables("service_config", section(service, "environmentVariables"), _RESERVED)
    _check_variables("build_config", section(build, "environmentVariables"), frozenset())
    for key, value in section(function, "labels").items():
        if not _LABEL_KEY.match(key) or not isinstance(value, str) or not _LABEL.match(value):
            raise invalid(
                f"labels: {key[:80]!r}: keys and values are up to 63 lower-case letters, digits, _ and -."
            )


def limits(function: Mapping[str, Any]) -> Limits:
    """The service's limits; absent ones are the platform's defaults. Refused INVALID_ARGUMENT."""
    service = section(function, "serviceConfig")
    timeout_s = _whole(service, "timeoutSeconds", default=60, most=TIMEOUT_MAX_S)
    concurrency = _whole(service, "maxInstanceRequestConcurrency", default=1, most=CONCURRENCY_MAX)
    megabytes = memory_mb(service.get("availableMemory") or "256M")
    cpus = _cpus(service.get("availableCpu"), megabytes)
    if concurrency > 1 and cpus < 1:
        raise invalid(
            "service_config.max_instance_request_concurrency above 1 needs available_cpu of 1 or more."
        )
    most = _whole(service, "maxInstanceCount", default=INSTANCES, most=INSTANCES_MAX)
    if _whole(service, "minInstanceCount", default=0, least=0, most=INSTANCES_MAX) > most:
        raise invalid("service_config.min_instance_count must not exceed max_instance_count.")
    return Limits(
        timeout_ms=timeout_s * 1000, memory_mb=megabytes, concurrency=concurrency, instances=most
    )  # fmt: skip


def memory_mb(text: object) -> int:
    """MB (2^20 bytes, rounded up) of "512Mi", "1Gi", "256M"; a bare number is bytes. Refused."""
    match = (
        re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kMG]i?|Ki)?", text) if isinstance(text, str) else None
    )
    if match is None:
        raise invalid(f"service_config.available_memory {str(text)[:40]!r} is not a quantity such as 512Mi.")
    nbytes = float(match[1]) * _MEMORY_UNITS.get(match[2] or "", 1)
    megabytes = -int(-nbytes // 2**20)
    if nbytes < 128e6 or megabytes > MEMORY_MAX_MB:
        raise invalid(f"service_config.available_memory must be between 128M and {MEMORY_MAX_MB // 1024}Gi.")
    return megabytes


def revision(function: Mapping[str, Any], revision_id: str, number: int, folder: str) -> Revision:
    """What the workers run for the function as it is configured now: its `number`th revision."""
    service_name = function["name"].rpartition("/")[2]
    build, service = function["buildConfig"], section(function, "serviceConfig")
    environment = {
        **section(service, "environmentVariables"),
        "FUNCTION_TARGET": build["entryPoint"],
        "FUNCTION_SIGNATURE_TYPE": "http",
        "K_SERVICE": service_name,
        "K_CONFIGURATION": service_name,
        "K_REVISION": revision_name(service_name, revision_id, number),
    }
    return Revision(
        id=revision_id, flavour="google", name=function["name"], folder=folder, entry=build["entryPoint"],
        limits=limits(function), environment=environment,
    )  # fmt: skip


def revision_name(service_name: str, revision_id: str, number: int) -> str:
    """As Cloud Run names revisions: "client-3-00002-b7f"."""
    return f"{service_name}-{number:05d}-{revision_id[:3]}"


def shown(function: Mapping[str, Any], url: str, revision_id: str, number: int) -> dict[str, Any]:
    """A Function as the API answers it: the stored one, and what the platform adds."""
    project, _, location, _, service_name = function["name"].split("/")[1:6]
    given = section(function, "serviceConfig")
    service = {
        "availableMemory": "256M",
        "availableCpu": _cpu_text(memory_mb(given.get("availableMemory") or "256M")),
        "timeoutSeconds": 60,
        "maxInstanceCount": INSTANCES,
        "maxInstanceRequestConcurrency": 1,
        "ingressSettings": "ALLOW_ALL",
        **{key: value for key, value in given.items() if value not in ("", 0)},
        "uri": url,
        "service": f"projects/{project}/locations/{location}/services/{service_name}",
        "allTrafficOnLatestRevision": True,
    }
    if revision_id:
        service["revision"] = revision_name(service_name, revision_id, number)
    return {**function, "url": url, "serviceConfig": service}


def runtimes() -> list[dict[str, Any]]:
    """What ListRuntimes answers: all run in the fabric's own interpreter."""
    return [
        {
            "name": name,
            "displayName": f"Python 3.{name.removeprefix('python3')}",
            "stage": stage,
            "environment": "GEN_2",
        }
        for name, stage in RUNTIMES.items()
    ]


def rfc3339(ms: int) -> str:
    """Unix milliseconds as the API writes times."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in an object; empty if it is not there. Refused if it is none."""
    inner = value.get(key)
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise invalid(f"{key} must be an object.")
    return inner


def _check_variables(where: str, variables: Mapping[str, Any], reserved: frozenset[str]) -> None:
    for key, value in variables.items():
        if not _VARIABLE.match(key) or key in reserved or not isinstance(value, str) or "\0" in value:
            raise invalid(f"{where}.environment_variables: {key[:80]!r} is reserved or not valid.")
        if key.startswith("X_GOOGLE_"):
            raise invalid(f"{where}.environment_variables: {key[:80]!r}: X_GOOGLE_ is reserved.")
    if sum(len(key) + len(value.encode()) for key, value in variables.items()) > ENVIRONMENT_MAX_BYTES:
        raise invalid(f"{where}.environment_variables exceed {ENVIRONMENT_MAX_BYTES} bytes.")


def _whole(service: Mapping[str, Any], key: str, *, default: int, most: int, least: int = 1) -> int:
    value = service.get(key) or default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(f"service_config.{key} must be a whole number from {least} to {most}.")
    return value


def _cpus(text: object, megabytes: int) -> float:
    match = re.fullmatch(r"([0-9]{1,5}(?:\.[0-9]{1,6})?)(m?)", str(text or _cpu_text(megabytes)))
    if match is None:
        raise invalid(f"service_config.available_cpu {str(text)[:40]!r} is not a number of CPUs.")
    return float(match[1]) / (1000 if match[2] else 1)


def _cpu_text(megabytes: int) -> str:
    return next(cpus for most, cpus in _CPUS if megabytes <= most)
