"""Parameters and annotations of OpenWhisk entities: how they are read, merged and handed to actions. Pure.

Source: apache/openwhisk, common/scala/.../core/entity/Parameter.scala and WhiskAction.scala.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedkeeper.fabric.bodies import MEGABYTE, dump_json
from fedkeeper.fabric.openwhisk_entities import NOT_ALLOWED, Refused, annotation, malformed

PARAMETERS_MAX_BYTES: Final = MEGABYTE
Pairs = list[dict[str, Any]]  # [{"key", "value", "init"?}], each key once


def pair(key: str, *, value: Any) -> dict[str, Any]:
    """One parameter or annotation."""
    return {"key": key, "value": value}


def read_pairs(sent: object, field: str) -> Pairs:
    """The parameters or annotations (`field` says which) in a body. Refused 400, 413."""
    pairs: dict[str, dict[str, Any]] = {}
    if not isinstance(sent, list):
        raise malformed("parameters malformed!")
    for item in sent:
        if not isinstance(item, dict) or not isinstance(item.get("key"), str) or "value" not in item:
            raise malformed("parameters malformed!")
        pairs[item["key"]] = pair(item["key"], value=item["value"]) | (
            {"init": True} if item.get("init") is True else {}
        )
    nbytes = sum(len(key.encode()) + len(dump_json(item["value"])) for key, item in pairs.items())
    if nbytes > PARAMETERS_MAX_BYTES:
        raise Refused(413, f"{field} larger than allowed: {nbytes} > {PARAMETERS_MAX_BYTES} bytes.")
    return list(pairs.values())


def merge(*layers: Iterable[dict[str, Any]]) -> Pairs:
    """All pairs, where a later layer's stand in for those of the same key before."""
    return list({item["key"]: item for layer in layers for item in layer}.values())


def without(pairs: Iterable[dict[str, Any]], *keys: str) -> Pairs:
    """The pairs that have none of these keys."""
    return [item for item in pairs if item["key"] not in keys]


def check_final(entity: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
    """Refused 400 if the action's parameters are final and the payload names one that has a value."""
    if annotation(entity, "final") is not True:
        return
    defined = {item["key"] for item in entity["parameters"] if item["value"] is not None}
    if defined & payload.keys():
        raise Refused(400, NOT_ALLOWED)


def arguments(entity: Mapping[str, Any], payload: Any) -> tuple[Any, dict[str, str]]:
    """What the action is called with, and what its worker's environment gets when it is initialised.

    A payload's members stand in for parameters of their name. Those that the action declares as `init`
    are no arguments: they are its environment, as text. A list (from a sequence) is passed as it is.
    """
    initial = {item["key"] for item in entity["parameters"] if item.get("init")}
    own = {item["key"]: item["value"] for item in entity["parameters"]}
    if not isinstance(payload, Mapping):
        return payload, {key: _text(own[key]) for key in initial}
    content = own | dict(payload)
    environment = {key: _text(value) for key, value in content.items() if key in initial}
    return {key: value for key, value in content.items() if key not in initial}, environment


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else dump_json(value).decode()
