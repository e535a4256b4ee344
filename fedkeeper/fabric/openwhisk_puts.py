"""OpenWhisk's entities: what a PUT makes of an action, package, trigger or rule, and how lists show it. Pure.

Source: apache/openwhisk, core/controller/.../{Actions,Packages,Triggers,Rules}.scala (create and update) and
common/scala/.../core/entity/Whisk*.scala.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedkeeper.fabric.model import Limits
from fedkeeper.fabric.openwhisk_entities import (
    Bounds,
    FullName,
    Refused,
    is_path,
    malformed,
    parse_full_name,
)
from fedkeeper.fabric.openwhisk_exec import SEQUENCE
from fedkeeper.fabric.openwhisk_parameters import Pairs, merge, pair, read_pairs, without
from fedkeeper.fabric.records import limits_body

Entity = dict[str, Any]


def put_action(
    name: FullName,
    body: Mapping[str, Any],
    execution: dict[str, Any] | None,
    old: Mapping[str, Any] | None,
    *,
    bounds: Bounds,
    now_ms: int,
) -> Entity:
    """The action after a PUT of `body` with the exec that was read from it, in place of `old`.

    An update keeps what the body does not mention, replaces parameters, merges annotations by key and
    limits by field, and counts the patch version on unless the body names one. Refused 400, 413.
    """
    if execution is None and old is None:
        raise Refused(400, "exec undefined")
    sent_parameters = _sent_pairs(body, "parameters")
    sent_annotations = _sent_pairs(body, "annotations") or []
    limits = _limits(body.get("limits"), (old or {}).get("limits"), bounds)
    running = execution or dict(old["exec"] if old else {})
    if old is None:
        annotations = merge([pair("provide-api-key", value=False)], sent_annotations)
    else:
        dropped = _strings(body.get("delAnnotations")) if running["kind"] != SEQUENCE else []
        annotations = merge(without(old["annotations"], *dropped), sent_annotations)
    return {
        "namespace": name.path,
        "name": name.name,
        **_versioned(body, old),
        "exec": running,
        "parameters": _parameters(sent_parameters, execution, old),
        "limits": limits,
        "annotations": merge(annotations, [pair("exec", value=running["kind"])]),
        "updated": now_ms,
    }


def put_package(
    name: FullName, body: Mapping[str, Any], old: Mapping[str, Any] | None, *, now_ms: int
) -> Entity:
    """The package, or binding, after a PUT of `body`. Refused 400, 409, 413."""
    binding = read_binding(body, name.namespace)
    if old is not None and binding and not old["binding"]:
        raise Refused(409, "Resource is a package and cannot be converted into a binding.")
    bound = binding or (old or {}).get("binding", {})
    annotations = without(_kept_pairs(body, old, "annotations"), "binding")
    return {
        "namespace": name.namespace,
        "name": name.name,
        "binding": bound,
        **_versioned(body, old),
        "parameters": _kept_pairs(body, old, "parameters"),
        "annotations": annotations + ([pair("binding", value=bound)] if bound else []),
        "updated": now_ms,
    }


def read_binding(body: Mapping[str, Any], own: str) -> dict[str, str]:
    """The package that a body binds to, {} if none. Refused 400."""
    sent = body.get("binding")
    if sent is None or sent == {}:
        return {}
    if not isinstance(sent, dict):
        raise malformed("Object expected in field 'binding'")
    for field in ("namespace", "name"):
        if field not in sent:
            raise malformed(f"Object is missing required member '{field}'")
        if not is_path(sent[field]) or "/" in sent[field]:
            raise malformed("entity name malformed")
    return {"namespace": own if sent["namespace"] == "_" else sent["namespace"], "name": sent["name"]}


def put_trigger(
    name: FullName, body: Mapping[str, Any], old: Mapping[str, Any] | None, *, now_ms: int
) -> Entity:
    """The trigger after a PUT of `body`. Refused 400, 413."""
    entity = {
        "namespace": name.namespace,
        "name": name.name,
        "parameters": _kept_pairs(body, old, "parameters"),
        "limits": {},
        **_versioned(body, old),
        "annotations": _kept_pairs(body, old, "annotations"),
        "updated": now_ms,
    }
    feed = next((item for item in entity["annotations"] if item["key"] == "feed"), None)
    if old is None and feed is not None and not is_path(feed["value"]):
        raise Refused(400, "Feed name is not valid")
    return entity


def read_rule(body: Mapping[str, Any], own: str) -> dict[str, FullName]:
    """What a body says of a rule's `trigger` and `action`. Refused 400."""
    return {
        field: parse_full_name(body[field], own)
        for field in ("trigger", "action")
        if body.get(field) is not None
    }


def put_rule(
    name: FullName,
    body: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    *,
    joined: Mapping[str, FullName],
    now_ms: int,
) -> Entity:
    """The rule after a PUT of `body` that joins this trigger and action. It is stored with its status."""
    return {
        "namespace": name.namespace,
        "name": name.name,
        "status": (old or {}).get("status", "active"),
        "trigger": joined["trigger"].body(),
        "action": joined["action"].body(),
        **_versioned(body, old),
        "annotations": _kept_pairs(body, old, "annotations"),
        "updated": now_ms,
    }


def summary(kind: str, entity: Mapping[str, Any]) -> Entity:
    """An entity as lists show it."""
    if kind == "rule":
        return {key: value for key, value in entity.items() if key != "status"}
    shown = ("namespace", "name", "version", "publish", "annotations", "updated")
    base = {key: entity[key] for key in shown}
    if kind == "action":
        return base | {
            "limits": entity["limits"],
            "exec": {"binary": entity["exec"].get("binary", False)},
        }
    return base | ({"binding": entity["binding"] or False} if kind == "package" else {})


def limits_of(entity: Mapping[str, Any]) -> Limits:
    """The action's limits as workers know them."""
    limits = entity["limits"]
    return Limits(
        timeout_ms=limits["timeout"],
        memory_mb=limits["memory"],
        logs_mb=limits["logs"],
        concurrency=limits["concurrency"],
    )


def _parameters(
    sent: Pairs | None, execution: Mapping[str, Any] | None, old: Mapping[str, Any] | None
) -> Pairs:
    was_sequence = old is not None and old["exec"]["kind"] == SEQUENCE
    if execution is not None and execution["kind"] == SEQUENCE:
        return [pair("_actions", value=execution["components"])]
    if execution is None and was_sequence:
        return list(old["parameters"] if old else [])
    if sent is not None:
        return sent
    return [] if old is None or was_sequence else list(old["parameters"])


def _versioned(body: Mapping[str, Any], old: Mapping[str, Any] | None) -> dict[str, Any]:
    version, publish = body.get("version"), body.get("publish")
    if publish is not None and not isinstance(publish, bool):
        raise malformed(f"Expected JsBoolean, but got {publish!r:.40}")
    return {
        "version": _next_version(old) if version is None else _version(version),
        "publish": (old or {}).get("publish", False) if publish is None else publish,
    }


def _sent_pairs(body: Mapping[str, Any], field: str) -> Pairs | None:
    return None if body.get(field) is None else read_pairs(body[field], field)


def _kept_pairs(body: Mapping[str, Any], old: Mapping[str, Any] | None, field: str) -> Pairs:
    sent = _sent_pairs(body, field)
    return list((old or {}).get(field, [])) if sent is None else sent


def _limits(sent: object, old: Mapping[str, int] | None, bounds: Bounds) -> dict[str, int]:
    if sent is not None and not isinstance(sent, dict):
        raise malformed("Object expected in field 'limits'")
    limits = dict(old or limits_body(Limits()))
    named = {**limits, "instances": 0}
    limits |= {key: value for key, value in (sent or {}).items() if key in named and value is not None}
    for key, value in limits.items():
        what = {"timeout": "time", "logs": "log", "concurrency": "concurrency"}.get(key, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise malformed(f"{what} limit malformed")
        if value != int(value):
            raise malformed(f"requirement failed: {what} limit must be whole number")
        limits[key] = int(value)
    for key, what, unit, (lowest, highest) in (
        ("timeout", "duration", " milliseconds", bounds.timeout_ms),
        ("memory", "memory size", " MB", bounds.memory_mb),
        ("logs", "log size", " MB", bounds.logs_mb),
        ("concurrency", "concurrency", "", bounds.concurrency),
    ):
        if limits[key] > highest:
            raise Refused(400, f"{what} {limits[key]}{unit} exceeds allowed threshold of {highest}{unit}")
        if limits[key] < lowest:
            raise Refused(400, f"{what} {limits[key]}{unit} below allowed threshold of {lowest}{unit}")
    allowed = bounds.concurrent_invocations
    if limits.get("instances", 0) > allowed:
        words = f"Max action instance concurrency must not exceed your namespace concurrency of {allowed}."
        raise Refused(400, words)
    return limits


def _version(sent: object) -> str:
    if not isinstance(sent, str) or not re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}", sent):
        raise malformed("semantic version malformed")
    return sent


def _next_version(old: Mapping[str, Any] | None) -> str:
    if old is None:
        return "0.0.1"
    major, minor, patch = old["version"].split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def _strings(sent: object) -> list[str]:
    if sent is None:
        return []
    if not isinstance(sent, list) or not all(isinstance(item, str) for item in sent):
        raise malformed("Expected String as JsString in field 'delAnnotations'")
    return sent
