"""One request to a Cloud Function, and the start of an instance at deployment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import verdict
from fedkeeper.fabric.calling import Leases, completed, not_run, now_ms, open_log
from fedkeeper.fabric.google_instances import Gates
from fedkeeper.fabric.model import HttpRequest, HttpResponse, Ran, Revision
from fedkeeper.fabric.output import ActivationLog
from fedkeeper.fabric.verdict import APPLICATION_ERROR, DEVELOPER_ERROR, MEMORY_EXHAUSTED, SUCCESS
from fedkeeper.fabric.worker import Answer, Worker, WorkerDied

INSTANCE_START_S_MAX = 120.0
REQUEST_BYTES_MAX = 32 << 20
WHY_LINES = 12
NOT_STARTED = "The function did not start: see its logs."
TIMED_OUT = "upstream request timeout"
LOST = "The request failed because the connection to the instance had an error."


async def serve(leases: Leases, gates: Gates, revision: Revision, request: HttpRequest) -> HttpResponse:
    """Pass a request to an instance. Raises PoolFull, also when no instance had room in time.

    413 above 32 MiB; 500 for an exception (`X-Google-Status: crash`, by the functions framework), a death or
    a load that failed; 504 at the time limit. Then the instance is killed, with the other requests on it: the
    real platform lets it go on, and its work then disturbs the next request.
    """
    accepted_ms = now_ms()
    if len(request.body) > REQUEST_BYTES_MAX:
        problem = f"request of {len(request.body)} bytes, {REQUEST_BYTES_MAX} are allowed"
        return _plain(413, problem, not_run(accepted_ms, problem))
    async with gates.enter(revision) as arrived:
        try:
            worker, cold = await leases.lease(revision)
        except ServiceError as exc:
            return _plain(500, str(exc), not_run(accepted_ms, str(exc)))
        if not cold:
            arrived()
        return await _serve(leases, worker, request, accepted_ms, started=arrived, cold=cold)


async def _serve(
    leases: Leases,
    worker: Worker,
    request: HttpRequest,
    accepted_ms: int,
    *,
    started: Callable[[], None],
    cold: bool,
) -> HttpResponse:
    start_ms, init_ms = now_ms(), None
    status, result, timed_out, spoilt = DEVELOPER_ERROR, {"error": NOT_STARTED}, False, True
    log = open_log(worker)
    answer: Answer = {"status": 500, "headers": {}}, NOT_STARTED.encode()
    try:
        loaded = not cold or await _start(worker, log)
        init_ms = now_ms() - start_ms if cold else None
        started()
        if loaded:
            answer = await _pass(worker, request, log)
            status, result = _judge(answer)
            spoilt = False
    except WorkerDied as died:
        starting = cold and init_ms is None
        timed_out = died.fault == "deadline" and not starting
        code, words = _end_of(died, timed_out=timed_out)
        answer, result = ({"status": code, "headers": {}}, words.encode()), {"error": words}
    end_ms = now_ms()
    worker.output.logs.remove(log)
    await leases.release(worker, spoilt=spoilt)
    ran = Ran(
        status=status,
        result=result,
        logs=log.lines(unexpected=status == DEVELOPER_ERROR),
        start_ms=start_ms,
        end_ms=end_ms,
        wait_ms=start_ms - accepted_ms,
        init_ms=init_ms,
        timed_out=timed_out,
    )
    head, body = answer
    return HttpResponse(status=head["status"], headers=head["headers"], body=body, ran=ran)


async def check(leases: Leases, revision: Revision) -> str:
    """Start an instance, which stays as a warm one: empty, or why it did not come up. PoolFull."""
    try:
        worker, cold = await leases.lease(revision)
    except ServiceError as exc:
        return str(exc)
    log = open_log(worker)
    problem = ""
    try:
        if cold and not await _start(worker, log):
            problem = "the function does not load"
    except WorkerDied as died:
        _, result = verdict.of_death(died, revision.limits, initialising=True)
        slow = f"it was not ready after {INSTANCE_START_S_MAX:.0f} s"
        problem = slow if died.fault == "deadline" else result["error"]
    worker.output.logs.remove(log)
    await leases.release(worker, spoilt=bool(problem))
    if not problem:
        return ""
    why = [line.partition(" stderr: ")[2] for line in log.lines() if " stderr: " in line[:40]]
    return "\n".join([*why[-WHY_LINES:], problem])


async def _start(worker: Worker, log: ActivationLog) -> bool:
    """Have the instance import main.py; the log goes on."""
    head, _ = await worker.call({"kind": "init", "marker": log.marker}, b"", INSTANCE_START_S_MAX)
    await completed(log)
    log.reopen()
    return bool(head["ok"])


async def _pass(worker: Worker, request: HttpRequest, log: ActivationLog) -> Answer:
    head = {
        "kind": "request",
        "marker": log.marker,
        "method": request.method,
        "path": request.path,
        "headers": dict(request.headers),
    }
    answer = await worker.call(head, request.body, worker.revision.limits.timeout_ms / 1000)
    await completed(log)
    return answer


def _judge(answer: Answer) -> tuple[str, Any]:
    head, body = answer
    headers = {name.lower(): value for name, value in head["headers"].items()}
    if headers.get("x-google-status"):
        return APPLICATION_ERROR, {"error": body[:1024].decode(errors="replace")}
    return SUCCESS, {"status": head["status"]}


def _end_of(died: WorkerDied, *, timed_out: bool) -> tuple[int, str]:
    if timed_out:
        return 504, TIMED_OUT
    if died.fault == "memory":
        return 500, MEMORY_EXHAUSTED
    if died.fault == "closing":
        return 503, "The platform was shut down."
    return 500, f"{LOST} It {died}."


def _plain(status: int, text: str, ran: Ran) -> HttpResponse:
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    return HttpResponse(status=status, headers=headers, body=text.encode(), ran=ran)
