"""One activation of an OpenWhisk action: /init if the worker is new, then /run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import structlog

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import verdict
from fedkeeper.fabric.calling import Leases, not_run, now_ms, open_log
from fedkeeper.fabric.model import Ran, Revision
from fedkeeper.fabric.verdict import DEVELOPER_ERROR
from fedkeeper.fabric.worker import Worker, WorkerDied

_log = structlog.get_logger(__name__)


async def run(leases: Leases, revision: Revision, arguments: Any, context: Mapping[str, str]) -> Ran:
    """Run it to its end. `context` becomes __OW_* in the action's environment. Raises PoolFull."""
    accepted_ms = now_ms()
    try:
        worker, cold = await leases.lease(revision)
    except ServiceError as exc:
        return not_run(accepted_ms, str(exc))
    start_ms, init_ms, initialising = now_ms(), None, cold
    status, result, timed_out, problem = DEVELOPER_ERROR, None, False, ""
    spoilt = True
    log = open_log(worker, marked=False)
    try:
        if cold:
            problem = await _initialise(worker, context)
            init_ms = now_ms() - start_ms
        initialising = False
        if problem:
            result = {"error": problem}
        else:
            head, body = await _send(worker, "run", context, arguments)
            status, result = verdict.of_result(head, body)
            spoilt = status == DEVELOPER_ERROR
    except WorkerDied as died:
        timed_out = died.fault == "deadline"
        status, result = verdict.of_death(died, revision.limits, initialising=initialising)
    finally:
        end_ms = now_ms()
        worker.output.logs.remove(log)
        await leases.release(worker, spoilt=spoilt)
    return Ran(
        status=status,
        result=result,
        logs=log.lines(unexpected=status == DEVELOPER_ERROR),
        start_ms=start_ms,
        end_ms=end_ms,
        wait_ms=start_ms - accepted_ms,
        init_ms=init_ms if init_ms is not None or not cold else end_ms - start_ms,
        timed_out=timed_out,
    )


async def load(worker: Worker) -> str:
    """Have a worker import its action before it is called: empty, or the platform's words for what failed."""
    namespace = worker.revision.name.split("/")[1]
    log = open_log(worker, marked=False)
    try:
        problem = await _initialise(worker, {"namespace": namespace, "action_name": worker.revision.name})
    except WorkerDied as died:
        problem = str(died)
    finally:
        worker.output.logs.remove(log)
    if lines := log.lines(unexpected=False):
        _log.info("said by a worker that was started ahead", function=worker.revision.name, lines=lines[-20:])
    return problem


async def _initialise(worker: Worker, context: Mapping[str, str]) -> str:
    """Have the worker import its action: empty, or the platform's words for what failed."""
    revision = worker.revision
    request = {"main": revision.entry or "main", "env": dict(revision.environment)}
    head, _ = await _send(worker, "init", context, request)
    return str(head.get("error", ""))


async def _send(
    worker: Worker, kind: str, context: Mapping[str, str], request: Any
) -> tuple[dict[str, Any], bytes]:
    """One /init or /run. The deadline starts now, whatever time was spent in the queue."""
    timeout_ms = worker.revision.limits.timeout_ms
    about = {**context, "deadline": str(now_ms() + timeout_ms)}
    answer = await worker.call(
        {"kind": kind, "context": about}, json.dumps(request).encode(), timeout_ms / 1000
    )
    worker.output.drain()  # what it wrote before it answered belongs to this call
    return answer
