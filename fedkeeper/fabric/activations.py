"""Running OpenWhisk activations: accepted, run to their end whoever still listens, and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from fedkeeper.fabric.bodies import MEGABYTE, dump_json
from fedkeeper.fabric.model import Limits, PoolFull, Ran, Revision, Workers
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Store

log = structlog.get_logger(__name__)

RESULT_MAX_BYTES: Final = MEGABYTE
SUCCESS: Final = "success"
APPLICATION_ERROR: Final = "application error"
DEVELOPER_ERROR: Final = "action developer error"
INTERNAL_ERROR: Final = "whisk internal error"
STATUS_CODES: Final = {SUCCESS: 0, APPLICATION_ERROR: 1, DEVELOPER_ERROR: 2, INTERNAL_ERROR: 3}
_INVALID: Final = "The action did not return a dictionary or array."


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One invocation, accepted."""

    namespace: str
    action: str
    version: str
    kind: str
    revision: Revision
    arguments: Mapping[str, Any]
    transaction_id: str
    api_key: str = ""  # given to the action only if it asks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An activation that was accepted; `ended` gives its full record and is never cancelled by waiting."""

    id: str
    ended: asyncio.Task[dict[str, Any]]


class InFlight:
    """How many requests, of both APIs, are in workers or waiting for one. Bounded: over it is 429."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self.allowed:
            raise PoolFull(f"{self.count} requests are in flight")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class Activations:
    """Starts activations and sees to it that each leaves a record."""

    def __init__(self, store: Store, workers: Workers, revisions: Revisions, in_flight: InFlight) -> None:
        self._store = store
        self._workers = workers
        self._revisions = revisions
        self._in_flight = in_flight
        self._running: set[asyncio.Task[dict[str, Any]]] = set()

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._running)

    async def start(self, call: Call) -> Activation:
        """Accept `call`; it is on disk when this returns. Raises PoolFull, with nothing begun."""
        activation_id = uuid.uuid4().hex
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held = contextlib.ExitStack()  # taken here, not in the task: nothing may come in between
        held.enter_context(self._in_flight)
        held.enter_context(self._revisions.use(call.revision.id))
        task = asyncio.create_task(self._perform(activation_id, call, started), name=activation_id)
        self._running.add(task)
        held.callback(self._running.discard, task)
        held.callback(_report, task)
        task.add_done_callback(lambda _: held.close())
        both: set[asyncio.Future[Any]] = {task, started}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            task.result()  # raises what kept it from being accepted
        return Activation(id=activation_id, ended=task)

    async def recover(self) -> None:
        """Give a record to the activations that were running when a fabric before us died."""
        now = _now_ms()
        for activation_id, told in await self._store.interrupted():
            reason = "The fabric was stopped while the action was running."
            ran = Ran(
                status=INTERNAL_ERROR,
                result={"error": reason},
                logs=(),
                start_ms=told["start"],
                end_ms=max(now, told["start"]),
                wait_ms=0,
                init_ms=None,
            )
            await self._write(activation_id, {**told, "start": ran.start_ms}, ran)

    async def close(self) -> None:
        """Give up what still runs: each is recorded as an internal error."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _perform(self, activation_id: str, call: Call, started: asyncio.Future[None]) -> dict[str, Any]:
        accepted_ms = _now_ms()
        told = _told(call, accepted_ms)
        await self._store.begin(activation_id, call.namespace, call.action, accepted_ms, told)
        started.set_result(None)
        ran = await self._run(activation_id, call, accepted_ms)
        return await self._write(activation_id, told, checked(ran))

    async def _run(self, activation_id: str, call: Call, accepted_ms: int) -> Ran:
        context = {
            "namespace": call.namespace,
            "action_name": call.revision.name,
            "action_version": call.version,
            "transaction_id": call.transaction_id,
            "deadline": str(accepted_ms + call.revision.limits.timeout_ms),
        }
        if call.api_key:
            context["api_key"] = call.api_key
        try:
            return await self._workers.run(call.revision, activation_id, call.arguments, context)
        except asyncio.CancelledError:
            reason = "The fabric was stopped while the action was running."
        except PoolFull:
            reason = "No worker was free and the queue is full."
        except Exception as exc:  # noqa: BLE001 - a fault of the pool must end as a record, not as a lost id
            log.error("activation failed inside the fabric", activation=activation_id, error=repr(exc))
            reason = "The fabric could not run the action."
        return Ran(
            status=INTERNAL_ERROR, result={"error": reason}, logs=(), start_ms=accepted_ms,
            end_ms=_now_ms(), wait_ms=0, init_ms=None,
        )  # fmt: skip

    async def _write(self, activation_id: str, told: Mapping[str, Any], ran: Ran) -> dict[str, Any]:
        summary, record = records(activation_id, told, ran)
        await self._store.end(activation_id, ran.start_ms, summary, record)
        return record


def checked(ran: Ran) -> Ran:
    """`ran`, if the platform would take its result; else the error that it answers instead."""
    if ran.status != SUCCESS and not (ran.status == APPLICATION_ERROR and _is_error(ran.result)):
        error = ran.result.get("error") if isinstance(ran.result, dict) else None
        return _with(ran, ran.status, error or "The action failed.")
    try:
        nbytes = len(dump_json(ran.result))
    except (ValueError, TypeError, RecursionError):
        return _with(ran, DEVELOPER_ERROR, _INVALID)
    if nbytes > RESULT_MAX_BYTES:
        problem = "The action produced a response that exceeded the allowed length"
        return _with(ran, APPLICATION_ERROR, f"{problem}: {nbytes} > {RESULT_MAX_BYTES} bytes.")
    if _is_error(ran.result):
        return _with(ran, APPLICATION_ERROR, ran.result["error"])
    if not isinstance(ran.result, (dict, list)):
        return _with(ran, DEVELOPER_ERROR, _INVALID)
    return ran


def records(activation_id: str, told: Mapping[str, Any], ran: Ran) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary and the full record of an activation, as the API gives them."""
    annotations = [
        {"key": "path", "value": f"{told['namespace']}/{told['name']}"},
        {"key": "waitTime", "value": ran.wait_ms},
        {"key": "kind", "value": told["kind"]},
        {"key": "timeout", "value": ran.timed_out},
        {"key": "limits", "value": told["limits"]},
    ]
    if ran.init_ms is not None:
        annotations.append({"key": "initTime", "value": ran.init_ms})
    shared = {
        "namespace": told["namespace"],
        "name": told["name"],
        "version": told["version"],
        "activationId": activation_id,
        "start": ran.start_ms,
        "end": ran.end_ms,
        "duration": ran.end_ms - ran.start_ms,
        "publish": False,
        "annotations": annotations,
    }
    response = {
        "result": ran.result,
        "success": ran.status == SUCCESS,
        "status": ran.status,
        "size": len(dump_json(ran.result)),
    }
    full = {**shared, "subject": told["namespace"], "logs": list(ran.logs), "response": response}
    return {**shared, "statusCode": STATUS_CODES.get(ran.status, 3)}, full


def limits_body(limits: Limits) -> dict[str, int]:
    """Limits under the API's names."""
    return {
        "timeout": limits.timeout_ms,
        "memory": limits.memory_mb,
        "logs": limits.logs_mb,
        "concurrency": limits.concurrency,
    }


def _report(task: asyncio.Task[dict[str, Any]]) -> None:
    """An activation that could not be written (a full disk) may have nobody else to hear of it."""
    if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), PoolFull):
        log.error("activation not recorded", activation=task.get_name(), error=repr(task.exception()))


def _told(call: Call, start_ms: int) -> dict[str, Any]:
    return {
        "namespace": call.namespace,
        "name": call.action,
        "version": call.version,
        "kind": call.kind,
        "start": start_ms,
        "limits": limits_body(call.revision.limits),
    }


def _is_error(result: object) -> bool:
    return isinstance(result, dict) and "error" in result


def _with(ran: Ran, status: str, error: object) -> Ran:
    try:
        small = len(dump_json(error)) <= RESULT_MAX_BYTES
    except (ValueError, TypeError, RecursionError):
        small = False
    return replace(ran, status=status, result={"error": error if small else "The error cannot be shown."})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
