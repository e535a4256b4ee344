"""The fields of a Function: which there are, which the caller may set, and field masks over them. Pure.

Source: google.cloud.functions_v2 types (googleapis, google/cloud/functions/v2/functions.proto), and
google.protobuf.FieldMask's and proto3 JSON's rules.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedkeeper.fabric.google_lists import camel
from fedkeeper.fabric.google_rpc import invalid

MAP, LEAF, LIST, OUTPUT = "map", "leaf", "list", "output"  # OUTPUT: what a caller says is passed over
_OBJECT: Final = {"bucket": LEAF, "object": LEAF, "generation": LEAF, "sourceUploadUrl": OUTPUT}
Tree = Mapping[str, Any]
FUNCTION: Final[Tree] = {
    "name": OUTPUT, "description": LEAF, "labels": MAP, "kmsKeyName": LEAF, "eventTrigger": LEAF,
    "environment": LEAF,
    **dict.fromkeys(("state", "stateMessages", "updateTime", "createTime", "url", "satisfiesPzs"), OUTPUT),
    "buildConfig": {
        **dict.fromkeys(
            ("runtime", "entryPoint", "workerPool", "dockerRepository", "dockerRegistry", "serviceAccount",
             "automaticUpdatePolicy", "onDeployUpdatePolicy"), LEAF),
        "source": {"storageSource": _OBJECT, "repoSource": LEAF, "gitUri": LEAF},
        "environmentVariables": MAP, "build": OUTPUT, "sourceProvenance": OUTPUT,
    },
    "serviceConfig": {
        **dict.fromkeys(
            ("timeoutSeconds", "availableMemory", "availableCpu", "maxInstanceCount", "minInstanceCount",
             "vpcConnector", "vpcConnectorEgressSettings", "ingressSettings", "serviceAccountEmail",
             "allTrafficOnLatestRevision", "maxInstanceRequestConcurrency", "securityLevel",
             "binaryAuthorizationPolicy"), LEAF),
        "environmentVariables": MAP, "secretEnvironmentVariables": LIST, "secretVolumes": LIST,
        "service": OUTPUT, "uri": OUTPUT, "revision": OUTPUT,
    },
}  # fmt: skip
_ENUMS: Final = {
    "environment": ("ENVIRONMENT_UNSPECIFIED", "GEN_1", "GEN_2"),
    "ingressSettings": (
        "INGRESS_SETTINGS_UNSPECIFIED", "ALLOW_ALL", "ALLOW_INTERNAL_ONLY", "ALLOW_INTERNAL_AND_GCLB"),
    "vpcConnectorEgressSettings": (
        "VPC_CONNECTOR_EGRESS_SETTINGS_UNSPECIFIED", "PRIVATE_RANGES_ONLY", "ALL_TRAFFIC"),
    "securityLevel": ("SECURITY_LEVEL_UNSPECIFIED", "SECURE_ALWAYS", "SECURE_OPTIONAL"),
    "dockerRegistry": ("DOCKER_REGISTRY_UNSPECIFIED", "CONTAINER_REGISTRY", "ARTIFACT_REGISTRY"),
}  # fmt: skip


def settable(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request's Function the caller may set: names in camel case, enums by name. Refused.

    INVALID_ARGUMENT for a field that there is not, as the platform's JSON parser answers.
    """
    return _settable(body, FUNCTION, "function")


def masked(old: Mapping[str, Any], new: Mapping[str, Any], mask: str) -> dict[str, Any]:
    """`old` with exactly the fields of `mask` ("serviceConfig.availableMemory,labels") as `new` has them.

    Without a mask, the fields that `new` has are taken, and no other is touched; `*` takes all, also those
    that it has not. What a mask names and `new` has not is cleared: clients leave out what is zero or empty.
    Refused INVALID_ARGUMENT for a path that leads nowhere or that only the platform sets.
    """
    function: dict[str, Any] = copy.deepcopy(dict(old))
    paths = [path.strip() for path in mask.split(",") if path.strip()]
    if paths == ["*"]:
        paths = [key for key, kind in FUNCTION.items() if kind != OUTPUT and key != "environment"]
    elif not paths:
        paths = [".".join(steps) for steps in _leaves(new, FUNCTION) if steps != ["environment"]]
    for path in paths:
        _take(function, new, _steps(path))
    return function


def _steps(path: str) -> list[str]:
    """The way to a field that may be updated."""
    steps: list[str] = []
    kind: Any = FUNCTION
    for number, step in enumerate(path.split(".")):
        if kind == MAP:  # labels.team: what follows is one key, dots and all
            return [*steps, ".".join(path.split(".")[number:])]
        known = kind.get(camel(step)) if isinstance(kind, Mapping) else None
        if known is None:
            raise invalid(f"Invalid field mask: {path[:80]!r} is no field of a function.")
        steps.append(camel(step))
        kind = known
    if kind == OUTPUT or steps == ["environment"]:
        raise invalid(f"Invalid field mask: {path[:80]!r} cannot be updated.")
    return steps


def _take(target: dict[str, Any], source: Mapping[str, Any], steps: Sequence[str]) -> None:
    first, *rest = steps
    if not rest:
        if first in source:
            target[first] = copy.deepcopy(source[first])
        else:
            target.pop(first, None)
        return
    inner = dict(target.get(first) or {})
    _take(inner, source.get(first) or {}, rest)
    target[first] = inner


def _leaves(value: Mapping[str, Any], tree: Tree) -> list[list[str]]:
    found: list[list[str]] = []
    for key, inner in value.items():
        kind = tree[key]
        if isinstance(kind, Mapping) and key != "storageSource":  # a source is one thing
            found += [[key, *steps] for steps in _leaves(inner, kind)]
        else:
            found.append([key])
    return found


def _settable(body: Mapping[str, Any], tree: Tree, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in body.items():
        name = camel(key)
        kind = tree.get(name)
        if kind is None:
            raise invalid(
                f"Invalid JSON payload received. Unknown name \"{key[:80]}\" at '{where}': Cannot find field."
            )
        if kind == OUTPUT or value is None:
            continue
        found[name] = _set(name, value, kind, f"{where}.{name}")
    return found


def _set(name: str, value: Any, kind: Any, where: str) -> Any:
    if name in _ENUMS:
        return _enum(name, value, where)
    if kind == MAP or isinstance(kind, Mapping):
        if not isinstance(value, dict):
            raise invalid(f"Invalid value at '{where}': an object is expected.")
        return dict(value) if kind == MAP else _settable(value, kind, where)
    if kind == LIST and not isinstance(value, list):
        raise invalid(f"Invalid value at '{where}': a list is expected.")
    return str(value) if name == "generation" else value  # an int64: proto3 JSON writes it as text


def _enum(name: str, value: Any, where: str) -> str:
    """The official client sends numbers, everybody else names."""
    names = _ENUMS[name]
    if isinstance(value, str) and value in names:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    raise invalid(f"Invalid value at '{where}' (TYPE_ENUM), {str(value)[:40]!r}")
