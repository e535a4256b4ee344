"""The pool of worker processes behind both APIs: `Workers` with real processes.

Sessions, rlimits, measured memory and deadlines contain the faults of functions, not a hostile author:
workers run as the same user as the pool. That needs containers or virtual machines.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import google_calls, openwhisk_calls
from fedkeeper.fabric.admission import Admission
from fedkeeper.fabric.ahead import Expected
from fedkeeper.fabric.cgroups import Cgroups
from fedkeeper.fabric.google_instances import PENDING_S, Gates
from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.model import HttpRequest, HttpResponse, Ran, Revision
from fedkeeper.fabric.preload import Zygote, base_environment, find_node, preload_for
from fedkeeper.fabric.worker import PROCESSES_MAX, Quarters, Worker

T = TypeVar("T")
WATCH_S = 0.25
IDLE_LOOKS = 8  # of which one is at the idle workers as well: they do nothing, or should not
START_TRIES = 3  # of a worker, each from another zygote
CLOSE_S_MAX = 2.0
ENDS = ("idle", "evicted", "retired", "closing", "spoilt")  # those that are nobody's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """See `Pool.open`."""

    memory_mb: int
    queue_max: int
    idle_s: float
    busy_max: int
    spares: int
    disk_mb: int
    processes_max: int
    pending_s: float


class Pool:
    """Workers by revision. Opened by `open`; everything it started ends with it, or with this process."""

    def __init__(self, folder: Path, bounds: Bounds, cgroups: Cgroups, python: str, node: str) -> None:
        self._folder = folder
        self._workers = folder.absolute() / "workers"  # their directories
        self._bounds = bounds
        self._cgroups = cgroups
        self._python = python
        self._node = node
        self._admission = Admission(bounds.memory_mb, bounds.queue_max, bounds.busy_max)
        self._expected = Expected(
            self._admission,
            self._start_ahead,
            at_once=len(os.sched_getaffinity(0)),
            each_max=bounds.busy_max,
            idle_s=bounds.idle_s,
        )
        self._gates = Gates(self._admission.instances, pending_s=bounds.pending_s)
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._numbers = itertools.count(1)
        self._counts = {"cold": 0, "warm": 0, "ahead": 0, "killed": 0}
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        *,
        memory_mb: int,
        queue_max: int,
        idle_s: float,
        busy_max: int = 100,
        spares: int = 1,
        disk_mb: int = 512,
        processes_max: int = PROCESSES_MAX,
        control_groups: bool = True,
        pending_s: float = PENDING_S,
        python: str = sys.executable,
        node: str = "",
    ) -> AsyncIterator[Pool]:
        """A pool that keeps its workers' directories and its zygotes' logs in `folder`.

        `memory_mb`: sum of the limits of all workers; `queue_max`: callers that may wait for a worker;
        `idle_s`: seconds after which a warm worker ends; `busy_max`: workers of one action, or of those that
        share theirs, at once; `spares`: processes that each zygote keeps ready; `disk_mb`: what a worker may
        have on disk; `processes_max`: a worker and all that descends from it; `control_groups`: have the
        kernel hold memory and processes where it lets us, else they are only measured; `pending_s`: seconds
        that a request waits for an instance when its function has as many as it may (PoolFull then);
        `python`: interpreter of the functions, which find in it what their requirements.txt names; `node`:
        program of the node actions, the first that is found if empty. Open it on the thread that lives as
        long as the pool: the kernel ends the zygotes with that thread.
        """
        bounds = Bounds(
            memory_mb=memory_mb,
            queue_max=queue_max,
            idle_s=idle_s,
            busy_max=busy_max,
            spares=spares,
            disk_mb=disk_mb,
            processes_max=processes_max,
            pending_s=pending_s,
        )
        await asyncio.to_thread(_lay_out, folder)
        cgroups = await asyncio.to_thread(Cgroups.open, folder) if control_groups else Cgroups({})
        pool = cls(folder, bounds, cgroups, python, node)
        watching = asyncio.create_task(pool._watch(), name="pool watch")
        try:
            yield pool
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await pool.close()

    async def run(
        self, revision: Revision, activation_id: str, arguments: Any, context: Mapping[str, str]
    ) -> Ran:
        """Run one OpenWhisk activation to its end (bounded by its time limit). PoolFull."""
        if revision.ahead:
            self._expected.expect(revision)
        about = {**context, "activation_id": activation_id}
        return await self._own(openwhisk_calls.run(self, revision, arguments, about))

    async def serve(self, revision: Revision, request: HttpRequest) -> HttpResponse:
        """Pass one HTTP request to an instance of a Cloud Function (504 at its time limit). PoolFull."""
        return await self._own(google_calls.serve(self, self._gates, revision, request))

    async def check(self, revision: Revision) -> str:
        """Start one instance of a Cloud Function: empty if it comes up, else why it failed. PoolFull."""
        return await self._own(google_calls.check(self, revision))

    async def prepare(self, folder: Path) -> None:
        """Start the zygote that the function in `folder` needs, ahead of its first invocation."""
        await self._own(self._zygote(preload_for(folder)))

    def expect(self, revision: Revision) -> None:
        """Have a worker ready for a revision that asks for one, in the background, if memory is free."""
        self._expected.expect(revision)
        self._expected.fill()

    async def retire(self, revision_id: str, *, wait: bool = False) -> None:
        """End idle workers made of a revision that was updated or deleted; busy ones after their activation.

        `wait`: return when those have ended too, so that nobody uses the revision's files any more.
        """
        self._expected.forget(revision_id)
        if wait:
            await self._expected.settled(revision_id)
        mine = [worker for worker in self._admission.workers if worker.revision.id == revision_id]
        for worker in mine:
            worker.retired = True
        await asyncio.gather(*(worker.end("retired") for worker in mine if worker.active == 0))
        if wait:
            await asyncio.gather(*(worker.ended.wait() for worker in mine))

    def stats(self) -> Mapping[str, int]:
        """workers, busy, idle, spare, queued, memory_mb, cold, warm, ahead, killed."""
        workers = self._admission.workers
        busy = sum(worker.active > 0 for worker in workers)
        return {
            "workers": len(workers),
            "busy": busy,
            "idle": len(workers) - busy,
            "spare": sum(zygote.spares for zygote in self._zygotes.values()),
            "queued": self._admission.queued,
            "memory_mb": self._admission.used_mb,
            **self._counts,
        }

    async def close(self) -> None:
        """Kill every worker and its descendants, and the zygotes."""
        self._closed = True
        await self._expected.close()
        self._admission.close()
        await asyncio.gather(*(worker.end("closing") for worker in list(self._admission.workers)))
        for zygote in self._zygotes.values():
            await zygote.close()
        if self._tasks:  # they see their workers' ends; one that waits for a zygote's imports does not
            await asyncio.wait(self._tasks, timeout=CLOSE_S_MAX)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._cgroups.close)
        await asyncio.to_thread(shutil.rmtree, self._workers, ignore_errors=True)

    async def _own(self, work: Awaitable[T]) -> T:
        """Await `work` as a task of the pool: it goes on when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._keep(task)
        return await asyncio.shield(task)

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _zygote(self, preload: str) -> Zygote:
        async with self._starting.setdefault(preload, asyncio.Lock()):
            zygote = self._zygotes.get(preload)
            if zygote is None or zygote.broken:
                if zygote is not None:
                    await zygote.close()
                if self._closed:
                    raise ServiceError("the pool is closed")
                zygote = self._zygotes[preload] = await Zygote.start(
                    preload, self._folder, self._python, self._cgroups.roots, workers=self._workers
                )
                zygote.spares_max = self._bounds.spares
                zygote.fill()
            return zygote

    async def lease(self, revision: Revision) -> tuple[Worker, bool]:
        """A worker to make one call of (`release` it afterwards), and whether it is new and bare."""
        permit = await self._admission.admit(revision)
        if permit.worker is not None:
            self._counts["warm"] += 1
            return permit.worker, False
        try:
            await asyncio.gather(*(worker.end("evicted") for worker in permit.evicted))
            worker = await self._start(revision)
        except BaseException:
            self._admission.not_started(revision)
            raise
        self._counts["cold"] += 1
        await self._count_in(worker)
        return worker, True

    async def _count_in(self, worker: Worker) -> None:
        self._admission.started(worker)
        if not worker.alive:  # ended before it was counted
            self._admission.gone(worker)
        if self._closed:
            await worker.end("closing")

    async def _start_ahead(self, revision: Revision) -> bool:
        """Make a worker that waits for its first call, as granted; False: it does not load."""
        try:
            worker = await self._start(revision)
        except BaseException:
            self._admission.ready(revision.key)
            self._admission.not_started(revision)
            raise
        spoilt = True
        try:
            await self._count_in(worker)
            worker.retired |= not self._expected.knows(revision)  # updated or deleted meanwhile
            spoilt = bool(await openwhisk_calls.load(worker))
        finally:
            self._admission.ready(revision.key)
            await self.release(worker, spoilt=spoilt)
        self._counts["ahead"] += not spoilt
        return not spoilt

    async def _start(self, revision: Revision) -> Worker:
        node = find_node(self._node) if revision.kind.startswith("nodejs:") else ""
        preload = "bare" if node else preload_for(Path(revision.folder))
        for tries_left in range(START_TRIES - 1, -1, -1):
            zygote = await self._zygote(preload)
            try:
                return await self._start_from(zygote, revision, node)
            except ServiceError:
                # A zygote that was killed shows it when it is asked. Nothing of the function has run.
                if not zygote.broken or self._closed or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _start_from(self, zygote: Zygote, revision: Revision, node: str) -> Worker:
        name = f"{zygote.mark}-w{next(self._numbers)}"
        limits = revision.limits
        quarters = Quarters(
            folder=self._workers / name,
            disk_mb=self._bounds.disk_mb,
            processes_max=self._bounds.processes_max,
            group=self._cgroups.make(
                name, memory_mb=limits.memory_mb, processes_max=self._bounds.processes_max
            ),
        )
        environment = {**base_environment(quarters.folder), **_instance_environment(revision)}
        try:
            os.mkdir(quarters.folder, 0o700)  # noqa: PTH102 - one entry: not worth a thread
            return await Worker.start(revision, zygote, quarters, environment, self._ended, node=node)
        except BaseException:
            await asyncio.to_thread(quarters.remove)
            raise

    async def release(self, worker: Worker, *, spoilt: bool) -> None:
        """Give a leased worker back; `spoilt`: it must not serve another call."""
        if spoilt or (worker.retired and worker.active == 1):
            await worker.end("spoilt")
        self._admission.release(worker)

    def _ended(self, worker: Worker) -> None:
        if worker.fault not in ENDS:
            self._counts["killed"] += 1
        if worker.ending is not None:
            self._keep(worker.ending)  # it still has to remove its directory
        if worker.zygote.broken:
            self._keep(asyncio.ensure_future(worker.zygote.close()))
        self._admission.gone(worker)

    def _expired(self, worker: Worker, now: float) -> bool:
        """An expected worker may have nothing to do for as long as the rest of its round takes."""
        unused = worker.active == 0 and now - worker.idle_since > self._bounds.idle_s
        return unused and (not worker.revision.ahead or self._expected.idle())

    async def _watch(self) -> None:
        """Measure the workers, and end those that hold too much or have been idle too long."""
        for look in itertools.count():
            await asyncio.sleep(WATCH_S)
            self._expected.fill()  # in place of those that have ended, as soon as memory is free
            workers = [
                worker
                for worker in self._admission.workers
                if (worker.active or look % IDLE_LOOKS == 0) and worker.alive
            ]
            if not workers:
                continue
            if any(worker.active and worker.revision.ahead for worker in workers):
                self._expected.called()
            faults = await asyncio.to_thread(_faults, workers)
            now = asyncio.get_running_loop().time()
            for worker, fault in zip(workers, faults, strict=True):
                if fault:
                    worker.end(fault)
                elif self._expired(worker, now):
                    worker.end("idle")


def _faults(workers: list[Worker]) -> list[str]:
    """What each uses too much of, empty where it does not. Blocking."""
    table = processes.parents_below(worker.pid for worker in workers)
    return [worker.excess(table) for worker in workers]


def _lay_out(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(folder / "workers", ignore_errors=True)  # of a pool that was killed
    (folder / "workers").mkdir(mode=0o700, exist_ok=True)  # what ends this moment may still hold it


def _instance_environment(revision: Revision) -> dict[str, str]:
    """What a Cloud Functions instance is told when it starts; an OpenWhisk action is told by its init."""
    if revision.flavour == "openfaas":
        return dict(revision.environment)
    if revision.flavour != "google":
        return {}
    service = revision.name.rpartition("/")[2]
    return {
        "FUNCTION_TARGET": revision.entry,
        "FUNCTION_SIGNATURE_TYPE": "http",
        "K_SERVICE": service,
        "K_CONFIGURATION": service,
        "K_REVISION": revision.id,
        "PORT": "8080",
        **revision.environment,
    }
