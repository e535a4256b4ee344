"""What the Raft leader does for the cluster: says who is lost, and has somebody conduct.

Nothing here decides anything by itself: both are commands, and the claim is a compare-and-set on the epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.conducting import Choice, Policy, choose, rest_ms
from fedkeeper.core.model import (
    Applied,
    ClaimConductor,
    Command,
    KeeperLost,
    KeeperMeasured,
    KeeperStarted,
    State,
)
from fedkeeper.errors import ClusterError, JournalUnconfirmed, KeeperStopped
from fedkeeper.keeper.lease import Seconds
from fedkeeper.keeper.proposing import unfinished
from fedkeeper.replication.base import ClusterLog, LogStatus, Member, Role
from fedkeeper.replication.codec import cluster_version

log = structlog.get_logger(__name__)

LOOK_S = 0.5  # between two looks, if nothing happens
KNOWS_UNFIT = 3  # version of keepers that are told who could not conduct
KNOWS_RESUMED = 5  # version of keepers that note a takeover once per run
SILENT_LEASES = 2.0  # a conductor with work that says nothing for so many leases is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claim that this keeper has made for itself."""

    command: ClaimConductor
    begun: float  # when it was proposed
    first: bool  # the first one since it leads: there was no leader before


class Leading:
    """Beside the log of every keeper; does something only while this one leads."""

    def __init__(
        self,
        *,
        keeper: str,
        log: ClusterLog,
        policy: Policy,
        lease_s: float,
        clock: Clock,
        seconds: Seconds,
        quiet: Callable[[], Awaitable[None]],
        resume: Callable[[], None],
        claims: Callable[[int, Claimed], None],
    ) -> None:
        """`quiet`, `resume`: of this keeper's own engine; `claims`: told of an epoch to be claimed for it."""
        self._keeper = keeper
        self._log = log
        self._policy = policy
        self._lease_s = lease_s
        self._clock = clock
        self._seconds = seconds
        self._quiet = quiet
        self._resume = resume
        self._claims = claims
        self._wake = asyncio.Event()
        self._term = 0  # of the leadership that what follows is of
        self._first = False  # nobody has been claimed for in it
        self._ahead_ms = 0
        self._heard = 0.0  # when the conductor last said something
        self._gone: dict[str, float] = {}  # members without a connection, since when
        self._claiming = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled. KeeperStopped or JournalError when the log has stopped."""
        stops = (self._log.listen(self._on_applied), self._log.watch(lambda _: self._wake.set()))
        try:
            while True:
                self._wake.clear()
                try:
                    await self._look()
                except KeeperStopped:
                    raise
                except (ClusterError, JournalUnconfirmed) as exc:  # looked at again below, if it still leads
                    log.debug("as a leader, not confirmed", problem=str(exc))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):  # wait_for of Python 3.11 loses cancellations
                        await self._wake.wait()
        finally:
            for stop in stops:
                stop()

    async def claim(
        self, keeper: str, *, of: State, why: str, pinned: bool = False, unfit: str = "", unfit_ms: int = 0
    ) -> Applied:
        """Have `keeper` conduct; what is under way here is brought to an end before another takes over.

        `of`: the state for which that was decided; rejected if it has another epoch by now.
        `unfit`, `unfit_ms`: why this one cannot, and for how long others shall try.
        """
        async with self._claiming:
            state = self._log.state
            if state.epoch != of.epoch:
                return Applied(state=state, rejected=f"expected epoch {of.epoch}, now is {state.epoch}")
            version = cluster_version(state)
            knows = version >= KNOWS_UNFIT
            command = ClaimConductor(
                keeper=keeper,
                expected_epoch=state.epoch,
                at_ms=self._now_ms(),
                why=why,
                pinned=pinned,
                unfit=unfit if knows else "",
                unfit_ms=unfit_ms if knows else 0,
                resumes=version >= KNOWS_RESUMED,
            )
            if state.conductor == self._keeper != keeper:
                await self._quiet()
            if keeper == self._keeper:  # said first: whoever listens to the log starts the engine
                own = Claimed(command=command, begun=self._seconds(), first=self._first)
                self._claims(state.epoch + 1, own)
            taken = False
            try:
                applied = await self._log.propose(command)
                taken = not applied.rejected
            finally:
                if not taken:
                    self._resume()
            self._first = False
            return applied

    def rest_s(self, keeper: str) -> float:
        """For how long others shall conduct, because `keeper` could not."""
        return rest_ms(self._log.state, keeper, self._now_ms()) / 1000

    def _now_ms(self) -> int:
        return self._clock.now_ms() + self._ahead_ms

    def _on_applied(self, command: Command, applied: Applied) -> None:
        state = applied.state
        own = isinstance(command, KeeperMeasured | KeeperStarted) and command.keeper == state.conductor
        fenced = getattr(command, "epoch", None) == state.epoch
        if own or fenced or isinstance(command, ClaimConductor):
            self._heard = self._seconds()
        self._wake.set()

    async def _look(self) -> None:
        status = self._log.status
        if status.role is not Role.LEADER:
            self._term = 0
            return
        if status.term != self._term:
            self._term = status.term
            self._first = True
            self._ahead_ms = max(0, self._log.state.now_ms - self._clock.now_ms())
            self._heard = self._seconds()
            self._gone.clear()
        state = self._log.state
        choice = self.choice()
        if choice is not None:  # the first thing that a new leader proposes
            applied = await self.claim(choice.keeper, of=state, why=choice.why)
            if not applied.rejected:
                log.info("conductor", keeper=choice.keeper, why=choice.why, epoch=applied.state.epoch)
        for keeper, reason in self._lost(status):
            log.warning("keeper lost", keeper=keeper, reason=reason)
            await self._log.propose(KeeperLost(keeper=keeper, reason=reason, at_ms=self._now_ms()))

    def choice(self) -> Choice | None:
        """Whom placement would have conduct; None: as it is."""
        state = self._log.state
        return choose(state, self._policy, leader=self._keeper, now_ms=self._now_ms())

    def _lost(self, status: LogStatus) -> list[tuple[str, str]]:
        """Keepers that count as alive and cannot be heard any more, and why."""
        state, now = self._log.state, self._seconds()
        lost = []
        for member in status.members:
            if member.connected:
                self._gone.pop(member.name, None)
                continue
            since = self._gone.setdefault(member.name, now)
            known = state.keepers.get(member.name)
            if known is None or not known.alive or member.name == self._keeper:
                continue
            if member.name == state.conductor or now - since >= self._lease_s:
                lost.append((member.name, "its connection is gone"))
        members = {member.name for member in status.members}
        for name in set(self._gone) - members:
            del self._gone[name]
        if self.rest_s(state.conductor) > 0:
            self._heard = now  # nobody can conduct: it tries again later, and is silent until then
        if problem := self._silent(status.members, now):
            lost.append((state.conductor, problem))
        return lost

    def _silent(self, members: tuple[Member, ...], now: float) -> str:
        """Whether the conductor, connected as it may be, has stopped working: frozen, for instance."""
        state = self._log.state
        known = state.keepers.get(state.conductor)
        if known is None or not known.alive or state.conductor == self._keeper:
            return ""
        if not any(one.name == state.conductor and one.connected for one in members):
            return ""  # seen to already
        if not unfinished(state) or now - self._heard < SILENT_LEASES * self._lease_s:
            return ""
        return f"it conducts, and has said nothing for {now - self._heard:.1f} s"
