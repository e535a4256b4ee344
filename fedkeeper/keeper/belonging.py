"""Whether this keeper still belongs to the cluster: one that was removed while it was down has not been told.

The others do not let it connect any more, so it hears no leader, and would wait for ever. It asks their APIs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from fedkeeper.clock import Clock
from fedkeeper.errors import KeeperStopped
from fedkeeper.keeper.api.schemas import Status
from fedkeeper.replication.base import ClusterLog, LogStatus

log = structlog.get_logger(__name__)

ASK_S: Final = 5.0  # without a leader, and between two questions
TIMES: Final = 2  # leaders in a row that say so: one may be about to be replaced

Ask = Callable[[], Awaitable[Sequence[Status]]]


class Belonging:
    """Beside the log of every keeper."""

    def __init__(self, *, log: ClusterLog, ask: Ask, clock: Clock, every_s: float = ASK_S) -> None:
        """`ask`: what the other keepers that answer say of the cluster."""
        self._log = log
        self._ask = ask
        self._clock = clock
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled. KeeperStopped if the cluster goes on without this keeper."""
        changed = asyncio.Event()
        stop = self._log.watch(lambda _: changed.set())
        said = 0
        try:
            while True:
                if not self._waits():
                    said = 0
                    changed.clear()
                    if not self._waits():
                        await changed.wait()
                    continue
                await self._clock.sleep(self._every_s)
                leader = without(self._log.status, await self._ask()) if self._waits() else ""
                said = said + 1 if leader else 0
                if said >= TIMES:
                    name = self._log.status.name
                    raise KeeperStopped(
                        f"{name} was removed from the cluster while it was away, says its leader {leader}",
                        hint="its folder may be deleted; `fedkeeper keeper add` takes it in again, with an"
                        " empty one",
                    )
        finally:
            stop()

    def _waits(self) -> bool:
        """It was a member, and hears nobody who leads."""
        status = self._log.status
        return status.counts and not status.leader


def without(own: LogStatus, others: Sequence[Status]) -> str:
    """The leader that works with others and has no such member; empty: there is none that says so."""
    for one in others:
        leads = one.name == one.leader and one.term >= own.term and one.ready and not one.problem
        if leads and own.name not in one.members and one.name in {member.name for member in own.members}:
            return one.name
    return ""
