"""What an activation's end means in OpenWhisk's terms and words (Messages.scala, ActivationResult.scala)."""

from __future__ import annotations

import os
from typing import Any

from fedkeeper.fabric.bodies import BodyMalformed, parse_json
from fedkeeper.fabric.model import Limits
from fedkeeper.fabric.worker import WorkerDied, how_it_ended

SUCCESS = "success"
APPLICATION_ERROR = "application error"
DEVELOPER_ERROR = "action developer error"
INTERNAL_ERROR = "whisk internal error"
RESULT_BYTES_MAX = 1 << 20
MEMORY_EXHAUSTED = "The action exhausted its memory and was aborted."
NOT_A_DICTIONARY = "The action did not return a dictionary or array."
Verdict = tuple[str, Any]  # status, result


def of_result(head: dict[str, Any], body: bytes) -> Verdict:
    """The verdict on what an OpenWhisk action returned."""
    if not head.get("ok"):
        return DEVELOPER_ERROR, {"error": str(head.get("error"))}
    if "bytes" in head:
        text = body.decode(errors="replace")
        problem = (
            f"The action produced a response that exceeded the allowed length: {head['bytes']} > "
            f"{RESULT_BYTES_MAX} bytes. The truncated response was: {text}"
        )
        return APPLICATION_ERROR, {"error": problem}
    try:
        result = parse_json(body)
    except BodyMalformed:
        return DEVELOPER_ERROR, {"error": NOT_A_DICTIONARY}
    if result is None:
        words = "The action did not produce a valid JSON or JSON Array response: null"
        return DEVELOPER_ERROR, {"error": words}
    if not isinstance(result, (dict, list)):
        return DEVELOPER_ERROR, {"error": NOT_A_DICTIONARY}
    if isinstance(result, dict) and "error" in result:
        return APPLICATION_ERROR, {"error": result["error"]}
    return SUCCESS, result


def of_death(died: WorkerDied, limits: Limits, *, initialising: bool) -> Verdict:
    """The verdict on an activation whose worker ended before it answered."""
    match died.fault:
        case "deadline":
            phase = " during initialization" if initialising else ""
            words = f"The action exceeded its time limits of {limits.timeout_ms} milliseconds{phase}."
        case "memory":
            words = MEMORY_EXHAUSTED
        case "closing":
            return INTERNAL_ERROR, {"error": "The platform was shut down while the action was running."}
        case "":
            words = _exit_words(died.status, initialising=initialising)
        case other:
            words = f"The action {other} and was aborted."
    return DEVELOPER_ERROR, {"error": words}


def _exit_words(status: int | None, *, initialising: bool) -> str:
    if status is not None and os.WIFEXITED(status):
        return "Cannot start action. Check logs for details." if initialising else "command exited"
    what = "initialize" if initialising else "produce a valid response"
    return f"The action did not {what} and exited unexpectedly: {how_it_ended(status)}."
