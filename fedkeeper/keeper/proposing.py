"""What a conductor says to the log under its epoch: until it is confirmed, or the epoch is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import (
    Applied,
    Attempt,
    AttemptStatus,
    Command,
    InvocationFailed,
    InvocationSent,
    KeeperInfo,
    KeeperMeasured,
    KeeperStarted,
    Run,
    State,
)
from fedkeeper.errors import ClusterError, EpochOver, JournalUnconfirmed, KeeperStopped
from fedkeeper.keeper.lease import Lease
from fedkeeper.replication.base import Log

log = structlog.get_logger(__name__)

AGAIN_S = 0.05  # pause before a command is proposed again
TOGETHER_MAX = 256  # proposals at once


class Proposer:
    """One epoch's voice. Commands are idempotent by their keys, so saying one twice is harmless."""

    def __init__(self, *, keeper: str, epoch: int, log: Log, lease: Lease, clock: Clock) -> None:
        self.keeper = keeper
        self.epoch = epoch
        self.lease = lease
        self._log = log
        self._clock = clock
        # The last conductor's clock may have been ahead of ours: deadlines must not wait for the difference.
        self._ahead_ms = max(0, log.state.now_ms - clock.now_ms())

    @property
    def state(self) -> State:
        """As of the last command applied here."""
        return self._log.state

    def now_ms(self) -> int:
        """The log's time: what commands are stamped with, and deadlines are compared to."""
        return self._clock.now_ms() + self._ahead_ms

    def over(self) -> bool:
        """Whether somebody else conducts, or this keeper under another epoch."""
        return self.state.epoch != self.epoch

    async def propose(self, command: Command) -> Applied:
        """Propose until it is confirmed; each confirmation renews the lease.

        Raises EpochOver when the epoch is; KeeperStopped or JournalError when this keeper's log has stopped.
        """
        while True:
            if self.over():
                raise EpochOver(f"epoch {self.epoch} is over, now is {self.state.epoch}")
            begun = self.lease.now()
            try:
                applied = await self._log.propose(command)
            except KeeperStopped:
                raise
            except (ClusterError, JournalUnconfirmed) as exc:
                log.debug("proposed again", command=type(command).__name__, problem=str(exc))
                await self._clock.sleep(AGAIN_S)
                continue
            if applied.state.epoch == self.epoch:
                self.lease.confirmed(begun)
            return applied

    async def sent(self, key: str, activation_id: str) -> None:
        """The platform has taken it. A fact, so the next conductor is told it as well, and does not send."""
        try:
            await self.propose(self._sent(key, activation_id, self.epoch))
        except EpochOver:
            attempt = find(self.state, key)
            if attempt is None or attempt.status is not AttemptStatus.SENDING:
                return
            try:
                await self._log.propose(self._sent(key, activation_id, self.state.epoch))
            except (
                ClusterError
            ) as exc:  # its next conductor finds the claim, or sends again under the same key
                log.info("the next conductor was not told", key=key, problem=str(exc))

    async def failed(self, key: str, reason: str) -> None:
        """It came to nothing."""
        await self.propose(InvocationFailed(key=key, reason=reason, epoch=self.epoch, at_ms=self.now_ms()))

    async def renew(self) -> None:
        """Have the lease renewed by a command that decides nothing: not even time passes for the runs.

        A Tick would let deadlines fall due whose results are in the store and have not been looked for yet.
        """
        known = self.state.keepers.get(self.keeper) or KeeperInfo(name=self.keeper, api="", version=0)
        command: Command = KeeperMeasured(
            keeper=self.keeper, latencies=known.latencies, at_ms=self._clock.now_ms()
        )
        if known.api and not known.measured:  # or it would count as having measured
            command = KeeperStarted(
                keeper=self.keeper, api=known.api, version=known.version, at_ms=known.started_ms
            )
        await self.propose(command)

    def _sent(self, key: str, activation_id: str, epoch: int) -> InvocationSent:
        return InvocationSent(key=key, activation_id=activation_id, epoch=epoch, at_ms=self.now_ms())


async def together(proposals: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Propose them at once, so that they share a message and an fsync; many, some after the others."""
    left = iter(proposals)
    while some := list(islice(left, TOGETHER_MAX)):
        async with asyncio.TaskGroup() as group:
            for one in some:
                group.create_task(one)


def outstanding(state: State) -> Iterator[tuple[Run, Attempt]]:
    """Every attempt without an answer yet, sent or not."""
    for run in state.runs.values():
        for attempt in run.outbox.values():
            yield run, attempt


def find(state: State, key: str) -> Attempt | None:
    """The attempt of that key, while it is outstanding."""
    run = state.runs.get(key.partition("/")[0])
    return run.outbox.get(key) if run is not None else None


def unfinished(state: State) -> bool:
    """Whether there is anything to conduct."""
    return any(run.phase not in ENDED for run in state.runs.values())
