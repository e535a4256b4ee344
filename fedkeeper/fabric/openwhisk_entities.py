"""OpenWhisk's rules for names, actions, limits and parameters, and its words for breaking them. Pure.

Source: apache/openwhisk, common/scala/.../core/entity (EntityPath, Exec, WhiskAction, limits) and
core/controller/.../Actions.scala.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedkeeper.fabric.activations import limits_body
from fedkeeper.fabric.archives import is_binary
from fedkeeper.fabric.bodies import MEGABYTE, dump_json
from fedkeeper.fabric.model import Limits

CODE_MAX_BYTES: Final = 48 * MEGABYTE  # of the string that is sent: 36 MB of zip
PARAMETERS_MAX_BYTES: Final = MEGABYTE
_NAME: Final = re.compile(r"\A([\w]|[\w][\w@ .&-]{0,254}[\w@.&-])\Z", re.ASCII)
_ACTIVATION_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_DEFAULT_KIND: Final = f"python:3.{sys.version_info.minor}"
_KINDS: Final = ("python:default", "python:3", *(f"python:3.{minor}" for minor in range(9, 15)))
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


class Refused(Exception):
    """The request breaks a rule: `status` and the platform's own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an action may ask for, smallest and largest."""

    timeout_ms: tuple[int, int] = (100, 3_600_000)
    memory_mb: tuple[int, int] = (128, 2048)
    logs_mb: tuple[int, int] = (0, 10)
    concurrency: tuple[int, int] = (1, 1)


def check_name(name: str) -> str:
    """`name`, if an entity may be called that. Refused 400."""
    if len(name) > 256:
        raise Refused(400, f"Name segement longer than allowed: {len(name)} > 256.")
    if not _NAME.match(name):
        raise Refused(400, "The name of the entity contains illegal characters.")
    return name


def check_activation_id(text: str) -> str:
    """`text`, if it has the form of an activation ID. Refused 400."""
    if len(text) != 32:
        raise Refused(400, f"Activation id length is {len(text)} but must be 32.")
    if not _ACTIVATION_ID.match(text):
        raise Refused(400, "The activation id is not valid.")
    return text


def flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """A boolean query parameter as pekko reads it: true/yes/on/1 and false/no/off/0 in any case."""
    text = query.get(name)
    if text is None:
        return default
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise Refused(
        400, f"The query parameter '{name}' was malformed:\n'{text:.40}' is not a valid Boolean value"
    )


def number(query: Mapping[str, str], name: str) -> int | None:
    """A whole query parameter, None if absent. Refused 400."""
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        problem = f"'{text:.40}' is not a valid 64-bit signed integer value"
        raise Refused(400, f"The query parameter '{name}' was malformed:\n{problem}")
    return int(text)


def page(query: Mapping[str, str], collection: str) -> tuple[int, int]:
    """(skip, limit) of a list: limit 0..200, where 0 means 200 and 30 is the default. Refused 400."""
    limit, skip = number(query, "limit"), number(query, "skip") or 0
    if limit is not None and not 0 <= limit <= 200:
        raise Refused(400, f"The value '{limit}' is not in the range of 0 to 200 for {collection}.")
    if skip < 0:
        raise Refused(400, f"The value '{skip}' is not greater than or equal to 0 for {collection}.")
    return skip, 30 if limit is None else limit or 200


def put_action(
    namespace: str,
    name: str,
    body: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    *,
    bounds: Bounds,
    now_ms: int,
) -> dict[str, Any]:
    """The entity after a PUT of `body`, where `old` is the one that is replaced.

    An update keeps what the body does not mention, replaces parameters, merges annotations by key and
    limits by field, and counts the patch version on unless the body names one. Refused 400, 413.
    """
    sent_exec, version = body.get("exec"), body.get("version")
    if sent_exec is None and old is None:
        raise Refused(400, "exec undefined")
    execution = dict(old["exec"]) if sent_exec is None and old else _execution(sent_exec)
    sent_parameters = body.get("parameters")
    parameters = (
        (old or {}).get("parameters", [])
        if sent_parameters is None
        else _pairs(sent_parameters, "parameters")
    )
    annotations = {
        item["key"]: item for item in (old or {}).get("annotations", [_pair("provide-api-key", value=False)])
    }
    for key in _strings(body.get("delAnnotations")):
        annotations.pop(key, None)
    annotations |= {item["key"]: item for item in _pairs(body.get("annotations") or [], "annotations")}
    annotations["exec"] = _pair("exec", value=execution["kind"])
    return {
        "namespace": namespace,
        "name": name,
        "version": _version(version) if version is not None else _next_version(old),
        "publish": body.get("publish", (old or {}).get("publish", False)) is True,
        "exec": execution,
        "parameters": parameters,
        "limits": _limits(body.get("limits"), (old or {}).get("limits"), bounds),
        "annotations": list(annotations.values()),
        "updated": now_ms,
    }


def summary(entity: Mapping[str, Any]) -> dict[str, Any]:
    """An action as lists show it."""
    shown = ("namespace", "name", "version", "publish", "annotations", "limits", "updated")
    return {key: entity[key] for key in shown} | {"exec": {"binary": entity["exec"]["binary"]}}


def annotation(entity: Mapping[str, Any], key: str) -> Any:
    """The annotation's value, None if it has none."""
    return next((item["value"] for item in entity["annotations"] if item["key"] == key), None)


def truthy(value: object) -> bool:
    """Whether an annotation switches something on."""
    return value not in (None, False, 0, "", "false")


def environment(entity: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables of the action's workers: its `init` parameters, as text."""
    return {item["key"]: _text(item["value"]) for item in entity["parameters"] if item.get("init")}


def arguments(entity: Mapping[str, Any], payload: Mapping[str, Any]) -> dict[str, Any]:
    """What the action is called with: its parameters under the payload. Refused 400 if they are final."""
    own = {item["key"]: item["value"] for item in entity["parameters"] if not item.get("init")}
    if truthy(annotation(entity, "final")) and any(own.get(key) is not None for key in payload):
        raise Refused(400, "Request defines parameters that are not allowed (e.g., reserved properties).")
    return own | dict(payload)


def limits_of(entity: Mapping[str, Any]) -> Limits:
    """The action's limits as workers know them."""
    limits = entity["limits"]
    return Limits(
        timeout_ms=limits["timeout"],
        memory_mb=limits["memory"],
        logs_mb=limits["logs"],
        concurrency=limits["concurrency"],
    )


def _execution(sent: object) -> dict[str, Any]:
    if not isinstance(sent, dict) or not isinstance(sent.get("kind"), str):
        raise Refused(400, "The request content was malformed:\n'kind' must be a string defined in 'exec'")
    kind, code, main = sent["kind"], sent.get("code"), sent.get("main")
    if kind not in _KINDS:
        valid = ", ".join(f"'{known}'" for known in _KINDS)
        words = f"The specified runtime '{kind:.100}' is not supported by this platform."
        raise Refused(400, f"{words} Valid values are: {valid}.")
    if not isinstance(code, str) or not code:
        problem = f"'code' must be a string or attachment object defined in 'exec' for '{kind}' actions"
        raise Refused(400, f"The request content was malformed:\n{problem}")
    if main is not None and not isinstance(main, str):
        raise Refused(
            400,
            f"The request content was malformed:\nif defined, 'main' be a string in 'exec' for '{kind}'",
        )
    if len(code) > CODE_MAX_BYTES:
        raise Refused(413, f"exec larger than allowed: {len(code)} > {CODE_MAX_BYTES} bytes.")
    stored = _DEFAULT_KIND if kind == "python:default" else kind
    return {"kind": stored, "code": code, "binary": is_binary(code)} | ({"main": main} if main else {})


def _pairs(sent: object, field: str) -> list[dict[str, Any]]:
    pairs: dict[str, dict[str, Any]] = {}
    if not isinstance(sent, list):
        raise Refused(400, f"The request content was malformed:\n{field} malformed!")
    for item in sent:
        if not isinstance(item, dict) or not isinstance(item.get("key"), str) or not item["key"]:
            raise Refused(400, f"The request content was malformed:\n{field} malformed!")
        pairs[item["key"]] = _pair(item["key"], value=item.get("value")) | (
            {"init": True} if item.get("init") is True else {}
        )
    nbytes = len(dump_json(list(pairs.values())))
    if nbytes > PARAMETERS_MAX_BYTES:
        raise Refused(413, f"{field} larger than allowed: {nbytes} > {PARAMETERS_MAX_BYTES} bytes.")
    return list(pairs.values())


def _limits(sent: object, old: Mapping[str, int] | None, bounds: Bounds) -> dict[str, int]:
    if sent is not None and not isinstance(sent, dict):
        raise Refused(400, "The request content was malformed:\nlimits malformed!")
    limits = dict(old or limits_body(Limits()))
    limits |= {key: value for key, value in (sent or {}).items() if key in limits and value is not None}
    for key, what, unit, (lowest, highest) in (
        ("timeout", "duration", " milliseconds", bounds.timeout_ms),
        ("memory", "memory size", " MB", bounds.memory_mb),
        ("logs", "log size", " MB", bounds.logs_mb),
        ("concurrency", "concurrency", "", bounds.concurrency),
    ):
        value = limits[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(400, f"The request content was malformed:\nlimits: '{key}' must be a whole number")
        if value > highest:
            raise Refused(400, f"{what} {value}{unit} exceeds allowed threshold of {highest}{unit}")
        if value < lowest:
            raise Refused(400, f"{what} {value}{unit} below allowed threshold of {lowest}{unit}")
    return limits


def _version(sent: object) -> str:
    if not isinstance(sent, str) or not re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}", sent):
        raise Refused(400, "The request content was malformed:\nbad semantic version")
    return sent


def _next_version(old: Mapping[str, Any] | None) -> str:
    if old is None:
        return "0.0.1"
    major, minor, patch = old["version"].split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def _strings(sent: object) -> list[str]:
    return [item for item in sent if isinstance(item, str)] if isinstance(sent, list) else []


def _pair(key: str, *, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def _text(value: object) -> str:
    return value if isinstance(value, str) else dump_json(value).decode()
