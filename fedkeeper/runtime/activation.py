"""From a platform's request to one step of work and back: what all functions' adapters share.

An activation claims its key before it works, and publishes what became of it when all else is durable. So
a lost HTTP answer loses nothing, and a request that arrives twice is worked on once.
"""

from __future__ import annotations

import base64
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from fedkeeper.errors import FedKeeperError, TaskError
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.environment import CLIENTS_VARIABLE, STORE_VARIABLE, store_address
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.wire import Outcome, decode, encode

T = TypeVar("T")
Answer = dict[str, Any]  # JSON; {"error": reason} if the activation failed
HttpAnswer = tuple[bytes, int, dict[str, str]]

BINARY: Final = "application/octet-stream"
_REASON_MAX: Final = 500  # characters


def openwhisk(
    arguments: Mapping[str, Any], kind: type[T], step: Callable[[T, ObjectStore], object]
) -> Answer:
    """Run a step as an OpenWhisk action: its arguments are the task, {"error": ...} is a failure."""
    return perform(arguments, kind, step, activation_id=os.environ.get("__OW_ACTIVATION_ID", ""))


def openwhisk_blob(arguments: Mapping[str, Any], step: Callable[[bytes], bytes]) -> Answer:
    """Run a step on bytes, which come and go as {"blob": base64}; it has no key and needs no store."""
    try:
        body = base64.b64decode(str(arguments["blob"]), validate=True)
        return {"blob": base64.b64encode(step(body)).decode()}
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - a worker must outlive what users' models raise
        return {"error": _reason(exc)}


def google(request: Any, kind: type[T], step: Callable[[T, ObjectStore], object]) -> HttpAnswer:
    """Run a step as a Cloud Function, whose execution has the ID that came with the request."""
    return http(request, kind, step, activation_id=request.headers.get("Function-Execution-Id", ""))


def http(
    request: Any, kind: type[T], step: Callable[[T, ObjectStore], object], *, activation_id: str
) -> HttpAnswer:
    """Run a step as an HTTP function (Flask): the body is the task in JSON, a failure HTTP 500 with JSON."""
    try:
        arguments = msgspec.json.decode(request.get_data(), type=dict[str, Any])
    except msgspec.DecodeError as exc:
        return _http({"error": f"the request is not a JSON object: {exc}"})
    return _http(perform(arguments, kind, step, activation_id=activation_id))


def http_blob(request: Any, step: Callable[[bytes], bytes]) -> HttpAnswer:
    """Run a step on the body's bytes; it has no key and needs no store."""
    try:
        return step(request.get_data()), 200, {"Content-Type": BINARY}
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - as above
        return _http({"error": _reason(exc)})


def perform(
    plain: Mapping[str, Any],
    kind: type[T],
    step: Callable[[T, ObjectStore], object],
    *,
    activation_id: str,
    store: ObjectStore | None = None,
) -> Answer:
    """Claim the task's key, do the step, publish the outcome.

    Returns the encoded result; {"duplicate": true, "key": key} and nothing published if another
    activation holds the key; {"error": reason} if anything failed. `store`: the one that FEDKEEPER_STORE
    names if None; it stays open for the next activation of this process.
    """
    activation_id = activation_id or uuid.uuid4().hex
    claimed = False
    key = run = ""
    try:
        key, run = _key_and_run(plain, kind)
        store = store or open_store(store_address())
        if not store.claim(key, run=run, activation_id=activation_id):
            return {"duplicate": True, "key": key}
        claimed = True
        begun = time.perf_counter()
        result = encode(step(decode(kind, dict(plain)), store))
        print(_line(key, result, time.perf_counter() - begun))  # noqa: T201 - it is the activation's log
        store.publish(_outcome(key, run, activation_id, result=result))
        return result
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - the keeper must learn of whatever went wrong
        reason = _reason(exc)
    if claimed and store is not None:
        try:
            store.publish(_outcome(key, run, activation_id, reason=reason))
        except FedKeeperError as exc:
            reason = f"{reason}; nor could that be published: {_reason(exc)}"
    return {"error": reason}


def _key_and_run(plain: Mapping[str, Any], kind: type[Any]) -> tuple[str, str]:
    inner = plain.get("train", plain)  # a ForwardTask's key is that of the training it forwards
    found = [inner.get(name) if isinstance(inner, Mapping) else None for name in ("key", "run")]
    if not all(isinstance(text, str) and text for text in found):
        raise TaskError(f"the request is no {kind.__name__}: it has no key and run")
    return str(found[0]), str(found[1])


def _line(key: str, result: Answer, took_s: float) -> str:
    """What an activation says of itself in its platform's log: its numbers, not its hashes."""
    facts = {name: value for name, value in result.items() if isinstance(value, int | float)}
    facts |= {name: round(value, 3) for name, value in result.get("seconds", {}).items()}
    return " ".join([f"{key}: done in {took_s:.3f} s", *(f"{name}={facts[name]:g}" for name in facts)])


def _outcome(
    key: str, run: str, activation_id: str, *, result: Answer | None = None, reason: str = ""
) -> Outcome:
    return Outcome(
        key=key,
        run=run,
        ok=result is not None,
        result=result or {},
        reason=reason,
        activation_id=activation_id,
        at_ms=time.time_ns() // 1_000_000,
    )


def _reason(exc: BaseException) -> str:
    """One line: the error's class, message and hint. The traceback goes to the activation's log."""
    sys.stderr.write(_without_secrets("".join(traceback.format_exception(exc))))
    hint = f" ({exc.hint})" if isinstance(exc, FedKeeperError) and exc.hint else ""
    line = " ".join(f"{type(exc).__name__}: {exc}{hint}".split())
    return _without_secrets(line)[:_REASON_MAX]


def _without_secrets(text: str) -> str:
    """`text` with every secret blanked that this function was given."""
    for variable in (STORE_VARIABLE, CLIENTS_VARIABLE):
        try:
            known = msgspec.json.decode(os.environ.get(variable, "{}"))
        except msgspec.DecodeError:
            continue  # what cannot be read has not been used either
        for secret in _secrets(known):
            text = text.replace(secret, "***")
    return text


def _secrets(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    own = [value.get(name) for name in ("password", "auth", "private_key")]
    found = [secret for secret in own if isinstance(secret, str) and secret]
    found += [part for secret in found for part in secret.splitlines() if len(part) > 40]  # a PEM's lines
    found += [secret.partition(":")[2] for secret in found if len(secret.partition(":")[2]) > 8]  # uuid:key
    for inner in value.values():
        found += _secrets(inner)
    return found


def _http(answer: Answer) -> HttpAnswer:
    status = 500 if "error" in answer else 200
    return msgspec.json.encode(answer), status, {"Content-Type": "application/json"}
