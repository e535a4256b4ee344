"""What is remembered of an activation: its summary for lists, and its full record. Pure.

Source: apache/openwhisk, common/scala/.../core/entity/{WhiskActivation,ActivationResult}.scala,
core/invoker/.../ContainerProxy.scala (constructWhiskActivation), core/controller/.../SequenceActions.scala
(makeSequenceActivation) and Triggers.scala (activate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fedkeeper.fabric.bodies import MEGABYTE, dump_json
from fedkeeper.fabric.model import Limits, Ran

RESULT_MAX_BYTES: Final = MEGABYTE
SUCCESS: Final = "success"
APPLICATION_ERROR: Final = "application error"
DEVELOPER_ERROR: Final = "action developer error"
INTERNAL_ERROR: Final = "whisk internal error"
STATUS_CODES: Final = {SUCCESS: 0, APPLICATION_ERROR: 1, DEVELOPER_ERROR: 2, INTERNAL_ERROR: 3}
SEQUENCE: Final = "sequence"
TRIGGER: Final = "trigger"
_INVALID: Final = "The action did not return a dictionary or array."

Records = tuple[dict[str, Any], dict[str, Any]]  # summary, full


def records_of_run(activation_id: str, told: Mapping[str, Any], ran: Ran) -> Records:
    """`records`, with the result that the platform would take, or the error that it answers instead."""
    taken, nbytes = checked(ran)
    return records(activation_id, told, taken, nbytes=nbytes)


def checked(ran: Ran) -> tuple[Ran, int | None]:
    """`ran`, if the platform would take its result, and that one's size; else what it answers instead."""
    if ran.status != SUCCESS and not (ran.status == APPLICATION_ERROR and _is_error(ran.result)):
        error = ran.result.get("error") if isinstance(ran.result, dict) else None
        return _with(ran, ran.status, error or "The action failed."), None
    try:
        nbytes = len(dump_json(ran.result))
    except (ValueError, TypeError, RecursionError):
        return _with(ran, DEVELOPER_ERROR, _INVALID), None
    if nbytes > RESULT_MAX_BYTES:
        problem = "The action produced a response that exceeded the allowed length"
        return _with(ran, APPLICATION_ERROR, f"{problem}: {nbytes} > {RESULT_MAX_BYTES} bytes."), None
    if _is_error(ran.result):
        return _with(ran, APPLICATION_ERROR, ran.result["error"]), None
    if not isinstance(ran.result, (dict, list)):
        return _with(ran, DEVELOPER_ERROR, _INVALID), None
    return ran, nbytes


def records(
    activation_id: str,
    told: Mapping[str, Any],
    ran: Ran,
    *,
    duration_ms: int | None = None,
    nbytes: int | None = None,
) -> Records:
    """The summary and the full record of an activation that `told` describes, as the API gives them.

    `duration_ms` if it is not the time from start to end: that of a sequence is the sum of its components'.
    `nbytes`: of the result as JSON, if that is known.
    """
    shared = _shared(activation_id, told, ran.start_ms) | {
        "end": ran.end_ms,
        "duration": ran.end_ms - ran.start_ms if duration_ms is None else duration_ms,
        "annotations": _annotations(told, ran),
    }
    response = {
        "result": ran.result,
        "success": ran.status == SUCCESS,
        "status": ran.status,
        "size": len(dump_json(ran.result)) if nbytes is None else nbytes,
    }
    full = {**shared, "subject": told["namespace"], "logs": list(ran.logs), "response": response}
    return {**shared, "statusCode": STATUS_CODES.get(ran.status, 3)}, full


def event_records(activation_id: str, told: Mapping[str, Any], logs: list[str]) -> Records:
    """The same of a trigger that was fired: it never ends, and its logs say what became of its rules."""
    shared = _shared(activation_id, told, told["start"]) | {"annotations": []}
    response = {"result": told["result"], "success": True, "status": SUCCESS}
    return shared, {**shared, "subject": told["namespace"], "logs": logs, "response": response}


def limits_body(limits: Limits) -> dict[str, int]:
    """Limits under the API's names."""
    return {
        "timeout": limits.timeout_ms,
        "memory": limits.memory_mb,
        "logs": limits.logs_mb,
        "concurrency": limits.concurrency,
    }


def _shared(activation_id: str, told: Mapping[str, Any], start_ms: int) -> dict[str, Any]:
    cause = {"cause": told["cause"]} if told.get("cause") else {}
    return {
        "namespace": told["namespace"],
        "name": told["name"],
        "version": told["version"],
        "activationId": activation_id,
        "start": start_ms,
        "publish": False,
    } | cause


def _annotations(told: Mapping[str, Any], ran: Ran) -> list[dict[str, Any]]:
    sequence = told["kind"] == SEQUENCE
    values = {
        "path": told.get("path", f"{told['namespace']}/{told['name']}"),
        "waitTime": ran.wait_ms,
        "kind": told["kind"],
        **({"topmost": not told.get("cause")} if sequence else {"timeout": ran.timed_out}),
        "limits": told["limits"],
        "initTime": ran.init_ms,
        "causedBy": SEQUENCE if told.get("cause") else None,
        "binding": told.get("binding") or None,
    }
    return [{"key": key, "value": value} for key, value in values.items() if value is not None]


def _is_error(result: object) -> bool:
    return isinstance(result, dict) and "error" in result


def _with(ran: Ran, status: str, error: object) -> Ran:
    try:
        small = len(dump_json(error)) <= RESULT_MAX_BYTES
    except (ValueError, TypeError, RecursionError):
        small = False
    return replace(ran, status=status, result={"error": error if small else "The error cannot be shown."})
