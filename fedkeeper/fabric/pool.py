"""The pool of worker processes behind both APIs: `Workers` with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import verdict
from fedkeeper.fabric.admission import Admission
from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.model import HttpRequest, HttpResponse, Ran, Revision
from fedkeeper.fabric.output import ActivationLog
from fedkeeper.fabric.preload import Zygote, base_environment, preload_for
from fedkeeper.fabric.verdict import DEVELOPER_ERROR, INTERNAL_ERROR
from fedkeeper.fabric.worker import Worker, WorkerDied

T = TypeVar("T")
SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
LOGS_S_MAX = 2.0  # how long the end of a log is waited for when the result is there
WATCH_S = 0.25
INSTANCE_START_S_MAX = 120.0
WHY_LINES = 12


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Pool:
    """Workers by revision. Opened by `open`; everything it started ends with it, or with this process."""

    def __init__(self, folder: Path, *, memory_mb: int, queue_max: int, idle_s: float, python: str) -> None:
        self._folder = folder
        self._idle_s = idle_s
        self._python = python
        self._admission = Admission(memory_mb, queue_max)
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._numbers = itertools.count(1)
        self._counts = {"cold": 0, "warm": 0, "killed": 0}
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, *, memory_mb: int, queue_max: int, idle_s: float, python: str = sys.executable
    ) -> AsyncIterator[Pool]:
        """A pool that keeps its workers' directories and its zygotes' logs in `folder`.

        `memory_mb`: sum of the limits of all workers; `queue_max`: callers that may wait for memory;
        `idle_s`: seconds after which a warm worker ends; `python`: interpreter of the functions.
        """
        await asyncio.to_thread(_lay_out, folder)
        pool = cls(folder, memory_mb=memory_mb, queue_max=queue_max, idle_s=idle_s, python=python)
        watching = asyncio.create_task(pool._watch(), name="pool watch")
        try:
            yield pool
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await pool.close()

    async def run(
        self, revision: Revision, activation_id: str, arguments: Mapping[str, Any], context: Mapping[str, str]
    ) -> Ran:
        """Run one OpenWhisk activation to its end (bounded by its time limit). PoolFull."""
        about = {**context, "activation_id": activation_id}
        return await self._own(self._run(revision, arguments, about))

    async def serve(self, revision: Revision, request: HttpRequest) -> HttpResponse:
        """Pass one HTTP request to an instance of a Cloud Function (504 at its time limit). PoolFull.

        At the time limit the instance is killed, with the other requests on it: the real platform lets it
        go on, and its work then disturbs the next request.
        """
        raise NotImplementedError

    async def check(self, revision: Revision) -> str:
        """Start one instance of a Cloud Function: empty if it comes up, else why the build failed."""
        raise NotImplementedError

    async def prepare(self, folder: Path) -> None:
        """Start the zygote that the function in `folder` needs, ahead of its first invocation."""
        await self._own(self._zygote(preload_for(folder)))

    async def retire(self, revision_id: str) -> None:
        """End idle workers of a revision that was updated or deleted; busy ones after their activation."""
        mine = [worker for worker in self._admission.workers if worker.revision.id == revision_id]
        for worker in mine:
            worker.retired = True
        await asyncio.gather(*(worker.end("retired") for worker in mine if worker.active == 0))

    def stats(self) -> Mapping[str, int]:
        """workers, busy, idle, queued, memory_mb, cold, warm, killed."""
        workers = self._admission.workers
        busy = sum(worker.active > 0 for worker in workers)
        return {
            "workers": len(workers),
            "busy": busy,
            "idle": len(workers) - busy,
            "queued": self._admission.queued,
            "memory_mb": self._admission.used_mb,
            **self._counts,
        }

    async def close(self) -> None:
        """Kill every worker and its descendants, and the zygotes."""
        self._closed = True
        self._admission.close()
        await asyncio.gather(*(worker.end("closing") for worker in list(self._admission.workers)))
        for zygote in self._zygotes.values():
            await zygote.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._folder / "workers", ignore_errors=True)

    async def _own(self, work: Awaitable[T]) -> T:
        """Await `work` as a task of the pool: it goes on when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _zygote(self, preload: str) -> Zygote:
        async with self._starting.setdefault(preload, asyncio.Lock()):
            zygote = self._zygotes.get(preload)
            if zygote is None or zygote.broken:
                if zygote is not None:
                    await zygote.close()
                if self._closed:
                    raise ServiceError("the pool is closed")
                zygote = self._zygotes[preload] = await Zygote.start(preload, self._folder, self._python)
            return zygote

    async def _lease(self, revision: Revision) -> tuple[Worker, bool]:
        """A worker to make one call of (`release` it afterwards), and whether it is new and bare."""
        permit = await self._admission.admit(revision)
        if permit.worker is not None:
            self._counts["warm"] += 1
            return permit.worker, False
        try:
            await asyncio.gather(*(worker.end("evicted") for worker in permit.evicted))
            zygote = await self._zygote(preload_for(Path(revision.folder)))
            temporary = self._folder.resolve() / "workers" / f"w{next(self._numbers)}"
            environment = {**base_environment(temporary), **_platform_environment(revision)}
            worker = await Worker.start(revision, zygote, temporary, environment, self._ended)
        except BaseException:
            self._admission.not_started(revision)
            raise
        self._admission.started(worker)
        self._counts["cold"] += 1
        if not worker.alive:  # ended before it was counted
            self._admission.gone(worker)
        if self._closed:
            await worker.end("closing")
        return worker, True

    async def _release(self, worker: Worker, *, spoilt: bool) -> None:
        """Give a leased worker back; `spoilt`: it must not serve another call."""
        if spoilt or (worker.retired and worker.active == 1):
            await worker.end("spoilt")
        self._admission.release(worker)

    def _ended(self, worker: Worker) -> None:
        if worker.fault in ("", "deadline", "memory"):
            self._counts["killed"] += 1
        self._admission.gone(worker)

    async def _run(self, revision: Revision, arguments: Mapping[str, Any], context: dict[str, str]) -> Ran:
        accepted_ms = _now_ms()
        try:
            worker, cold = await self._lease(revision)
        except ServiceError as exc:
            return _failed(accepted_ms, str(exc))
        start_ms, init_ms, initialising = _now_ms(), None, cold
        log = ActivationLog(f"{SENTINEL}:{os.urandom(8).hex()}", revision.limits.logs_mb << 20)
        worker.output.logs.append(log)
        status, result, spoilt, timed_out = DEVELOPER_ERROR, None, True, False
        try:
            if cold:
                problem = await self._initialise(worker, context, log)
                init_ms = _now_ms() - start_ms
            if cold and problem:
                result = {"error": problem}
            else:
                initialising = False
                head, body = await _send(worker, "run", context, arguments, log)
                status, result = verdict.of_result(head, body)
                spoilt = status == DEVELOPER_ERROR
                await _complete(log)
        except WorkerDied as died:
            timed_out = died.fault == "deadline"
            status, result = verdict.of_death(died, revision.limits, initialising=initialising)
        end_ms = _now_ms()
        worker.output.logs.remove(log)
        await self._release(worker, spoilt=spoilt)
        return Ran(
            status=status,
            result=result,
            logs=log.lines(unexpected=status == DEVELOPER_ERROR),
            start_ms=start_ms,
            end_ms=end_ms,
            wait_ms=start_ms - accepted_ms,
            init_ms=init_ms,
            timed_out=timed_out,
        )

    async def _initialise(self, worker: Worker, context: dict[str, str], log: ActivationLog) -> str:
        """Have an OpenWhisk worker import its action: empty, or the platform's words for what failed."""
        revision = worker.revision
        request = {"main": revision.entry or "main", "env": dict(revision.environment)}
        head, _ = await _send(worker, "init", context, request, log)
        await _complete(log)
        log.reopen()
        return str(head["error"])

    async def _watch(self) -> None:
        """Measure the workers' memory, and end those that hold too much or have been idle too long."""
        while True:
            await asyncio.sleep(WATCH_S)
            workers = [worker for worker in self._admission.workers if worker.alive]
            if not workers:
                continue
            table = processes.parents()
            now = asyncio.get_running_loop().time()
            for worker in workers:
                if worker.memory_kb(table) > worker.revision.limits.memory_mb << 10:
                    self._soon(worker.end("memory"))
                elif worker.active == 0 and now - worker.idle_since > self._idle_s:
                    self._soon(worker.end("idle"))

    def _soon(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _send(
    worker: Worker, kind: str, context: dict[str, str], request: Mapping[str, Any], log: ActivationLog
) -> tuple[dict[str, Any], bytes]:
    """One /init or /run. The deadline starts now, whatever time was spent in the queue."""
    seconds = worker.revision.limits.timeout_ms / 1000
    about = {**context, "deadline": str(_now_ms() + worker.revision.limits.timeout_ms)}
    head = {"kind": kind, "marker": log.marker, "context": about}
    return await worker.call(head, json.dumps(request).encode(), seconds)


async def _complete(log: ActivationLog) -> None:
    """Wait until both streams have shown the marker; not for ever, a function may have closed them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOGS_S_MAX):
            await log.complete.wait()


def _lay_out(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(folder / "workers", ignore_errors=True)  # of a pool that was killed
    (folder / "workers").mkdir(mode=0o700)


def _platform_environment(revision: Revision) -> dict[str, str]:
    return {}


def _failed(accepted_ms: int, problem: str) -> Ran:
    """An activation for which there was no worker: the platform's own fault."""
    now = _now_ms()
    return Ran(
        status=INTERNAL_ERROR,
        result={"error": problem},
        logs=(),
        start_ms=now,
        end_ms=now,
        wait_ms=now - accepted_ms,
        init_ms=None,
    )
