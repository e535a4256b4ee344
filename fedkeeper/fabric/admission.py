"""Who may run now: memory budget, warm reuse, eviction, a bounded FIFO queue."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import Counter, deque
from dataclasses import dataclass

from fedkeeper.fabric.model import PoolFull, Revision
from fedkeeper.fabric.worker import Worker

IN_TURN_S = 60.0  # an expected worker that was idle for longer may be of a run that is over


@dataclass(frozen=True, slots=True)
class Permit:
    """Use `worker` (its call is already counted); or, if None, end `evicted` and start one."""

    worker: Worker | None
    evicted: tuple[Worker, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ticket:
    number: int  # order of arrival
    revision: Revision
    permit: asyncio.Future[Permit]


class Admission:
    """Keeps count of workers and memory. Nothing here waits, except callers in the queue.

    Callers of one key (what a worker is made from) are served in their order. Between keys, too, except
    that a key which has as many busy workers as it may does not hold up the others.
    """

    def __init__(self, memory_mb: int, queue_max: int, busy_max: int) -> None:
        self.memory_mb = memory_mb
        self.used_mb = 0  # of workers and of those being started
        self.workers: dict[Worker, None] = {}  # in the order of their starts
        self._queue_max = queue_max
        self._busy_max = busy_max  # workers of one key, of OpenWhisk actions
        self._by_key: dict[str, dict[Worker, None]] = {}
        self._starting: Counter[str] = Counter()
        self._ahead: Counter[str] = Counter()  # of those that start or load, without a caller, by key
        self._numbers = itertools.count()
        self._waiting: dict[str, deque[_Ticket]] = {}
        self._ready: list[tuple[int, str]] = []  # heap: first tickets of the keys that are not held back
        self._held: set[str] = set()  # keys with callers and with as many busy workers as they may have
        self.queued = 0  # callers that wait

    async def admit(self, revision: Revision) -> Permit:
        """Wait for a permit, first come, first served. Raises PoolFull when the queue is at its bound."""
        ticket = _Ticket(next(self._numbers), revision, asyncio.get_running_loop().create_future())
        tickets = self._waiting.setdefault(revision.key, deque())
        tickets.append(ticket)
        self.queued += 1
        if len(tickets) == 1:
            heapq.heappush(self._ready, (ticket.number, revision.key))
        self.dispatch()
        if not ticket.permit.done() and self.queued > self._queue_max:
            self._turn_away(ticket)
            raise PoolFull(f"{self._queue_max} activations are waiting already")
        return await ticket.permit

    def dispatch(self) -> None:
        """Give permits, oldest caller first, for as long as there is room.

        To let others overtake a big one that waits for memory could starve it.
        """
        while self._ready:
            _, key = self._ready[0]
            ticket = self._waiting[key][0]
            if not ticket.permit.done():
                revision = ticket.revision
                permit = self._warm(revision)
                if permit is None and (self._ahead[key] or self._busy(revision) >= self._bound(revision)):
                    heapq.heappop(self._ready)
                    self._held.add(key)
                    continue
                permit = permit or self._new(revision)
                if permit is None:
                    return
                ticket.permit.set_result(permit)
            self._serve_next(key)

    def ahead(self, revision: Revision) -> bool:
        """Take memory that is free for a worker that nobody has called yet, if no caller waits for memory.

        Until `ready` callers of its key wait for it, rather than have a second one started beside it.
        """
        charge = self._charge(revision)
        if self._ready or self.memory_mb - self.used_mb < charge:
            return False
        self.used_mb += charge
        self._starting[revision.key] += 1
        self._ahead[revision.key] += 1
        return True

    def ready(self, key: str) -> None:
        """A worker that was started ahead is released next, or has come to nothing: `not_started` is next."""
        self._ahead[key] -= 1
        if not self._ahead[key]:
            del self._ahead[key]

    def count(self, key: str) -> int:
        """Workers of a key, those being started included."""
        return len(self._by_key.get(key, ())) + self._starting[key]

    def started(self, worker: Worker) -> None:
        """A permit has become a worker, with one call counted."""
        worker.active = 1
        self._starting[worker.revision.key] -= 1
        self.workers[worker] = None
        self._by_key.setdefault(worker.revision.key, {})[worker] = None
        if _slots(worker.revision) > 1:
            self.dispatch()

    def not_started(self, revision: Revision) -> None:
        """A permit to start has come to nothing."""
        self._starting[revision.key] -= 1
        self.used_mb -= self._charge(revision)
        self._freed(revision.key)

    def release(self, worker: Worker) -> None:
        """A call has ended."""
        worker.active -= 1
        if worker.active == 0:
            worker.idle_since = asyncio.get_running_loop().time()
        self._freed(worker.revision.key)

    def gone(self, worker: Worker) -> None:
        """A worker has ended (harmless if it was taken out before)."""
        if worker in self.workers:
            self._take_out(worker)
            self._freed(worker.revision.key)

    def close(self) -> None:
        """Turn all waiting callers away."""
        for tickets in self._waiting.values():
            for ticket in tickets:
                if not ticket.permit.done():
                    ticket.permit.set_exception(PoolFull("the platform is shutting down"))
        self._waiting, self._ready, self._held, self.queued = {}, [], set(), 0

    def instances(self, revision_id: str) -> tuple[int, int]:
        """How many workers of a revision live, and how many more calls they could take."""
        mine = [
            worker
            for worker in self.workers
            if worker.revision.id == revision_id and worker.alive and not worker.retired
        ]
        return len(mine), sum(_slots(worker.revision) - worker.active for worker in mine)

    def _freed(self, key: str) -> None:
        """A worker of `key` has room, or has made room."""
        if key in self._held:
            self._held.discard(key)
            heapq.heappush(self._ready, (self._waiting[key][0].number, key))
        self.dispatch()

    def _serve_next(self, key: str) -> None:
        """The first caller of the key that is first has been served."""
        heapq.heappop(self._ready)
        tickets = self._waiting[key]
        tickets.popleft()
        self.queued -= 1
        if tickets:
            heapq.heappush(self._ready, (tickets[0].number, key))
        else:
            del self._waiting[key]

    def _turn_away(self, ticket: _Ticket) -> None:
        """Take the caller that came last out of the queue."""
        key = ticket.revision.key
        self._waiting[key].pop()
        self.queued -= 1
        if not self._waiting[key]:
            del self._waiting[key]
            self._held.discard(key)
            self._ready = [entry for entry in self._ready if entry[1] != key]
            heapq.heapify(self._ready)

    def _warm(self, revision: Revision) -> Permit | None:
        slots = _slots(revision)
        free = [
            worker
            for worker in self._by_key.get(revision.key, ())
            if worker.active < slots and not worker.retired
        ]
        # The one used last: its pages are warm, and the others may expire.
        for chosen in sorted(free, key=lambda worker: (worker.active, worker.idle_since), reverse=True):
            if chosen.alive:
                chosen.active += 1
                return Permit(chosen)
        return None

    def _new(self, revision: Revision) -> Permit | None:
        charge = self._charge(revision)
        left = self.memory_mb - self.used_mb
        evicted: list[Worker] = []
        if left < charge:
            for worker in sorted(self.workers, key=_dispensable):
                if worker.active == 0 and left < charge:
                    evicted.append(worker)
                    left += self._charge(worker.revision)
            if left < charge:
                return None
        for worker in evicted:
            self._take_out(worker)
        self.used_mb += charge
        self._starting[revision.key] += 1
        return Permit(None, tuple(evicted))

    def _busy(self, revision: Revision) -> int:
        busy = sum(worker.active > 0 for worker in self._by_key.get(revision.key, ()))
        return busy + self._starting[revision.key]

    def _bound(self, revision: Revision) -> float:
        """Busy workers of one key; Cloud Functions have a bound of their own, as on their platform."""
        return self._busy_max if revision.flavour == "openwhisk" else math.inf

    def _take_out(self, worker: Worker) -> None:
        del self.workers[worker]
        mine = self._by_key[worker.revision.key]
        del mine[worker]
        if not mine:
            del self._by_key[worker.revision.key]
        self.used_mb -= self._charge(worker.revision)

    def _charge(self, revision: Revision) -> int:
        # One that asks for more than there is runs alone instead of never.
        return min(revision.limits.memory_mb, self.memory_mb)


def _dispensable(worker: Worker) -> tuple[bool, float]:
    """Order of eviction: the least recently used first, but what every round needs last, and backwards.

    Rounds call their clients over and over. When there is no memory for a worker of each, the one that has
    just been used is needed last; to evict the least recently used would make every call a cold one.
    """
    in_turn = worker.revision.ahead and asyncio.get_running_loop().time() - worker.idle_since < IN_TURN_S
    return in_turn, -worker.idle_since if in_turn else worker.idle_since


def _slots(revision: Revision) -> int:
    """Calls at once on one worker: an OpenWhisk runtime takes one."""
    return 1 if revision.flavour == "openwhisk" else revision.limits.concurrency
