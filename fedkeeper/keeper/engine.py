"""The engine: performs intents, watches what is under way, and tells the log what came of it.

One instance per epoch acts, on the keeper that conducts. Everything it knows is in the log's state; whatever
it does comes back as a command. So it can be killed between any two lines: the next one takes the outbox as
it stands, asks the store about every key in it, and invokes only what nobody has claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import (
    Applied,
    Attempt,
    AttemptStatus,
    Command,
    DeleteValue,
    FunctionsDeployed,
    Intent,
    Invoke,
    Kind,
    Prune,
    PutValue,
    Run,
)
from fedkeeper.core.outbox import deadline_ms
from fedkeeper.errors import (
    EpochOver,
    FedKeeperError,
    JournalError,
    KeeperStopped,
    LeaseLost,
    ProviderError,
    StoreError,
    TaskError,
)
from fedkeeper.keeper.invoking import Invoker, Order
from fedkeeper.keeper.lanes import Lane
from fedkeeper.keeper.lease import Lease
from fedkeeper.keeper.ports import Deployer, Reports
from fedkeeper.keeper.proposing import Proposer, outstanding, together, unfinished
from fedkeeper.keeper.recording import Recorder
from fedkeeper.keeper.tasks import book_of, invoked_on
from fedkeeper.keeper.watching import Pace, Watch
from fedkeeper.replication.base import Log
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

RETIRE_S = 2.0  # for effects that were under way when the epoch ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a keeper acts with; the same over all its epochs."""

    store: UpdateStore
    invoker: Invoker
    deployer: Deployer
    reports: Reports
    clock: Clock
    pace: Pace


class Engine:
    """Conducts every run in the log under one epoch, which its keeper has claimed already."""

    def __init__(
        self, *, keeper: str, epoch: int, log: Log, tools: Tools, lease: Lease, grace_s: float = 0.0
    ) -> None:
        """`grace_s`: time that the last conductor, which lives, has to tell what it was just sending."""
        self.lease = lease
        self._log = log
        self._tools = tools
        self._grace_s = grace_s
        self._proposer = Proposer(keeper=keeper, epoch=epoch, log=log, lease=lease, clock=tools.clock)
        self._watch = Watch(
            proposer=self._proposer,
            store=tools.store,
            providers=tools.invoker.providers,
            clock=tools.clock,
            pace=tools.pace,
        )
        self.recorder = Recorder(
            log=log,
            providers=tools.invoker.providers,
            reports=tools.reports,
            lease=lease,
            clock=tools.clock,
        )
        self._changed = asyncio.Event()  # there may be work now
        self._lanes: dict[str, Lane] = {}  # invocations to be sent, by cluster: bounded by the outbox
        self._tasks: set[asyncio.Task[None]] = set()  # bounded by the lanes' widths
        self._end: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Take over what is under way, then act; return when the epoch is over.

        Raises LeaseLost when the log confirmed nothing for too long, and whatever makes going on impossible
        (StoreUnavailable after its limit, JournalError, …).
        """
        self._end = asyncio.get_running_loop().create_future()
        stop = self._log.listen(self._on_applied)
        # What becomes of attempts from here on comes by the listener.
        unsure = [one for _, one in outstanding(self._log.state) if one.status is AttemptStatus.SENDING]
        try:
            if self._proposer.over():
                return
            self._start(self._act(unsure))
            self._start(self._keep_lease())
            self._start(self.recorder.run())
            try:
                await self._end
            except EpochOver:
                await self._retire()
            except LeaseLost:
                await self._retire()
                raise
        finally:
            stop()
            self._stop_sending()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _retire(self) -> None:
        """Begin nothing more; what the platforms say of what was begun, the next conductor is told."""
        self._stop_sending()
        await self.lease.drain(RETIRE_S)

    def _stop_sending(self) -> None:
        self.lease.revoke()
        for lane in self._lanes.values():
            lane.clear()

    # --- becoming the conductor ------------------------------------------------------------------

    async def _act(self, unsure: Collection[Attempt]) -> None:
        await self._take_over(unsure)
        await self._watch.run()

    async def _take_over(self, unsure: Collection[Attempt]) -> None:
        """Re-attach: what has an activation is watched, what was claimed is found, the rest is invoked."""
        if not unsure:
            return
        keys = [attempt.key for attempt in unsure if attempt.kind is not Kind.DEPLOY]
        claims, known = await asyncio.gather(  # together: what is to be invoked waits for both
            self._tools.store.claims(keys), self._tools.store.outcomes(keys)
        )
        self._start(
            self._perform_again(
                [
                    Invoke(run=attempt.run, key=attempt.key)
                    for attempt in unsure
                    if attempt.key not in claims and attempt.key not in known
                ]
            )
        )
        await together(self._proposer.sent(key, claim.activation_id) for key, claim in claims.items())
        log.info("took over", attempts=len(unsure), already_running=len(claims), already_done=len(known))

    async def _perform_again(self, intents: Iterable[Invoke]) -> None:
        if self._grace_s:
            await self._tools.clock.sleep(self._grace_s)
        for intent in intents:
            self._perform(intent)

    # --- the lease -------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew it while there is work and nothing else does. LeaseLost if that could not be done in time."""
        lease = self.lease
        while True:
            self._changed.clear()
            if not unfinished(self._log.state):
                await _first((self._changed, lease.wanted))
                if lease.wanted.is_set():
                    await self._proposer.renew()
                continue
            if not lease.held():  # it ran out while there was nothing to do, which is no loss
                await self._proposer.renew()
            while unfinished(self._log.state):
                wait_s = lease.left_s() - lease.lease_s * 2 / 3
                if wait_s > 0:
                    await self._tools.clock.sleep(wait_s)
                    continue
                if not lease.held():  # this process was stopped, or starved
                    raise LeaseLost(f"nothing was confirmed for {lease.lease_s:g} s")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(lease.left_s()):
                        await self._proposer.renew()
                if not lease.held():
                    raise LeaseLost(f"nothing was confirmed for {lease.lease_s:g} s")

    # --- intents -> effects -> commands -------------------------------------------------------------

    def _on_applied(self, command: Command, applied: Applied) -> None:
        if self._proposer.over():
            self._finish(EpochOver("another epoch has begun"))
            return
        if applied.rejected and not isinstance(command, PutValue | DeleteValue):  # those are told their user
            # After a takeover that is what becomes of all that the last conductor was just saying.
            stale = getattr(command, "epoch", applied.state.epoch) != applied.state.epoch
            say = log.debug if stale else log.info
            say("rejected", command=type(command).__name__, reason=applied.rejected)
        for intent in applied.intents:
            self._perform(intent)
        self._changed.set()
        self._watch.changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._finish(exc)

    def _finish(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        if self._end is not None and not self._end.done():
            self._end.set_exception(exc)

    def _perform(self, intent: Intent) -> None:
        match intent:
            case Invoke():
                if (found := self._unsent(intent)) is None:
                    return
                if found[1].kind is Kind.DEPLOY:
                    self._start(self._deploy(*found))
                    return
                cluster = invoked_on(*found)[0]
                if cluster not in self._lanes:
                    self._lanes[cluster] = Lane(self._tools.invoker.in_flight_max(cluster), self._start)
                self._lanes[cluster].add(lambda: self._invoke(intent))
            case Prune():
                self._start(self._prune(intent))
            case _:
                pass  # for the reports

    def _unsent(self, intent: Invoke) -> tuple[Run, Attempt] | None:
        """What it is about, unless that was answered or abandoned before its turn came."""
        run = self._log.state.runs.get(intent.run)
        attempt = run.outbox.get(intent.key) if run is not None else None
        if run is None or attempt is None or attempt.status is not AttemptStatus.SENDING:
            return None
        return run, attempt

    async def _deploy(self, run: Run, attempt: Attempt) -> None:
        try:
            async with self.lease.effect():
                done = await self._tools.deployer.deploy(run.spec, self.lease.hold)
                await self._proposer.propose(
                    FunctionsDeployed(
                        key=attempt.key,
                        urls=done.urls,
                        summary=done.summary,
                        epoch=self._proposer.epoch,
                        at_ms=self._proposer.now_ms(),
                    )
                )
        except (EpochOver, KeeperStopped, JournalError):
            raise
        except FedKeeperError as exc:
            log.warning("deployment failed", run=run.spec.run, problem=str(exc))
            await self._proposer.failed(attempt.key, f"{exc}{f' ({exc.hint})' if exc.hint else ''}")

    async def _invoke(self, intent: Invoke) -> None:
        if (found := self._unsent(intent)) is None:
            return
        run, attempt = found

        async def taken(activation_id: str) -> None:
            await self._proposer.sent(attempt.key, activation_id)

        async def redeploy() -> None:
            await self._tools.deployer.redeploy(run.spec, call.cluster, call.function, self.lease.hold)

        try:
            call = book_of(run).call(run, attempt)
            await self._tools.invoker.send(
                Order(
                    call=call,
                    attempt=attempt,
                    deadline_ms=deadline_ms(run, attempt),
                    lease=self.lease,
                    now_ms=self._proposer.now_ms,
                    taken=taken,
                    redeploy=redeploy,
                )
            )
        except (ProviderError, TaskError) as exc:
            problem = str(exc)
            log.warning(
                "invocation failed",
                run=run.spec.run,
                key=attempt.key,
                problem=problem,
                definite=exc.definite,
            )
            await self._proposer.failed(attempt.key, problem)

    async def _prune(self, intent: Prune) -> None:
        before = intent.before_round - self._tools.pace.keep_rounds + 1
        if before <= 0:
            return
        try:
            async with self.lease.effect():
                removed = await self._tools.store.prune(intent.run, before_round=before)
        except StoreError as exc:
            log.warning("could not prune", run=intent.run, before_round=before, problem=str(exc))
            return  # the next round's pruning covers these as well
        log.debug("pruned", run=intent.run, before_round=before, objects=removed)


async def _first(events: Collection[asyncio.Event]) -> None:
    """Return when one of `events` is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
