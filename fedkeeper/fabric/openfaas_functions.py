"""OpenFaaS: the rules for a FunctionDeployment, what is told of one, and how one becomes a revision. Pure.

Sources: openfaas/faas-provider types/, openfaas/faas-netes pkg/handlers/ (deploy, update, validate, reader),
openfaas/of-watchdog README. Words are faas-netes'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fedkeeper.fabric.model import Limits, Revision

DEFAULT_NAMESPACE: Final = "openfaas-fn"
REGISTRY: Final = "fedkeeper.local"
MEMORY_MAX_MB: Final = 32 * 1024
_DNS: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_IMAGE: Final = re.compile(rf"{re.escape(REGISTRY)}/([a-z0-9][-a-z0-9]{{0,62}}:[0-9a-f]{{16}})\Z")
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+\Z")  # Go's, as far as timeouts use it
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)(k|M|G|Ki|Mi|Gi)?\Z")
_UNITS: Final = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_THREADS_MAX: Final = 1000
_SHOWN: Final = ("image", "envProcess", "labels", "annotations", "limits", "requests", "constraints")


class Refused(Exception):
    """The request breaks a rule: HTTP `status` and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


def check(body: Mapping[str, Any]) -> None:
    """Refuse (400) what could not be deployed, naming the field."""
    service, image = body.get("service"), body.get("image")
    if not service:
        raise Refused(400, "validation failed: service: is required")
    if not isinstance(service, str) or not _DNS.match(service):
        shown = str(service)[:80]
        raise Refused(400, f"validation failed: service: ({shown}) is invalid, must be a valid DNS entry")
    if not image:
        raise Refused(400, "validation failed: image: is required")
    for key in ("envVars", "labels", "annotations", "limits", "requests"):
        if not all(isinstance(text, str) for text in _section(body, key).values()):
            raise Refused(400, f"failed to unmarshal request: {key} must hold texts")
    for name, value in _section(body, "envVars").items():
        if not _VARIABLE.match(name) or "\0" in value:
            raise Refused(400, f"validation failed: envVars: {name[:80]!r} is not valid")
    if body.get("secrets"):
        raise Refused(400, "unable to fetch secrets: the embedded gateway keeps none")
    mode, process = variable(body, "mode") or "streaming", process_of(body)
    if mode != "http" or not process.startswith("functions-framework"):
        raise Refused(
            400,
            "the embedded gateway runs images with mode=http and fprocess functions-framework …, not"
            f" mode={mode[:20]} and fprocess {process[:80]!r}",
        )
    limits_of(body)


def namespace(text: object) -> str:
    """The namespace that is meant. Refused 400."""
    if not text:
        return DEFAULT_NAMESPACE
    if not isinstance(text, str) or not _DNS.match(text):
        raise Refused(400, "namespace not valid")
    return text


def image_key(image: object) -> str:
    """ "name:sha256's beginning" of an image of our own store. Refused 400."""
    found = _IMAGE.match(image) if isinstance(image, str) else None
    if found is None:
        raise Refused(
            400,
            f"the embedded gateway has no containers: it runs images {REGISTRY}/<name>:<sha256> that were"
            f" uploaded to it, not {str(image)[:80]!r}",
        )
    return found[1]


def image_name(name: str, sha256: str) -> str:
    """ "name:sha256's beginning", under which a package is kept. Refused 400."""
    if not _DNS.match(name):
        raise Refused(400, f"image: ({name[:80]}) is invalid, must be a valid DNS entry")
    return f"{name}:{sha256[:16]}"


def process_of(body: Mapping[str, Any]) -> str:
    """What the watchdog starts (fprocess)."""
    return str(body.get("envProcess") or variable(body, "fprocess") or variable(body, "function_process"))


def variable(body: Mapping[str, Any], name: str) -> str:
    """A variable of the function's environment; empty if it is not set."""
    return str(_section(body, "envVars").get(name, ""))


def max_inflight(body: Mapping[str, Any]) -> int:
    """Requests beyond which a replica answers 429; 0: no limit."""
    text = variable(body, "max_inflight")
    return int(text) if text.isdecimal() and len(text) < 9 else 0


def limits_of(body: Mapping[str, Any]) -> Limits:
    """What one replica may use; exec_timeout 0 or absent is no limit of the watchdog's, here an hour. 400."""
    timeout_s = seconds(variable(body, "exec_timeout") or "0s") or 3600.0
    threads = variable(body, "THREADS")
    many = int(threads) if threads.isdecimal() and len(threads) < 9 else 1
    return Limits(
        timeout_ms=round(timeout_s * 1000),
        memory_mb=memory_mb(str(_section(body, "limits").get("memory") or "256Mi")),
        concurrency=max(1, min(many, _THREADS_MAX)),
    )


def seconds(text: str) -> float:
    """Seconds of Go's "1m30s", or of a bare number. Refused 400."""
    if text.isdecimal() and len(text) < 9:
        return float(text)
    if not _DURATION.match(text) or len(text) > 40:
        raise Refused(400, f"validation failed: {text[:40]!r} is not a duration such as 1m30s")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def memory_mb(text: str) -> int:
    """MB (2^20 bytes, rounded up) of "512Mi", "1Gi"; a bare number is bytes. Refused 400."""
    found = _QUANTITY.match(text)
    megabytes = -int(-float(found[1]) * _UNITS[found[2] or ""] // 2**20) if found else 0
    if not 1 <= megabytes <= MEMORY_MAX_MB:
        raise Refused(
            400, f"failed create Deployment spec: memory {text[:40]!r}: a quantity such as 512Mi was expected"
        )
    return megabytes


def status(name: str, scope: str, kept: Mapping[str, Any], *, invocations: int) -> dict[str, Any]:
    """The FunctionStatus; Go leaves out what is zero or empty, and faas-netes the environment."""
    body: Mapping[str, Any] = kept["deployment"]
    replicas = int(kept["replicas"])
    told = {
        "name": name,
        "namespace": scope,
        **{key: body[key] for key in _SHOWN if body.get(key)},
        "invocationCount": invocations,
        "replicas": replicas,
        "availableReplicas": replicas,
        "createdAt": rfc3339(kept["created_ms"]),
    }
    return {key: value for key, value in told.items() if value}


def revision(name: str, scope: str, body: Mapping[str, Any], revision_id: str, folder: str) -> Revision:
    """What the workers run for the function as it is deployed now."""
    return Revision(
        id=revision_id,
        flavour="openfaas",
        name=f"{name}.{scope}",
        folder=folder,
        entry=_target(process_of(body)),
        limits=limits_of(body),
        environment={"fprocess": process_of(body), **_section(body, "envVars")},
    )


def rfc3339(ms: int) -> str:
    """Unix ms as the API writes times."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _target(process: str) -> str:
    """The Python function that `functions-framework --target=NAME` serves."""
    found = re.search(r"--target[= ]([A-Za-z_][A-Za-z0-9_]*)", process)
    return found[1] if found else "main"


def _section(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, f"failed to unmarshal request: {key} must be an object")
    return value
