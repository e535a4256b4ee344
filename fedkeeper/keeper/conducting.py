"""Who conducts: this keeper, whenever the log says so, under the epoch that the log says, and nobody else.

`Leading` has somebody claim an epoch; here the keeper that was claimed for runs an engine until the epoch is
over, and claims anew when it was cut off, frozen or started again.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from fedkeeper.core.conducting import Choice, Policy
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Applied, ClaimConductor, Command, KeeperInfo, Phase, Run, State
from fedkeeper.errors import (
    ClusterError,
    EpochOver,
    FedKeeperError,
    JournalError,
    JournalUnconfirmed,
    KeeperStopped,
    LeaseLost,
    MembershipRefused,
    NoLeader,
)
from fedkeeper.keeper.engine import Engine, Tools
from fedkeeper.keeper.leading import KNOWS_UNFIT, Claimed, Leading
from fedkeeper.keeper.lease import Lease, Seconds, since_boot_s
from fedkeeper.keeper.proposing import AGAIN_S
from fedkeeper.replication.base import ClusterLog
from fedkeeper.replication.codec import cluster_version

log = structlog.get_logger(__name__)

GRACE_S = 0.5  # for a conductor that hands over to tell what its platforms have taken
QUIET_S = 2.0  # for its last effects to end before it hands over
REFRESH_S = 1.0  # after a takeover, before its functions are compared with this keeper's settings
CANNOT_S = 1.0  # the first time that a keeper cannot conduct, others try for so long; then twice as long
TIMES_MAX = 20  # doublings: more would be no number of seconds
CLAIMS_MAX = 5  # for a handover by hand: somebody else's claims may come in between


class Conducting:
    """Beside the log of every keeper."""

    def __init__(
        self,
        *,
        keeper: str,
        log: ClusterLog,
        tools: Tools,
        policy: Policy,
        lease_s: float,
        cannot_s: tuple[float, float] = (CANNOT_S, 60.0),
        seconds: Seconds = since_boot_s,
    ) -> None:
        """`cannot_s`: the first and the longest pause before a keeper that cannot conduct tries again."""
        self.problem = ""  # why this keeper does not conduct although it should, for people
        self._keeper = keeper
        self._log = log
        self._tools = tools
        self._lease_s = lease_s
        self._cannot_s = cannot_s
        self._seconds = seconds
        self._engine: Engine | None = None
        self._claims: dict[int, Claimed] = {}  # epochs that were claimed here, until they are conducted
        self._conductor = log.state.conductor
        self._before = ""  # who conducted before it
        self._first_epoch = log.state.epoch  # if it is ours, then of an earlier life
        self._wake = asyncio.Event()
        self._refreshed: set[str] = set()  # runs whose functions are known to be as this keeper wants them
        self._refreshing: set[asyncio.Task[None]] = set()
        self._leading = Leading(
            keeper=keeper,
            log=log,
            policy=policy,
            lease_s=lease_s,
            clock=tools.clock,
            seconds=seconds,
            quiet=self.quiet,
            resume=self.resume,
            claims=self._claims.__setitem__,
        )

    async def run(self) -> None:
        """Until cancelled. Raises what makes this keeper useless: KeeperStopped, StoreError, …"""
        stop = self._log.listen(self._on_applied)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._leading.run())
                group.create_task(self._conduct())
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from None
        finally:
            stop()
            for task in self._refreshing:
                task.cancel()
            await asyncio.gather(*self._refreshing, return_exceptions=True)

    @property
    def conducts(self) -> bool:
        """Whether an engine runs here."""
        return self._engine is not None

    async def reported(self) -> None:
        """Wait for the reports that are being written here."""
        if self._engine is not None:
            await self._engine.recorder.settle()

    async def handover(self, to: str | None) -> None:
        """Have `to` conduct until it is lost; None: whom placement chooses. Only on the leader.

        Raises MembershipRefused if that keeper is not known or lost, and what `propose` raises.
        """
        for _ in range(CLAIMS_MAX):
            state = self._log.state
            choice = self._by_hand(state, to)
            applied = await self._leading.claim(
                choice.keeper, of=state, why=choice.why, pinned=to is not None
            )
            if not applied.rejected:
                return
        raise MembershipRefused("others kept taking over in between", hint="ask again")

    async def quiet(self) -> None:
        """Begin no further effect, and let those under way end, at most QUIET_S: somebody else takes over."""
        if self._engine is not None:
            await self._engine.lease.drain(QUIET_S)

    def resume(self) -> None:
        """Undo `quiet`."""
        if self._engine is not None:
            self._engine.lease.resume()

    async def give_way(self, why: str) -> None:
        """Have another one conduct: the leader, or who leads it next. ClusterError if nobody is there."""
        state, status = self._log.state, self._log.status
        others = self._others(state)
        if not others:
            raise NoLeader("no other keeper is up")
        to = status.leader if status.leader in others else others[0]
        await self._leading.claim(to, of=state, why=f"{to} conducts: {why}")

    def _others(self, state: State) -> list[str]:
        """Keepers that live, as far as is known, and that this one is connected to."""
        connected = {one.name for one in self._log.status.members if one.connected}
        return sorted(
            name
            for name, known in state.keepers.items()
            if known.alive and name != self._keeper and name in connected
        )

    def _by_hand(self, state: State, to: str | None) -> Choice:
        if to is None:
            placed = self._leading.choice()
            keeper = placed.keeper if placed is not None else state.conductor
            return Choice(keeper=keeper, why="no longer chosen by hand")
        known = state.keepers.get(to)
        if known is None or not known.alive:
            living = ", ".join(sorted(name for name, one in state.keepers.items() if one.alive))
            problem = "there is no keeper" if known is None else "not heard of at present: keeper"
            raise MembershipRefused(f"{problem} {to!r}", hint=f"those that are up: {living or 'none'}")
        return Choice(keeper=to, why="chosen by hand")

    def _on_applied(self, command: Command, applied: Applied) -> None:
        if isinstance(command, ClaimConductor) and not applied.rejected:
            self._before, self._conductor = self._conductor, command.keeper
            own = self._claims.get(applied.state.epoch)
            if own is not None and own.command != command:  # another one was first
                del self._claims[applied.state.epoch]
            self._wake.set()

    async def _conduct(self) -> None:
        while True:
            self._wake.clear()
            if self._log.state.conductor != self._keeper:
                await self._wake.wait()
            elif self._log.state.epoch <= self._first_epoch:
                await self._claim_again("it was started again")
            elif (rest_s := self._leading.rest_s(self._keeper)) > 0:
                await self._rest(rest_s)
            else:
                await self._work()

    async def _work(self) -> None:
        """One epoch, or what is left of it."""
        state = self._log.state
        self.problem = ""
        lease = Lease(self._lease_s, clock=self._seconds)
        claimed = self._claims.pop(state.epoch, None)
        self._claims.clear()
        if claimed is not None:
            lease.confirmed(claimed.begun)
        self._engine = Engine(
            keeper=self._keeper,
            epoch=state.epoch,
            log=self._log,
            tools=self._tools,
            lease=lease,
            grace_s=self._grace_s(state, claimed),
        )
        log.info("conducting", epoch=state.epoch, why=state.conductor_why)
        self._refresh(state, lease)
        try:
            await self._engine.run()
            log.info("conducting has ended", epoch=state.epoch, conductor=self._log.state.conductor)
        except LeaseLost as exc:
            log.warning("conducting pauses", epoch=state.epoch, problem=str(exc))
            await self._claim_again("it was away for a while")
        except (KeeperStopped, JournalError):
            raise
        except FedKeeperError as exc:
            await self._give_away(exc)
        finally:
            self._engine = None

    def _grace_s(self, state: State, claimed: Claimed | None) -> float:
        """Time for the last conductor to say what it was just sending, if it lives to say it."""
        known = state.keepers.get(self._before)
        if self._before == self._keeper or known is None or not known.alive:
            return 0.0
        if self._before == self._log.status.leader:  # it was quiet before it had another one claim
            return 0.0
        if claimed is not None and claimed.first:  # elected just now: who led before is dead, or cut off
            return 0.0
        return GRACE_S

    async def _claim_again(self, why: str) -> None:
        """A new epoch for this keeper, which conducts by the log, unless somebody else claims first."""
        state = self._log.state
        while self._log.state.epoch == state.epoch:
            try:
                await self._leading.claim(
                    self._keeper, of=state, why=f"{self._keeper} conducts on: {why}", pinned=state.pinned
                )
            except KeeperStopped:
                raise
            except (ClusterError, JournalUnconfirmed) as exc:
                self._pause(str(exc))
                await self._tools.clock.sleep(AGAIN_S)
        self._pause("")

    def _pause(self, problem: str) -> None:
        """Say once that there is a pause, and once that it is over."""
        if problem and not self.problem:
            log.warning("paused: nothing can be decided", problem=problem)
        elif self.problem and not problem:
            log.warning("the pause is over")
        self.problem = problem

    async def _rest(self, seconds: float) -> None:
        """Nobody can conduct: pause, unless somebody is asked to by hand, or another one can again."""
        why = self._known(self._log.state).unfit
        self.problem = f"no keeper can conduct: {why}; trying again in {seconds:.0f} s"
        log.warning("pause", problem=self.problem)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _known(self, state: State) -> KeeperInfo:
        return state.keepers.get(self._keeper) or KeeperInfo(name=self._keeper, api="", version=0)

    async def _give_away(self, exc: FedKeeperError) -> None:
        """Have another keeper conduct, because this one cannot. Alone, raise `exc`.

        If none of the others could either, the one whose pause ends first is next: it may be this one.
        """
        state = self._log.state
        others = self._others(state)
        if not others:
            raise exc
        times = 0 if state.conductor_rounds else self._known(state).unfit_times
        first_s, longest_s = self._cannot_s
        pause_s = min(first_s * 2 ** min(times, TIMES_MAX), longest_s)
        rests = {name: self._leading.rest_s(name) for name in others} | {self._keeper: pause_s}
        least = min(rests.values())
        first = [name for name in others if rests[name] == least] or [self._keeper]
        to = first[state.epoch % len(first)]
        log.error("this keeper cannot conduct, another one shall", to=to, problem=str(exc))
        self.problem = f"cannot conduct: {exc}"
        if cluster_version(state) < KNOWS_UNFIT:  # nobody can be told to wait
            await self._tools.clock.sleep(first_s)
        try:
            await self._leading.claim(
                to,
                of=state,
                why=f"{self._keeper} cannot: {exc}",
                unfit=str(exc),
                unfit_ms=round(pause_s * 1000),
            )
        except KeeperStopped:
            raise
        except (ClusterError, JournalUnconfirmed):
            await self._claim_again("nobody else could")

    # --- functions as this keeper wants them -------------------------------------------------------

    def _refresh(self, state: State, lease: Lease) -> None:
        """Compare the functions of unfinished runs with this keeper's settings, once in its life."""
        for name, run in state.runs.items():
            if run.phase in ENDED or run.phase is Phase.DEPLOYING or name in self._refreshed:
                continue
            self._refreshed.add(name)
            task = asyncio.ensure_future(self._refresh_one(run, lease))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)

    async def _refresh_one(self, run: Run, lease: Lease) -> None:
        await self._tools.clock.sleep(REFRESH_S)  # what is to be invoked goes first
        try:
            done = await self._tools.deployer.deploy(run.spec, lease.hold)
        except EpochOver:
            self._refreshed.discard(run.spec.run)
        except FedKeeperError as exc:
            log.warning("functions could not be brought up to date", run=run.spec.run, problem=str(exc))
        else:
            log.info("functions compared", run=run.spec.run, result=done.summary)
