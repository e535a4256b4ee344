"""Who may run now: memory budget, warm reuse, eviction of the least recently used, a bounded FIFO queue."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from fedkeeper.fabric.model import PoolFull, Revision
from fedkeeper.fabric.worker import Worker


@dataclass(frozen=True, slots=True)
class Permit:
    """Use `worker` (its call is already counted); or, if None, end `evicted` and start one."""

    worker: Worker | None
    evicted: tuple[Worker, ...] = ()


class Admission:
    """Keeps count of workers and memory. Nothing here waits, except callers in the queue."""

    def __init__(self, memory_mb: int, queue_max: int) -> None:
        self.memory_mb = memory_mb
        self.used_mb = 0  # of workers and of those being started
        self.workers: list[Worker] = []
        self._queue_max = queue_max
        self._queue: deque[tuple[Revision, asyncio.Future[Permit]]] = deque()

    @property
    def queued(self) -> int:
        """Callers that wait."""
        return len(self._queue)

    async def admit(self, revision: Revision) -> Permit:
        """Wait for a permit, first come, first served. Raises PoolFull when the queue is at its bound."""
        permit: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        ticket = (revision, permit)
        self._queue.append(ticket)
        self.dispatch()
        if not permit.done() and len(self._queue) > self._queue_max:
            self._queue.remove(ticket)
            raise PoolFull(f"{self._queue_max} activations are waiting already")
        return await permit

    def dispatch(self) -> None:
        """Give permits to the head of the queue for as long as it can be served.

        Strictly in order: to let others overtake a big one that waits for memory could starve it.
        """
        while self._queue:
            revision, waiting = self._queue[0]
            if not waiting.done():
                permit = self._place(revision)
                if permit is None:
                    return
                waiting.set_result(permit)
            self._queue.popleft()

    def started(self, worker: Worker) -> None:
        """A permit has become a worker, with one call counted."""
        worker.active = 1
        self.workers.append(worker)

    def not_started(self, revision: Revision) -> None:
        """A permit to start has come to nothing."""
        self.used_mb -= self._charge(revision)
        self.dispatch()

    def release(self, worker: Worker) -> None:
        """A call has ended."""
        worker.active -= 1
        if worker.active == 0:
            worker.idle_since = asyncio.get_running_loop().time()
        self.dispatch()

    def gone(self, worker: Worker) -> None:
        """A worker has ended (harmless if it was taken out before)."""
        if worker in self.workers:
            self._take_out(worker)
            self.dispatch()

    def close(self) -> None:
        """Turn all waiting callers away."""
        while self._queue:
            _, waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_exception(PoolFull("the platform is shutting down"))

    def instances(self, revision_id: str) -> tuple[int, int]:
        """How many workers of a revision live, and how many more calls they could take."""
        mine = self._serving(revision_id)
        return len(mine), sum(_slots(worker.revision) - worker.active for worker in mine)

    def _serving(self, revision_id: str) -> list[Worker]:
        return [
            worker
            for worker in self.workers
            if worker.revision.id == revision_id and worker.alive and not worker.retired
        ]

    def _place(self, revision: Revision) -> Permit | None:
        slots = _slots(revision)
        free = [worker for worker in self._serving(revision.id) if worker.active < slots]
        if free:  # the one used last: its pages are warm, and the others may expire
            chosen = max(free, key=lambda worker: (worker.active, worker.idle_since))
            chosen.active += 1
            return Permit(chosen)
        charge = self._charge(revision)
        idle = sorted((w for w in self.workers if w.active == 0), key=lambda worker: worker.idle_since)
        evicted: list[Worker] = []
        left = self.memory_mb - self.used_mb
        while left < charge:
            if not idle:
                return None
            evicted.append(idle.pop(0))
            left += self._charge(evicted[-1].revision)
        for worker in evicted:
            self._take_out(worker)
        self.used_mb += charge
        return Permit(None, tuple(evicted))

    def _take_out(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.used_mb -= self._charge(worker.revision)

    def _charge(self, revision: Revision) -> int:
        # One that asks for more than there is runs alone instead of never.
        return min(revision.limits.memory_mb, self.memory_mb)


def _slots(revision: Revision) -> int:
    """Calls at once on one worker: an OpenWhisk runtime takes one."""
    return revision.limits.concurrency if revision.flavour == "google" else 1
