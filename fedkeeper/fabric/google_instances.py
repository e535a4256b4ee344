"""How many instances of a Cloud Function may run, and which request may start one.

As Cloud Run: a request that finds no free place waits, for seconds and not for ever, and is then answered
429. Nothing here waits for the pool's memory: that is the pool's own queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from fedkeeper.fabric.model import PoolFull, Revision

PENDING_S: Final = 10.0  # as Cloud Run holds a request for which there is no instance

Instances = Callable[[str], tuple[int, int]]  # revision id -> (instances that live, free places on them)


@dataclass(slots=True)
class _Gate:
    """The requests of one revision that are not on an instance yet."""

    starting: int = 0  # they start an instance each
    coming: int = 0  # let through to a free place, not there yet
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)  # told: whether to start an instance
    users: int = 0

    def let_through(self, *, starts: bool, by: int) -> None:
        if starts:
            self.starting += by
        else:
            self.coming += by


class Gates:
    """Lets requests through to the pool, so that a revision never has more instances than it may."""

    def __init__(self, instances: Instances, *, pending_s: float = PENDING_S) -> None:
        self._instances = instances
        self._pending_s = pending_s
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def enter(self, revision: Revision) -> AsyncIterator[Callable[[], None]]:
        """Hold one place on an instance of `revision`. PoolFull if none was free for `pending_s` seconds.

        What is given is to be called once the request is on its instance, or gets none after all.
        """
        gate = self._gates.setdefault(revision.id, _Gate())
        gate.users += 1
        try:
            starts = await self._turn(gate, revision)
            on_the_way = True

            def arrived() -> None:
                nonlocal on_the_way
                if on_the_way:
                    on_the_way = False
                    gate.let_through(starts=starts, by=-1)
                    self._dispatch(gate, revision)

            try:
                yield arrived
            finally:
                arrived()
        finally:
            gate.users -= 1
            self._dispatch(gate, revision)
            if not gate.users:
                del self._gates[revision.id]

    async def _turn(self, gate: _Gate, revision: Revision) -> bool:
        """Wait for a place, first come, first served; whether the request is to start its instance."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        gate.waiting.append(turn)
        self._dispatch(gate, revision)
        try:
            await asyncio.wait([turn], timeout=self._pending_s)
        except asyncio.CancelledError:
            if turn.done():
                gate.let_through(starts=turn.result(), by=-1)
            else:
                gate.waiting.remove(turn)
            raise
        if not turn.done():
            gate.waiting.remove(turn)
            raise PoolFull("there was no available instance")
        return turn.result()

    def _dispatch(self, gate: _Gate, revision: Revision) -> None:
        while gate.waiting:
            living, free = self._instances(revision.id)
            starts = free <= gate.coming
            if starts and not _may_start(gate, revision, living, free):
                return
            gate.let_through(starts=starts, by=1)
            gate.waiting.popleft().set_result(starts)


def _may_start(gate: _Gate, revision: Revision, living: int, free: int) -> bool:
    lost = max(0, gate.coming - free)  # their instance was evicted meanwhile: they will start one
    if living + gate.starting + lost >= revision.limits.instances:
        return False
    # those that are starting will have room for as many as wait already
    return len(gate.waiting) > gate.starting * (revision.limits.concurrency - 1)
