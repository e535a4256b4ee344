"""The engine: performs intents, watches what is under way, and tells the log what came of it.

One instance acts, the conductor. Everything it knows is in the log's state; whatever it does comes back as
a command. So it can be killed between any two lines: the next one claims the epoch, takes the outbox as it
stands, asks the store about every key in it, and invokes only what nobody has claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.machine import next_due_ms
from fedkeeper.core.model import (
    Applied,
    Attempt,
    AttemptStatus,
    ClaimConductor,
    Command,
    Intent,
    InvocationFailed,
    InvocationSent,
    Invoke,
    Prune,
    Run,
    State,
    Tick,
)
from fedkeeper.errors import FedKeeperError, ProviderError, StoreError
from fedkeeper.keeper.invoking import Invoker
from fedkeeper.keeper.tasks import TaskBook, command_for, invoked_on
from fedkeeper.providers.base import Activation
from fedkeeper.replication.base import Log
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

CLOCK_SKEW_MS = 60_000  # how far a platform's clock may be from ours when its records are searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the engine looks, in seconds."""

    poll_min_s: float = 0.05  # right after something arrived
    poll_max_s: float = 0.25  # when nothing has arrived for a while
    follow_s: float = 1.0  # between looks at the platforms' activation records
    keep_rounds: int = 2  # whose weights and updates stay in the store


class Engine:
    """Conducts every run in the log. `run()` works until it is cancelled."""

    def __init__(
        self,
        *,
        keeper: str,
        log: Log,
        store: UpdateStore,
        invoker: Invoker,
        books: Callable[[Run], TaskBook],
        clock: Clock,
        pace: Pace,
    ) -> None:
        self._keeper = keeper
        self._log = log
        self._store = store
        self._invoker = invoker
        self._books = books
        self._clock = clock
        self._pace = pace
        self._epoch = 0
        self._ahead_ms = 0  # by how much the log's time was ahead of our clock when we took over
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()  # one per intent under way: bounded by the outbox
        self._failure: asyncio.Future[None] | None = None
        self._followed_ms = 0

    async def run(self) -> None:
        """Claim the epoch, take over what is under way, then act until cancelled.

        Raises whatever makes going on impossible (StoreUnavailable after its limit, JournalError, …).
        """
        self._failure = asyncio.get_running_loop().create_future()
        await self._claim()
        stop = self._log.listen(self._on_applied)
        watching = asyncio.ensure_future(self._watch())
        try:
            await self._take_over()
            await asyncio.wait({watching, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            for done in (watching, self._failure):
                if done.done():
                    done.result()
        finally:
            stop()
            for task in (watching, *self._tasks):
                task.cancel()
            await asyncio.gather(watching, *self._tasks, return_exceptions=True)
            self._failure.cancel()

    # --- becoming the conductor ------------------------------------------------------------------

    async def _claim(self) -> None:
        # The last conductor's clock may have been ahead of ours: deadlines must not wait for the difference.
        self._ahead_ms = max(0, self._log.state.now_ms - self._clock.now_ms())
        applied = await self._log.propose(
            ClaimConductor(keeper=self._keeper, expected_epoch=self._log.state.epoch, at_ms=self._now_ms())
        )
        if applied.rejected:
            raise FedKeeperError(f"keeper {self._keeper} could not become the conductor: {applied.rejected}")
        self._epoch = applied.state.epoch

    async def _take_over(self) -> None:
        """Re-attach: what has an activation is watched, what was claimed is found, the rest is invoked."""
        unsure = [one for _, one in _outstanding(self._log.state) if one.status is AttemptStatus.SENDING]
        if not unsure:
            return
        keys = [attempt.key for attempt in unsure]
        claims = await self._store.claims(keys)
        known = await self._store.outcomes(keys)
        for attempt in unsure:
            if attempt.key in claims:
                await self._propose(self._sent(attempt.key, claims[attempt.key].activation_id))
            elif attempt.key not in known:
                self._start(self._perform(Invoke(run=attempt.run, key=attempt.key)))
        log.info("took over", attempts=len(keys), already_running=len(claims), already_done=len(known))

    # --- intents -> effects -> commands -------------------------------------------------------------

    def _on_applied(self, command: Command, applied: Applied) -> None:
        if applied.rejected:
            log.info("rejected", command=type(command).__name__, reason=applied.rejected)
        for intent in applied.intents:
            self._start(self._perform(intent))
        self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(task.exception() or FedKeeperError("lost"))

    async def _perform(self, intent: Intent) -> None:
        match intent:
            case Invoke():
                await self._invoke(intent)
            case Prune():
                await self._prune(intent)
            case _:
                pass  # for the reports

    async def _invoke(self, intent: Invoke) -> None:
        run = self._log.state.runs.get(intent.run)
        attempt = run.outbox.get(intent.key) if run is not None else None
        if run is None or attempt is None or attempt.status is not AttemptStatus.SENDING:
            return  # answered or abandoned before its turn came
        command = await self._invoker.invoke(self._books(run).call(run, attempt), attempt, epoch=self._epoch)
        if command is not None:
            await self._propose(command)

    async def _prune(self, intent: Prune) -> None:
        before = intent.before_round - self._pace.keep_rounds + 1
        if before <= 0:
            return
        try:
            removed = await self._store.prune(intent.run, before_round=before)
        except StoreError as exc:
            log.warning("could not prune", run=intent.run, before_round=before, problem=str(exc))
            return  # the next round's pruning covers these as well
        log.debug("pruned", run=intent.run, before_round=before, objects=removed)

    # --- watching ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at the store, then at the platforms, then at the clock; look more often while things move."""
        wait_s = self._pace.poll_min_s
        while True:
            moved = await self._collect()
            moved += await self._follow()
            moved += await self._tick()
            wait_s = self._pace.poll_min_s if moved else min(wait_s * 1.5, self._pace.poll_max_s)
            await self._pause(wait_s)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not past the next deadline, and not if something to wait for has just appeared."""
        due_ms = next_due_ms(self._log.state)
        if due_ms is not None:
            seconds = min(seconds, max(0.0, (due_ms - self._now_ms()) / 1000))
        if next(_outstanding(self._log.state), None) is None:
            self._changed.clear()
            await self._changed.wait()
            return
        await self._clock.sleep(max(seconds, 0.001))

    async def _collect(self) -> int:
        """Ask the store about every outstanding key, in one query."""
        waiting = {one.key: (run, one) for run, one in _outstanding(self._log.state)}
        if not waiting:
            return 0
        outcomes = await self._store.outcomes(waiting.keys())
        for key, outcome in outcomes.items():
            run, attempt = waiting[key]
            if not attempt.activation_id and outcome.activation_id:
                await self._propose(self._sent(key, outcome.activation_id))
            applied = await self._propose(
                command_for(run, attempt, outcome, epoch=self._epoch, at_ms=self._now_ms())
            )
            if applied.rejected and self._is_outstanding(run.spec.run, key):
                # It would come up, and be rejected, at every look: it is a failed attempt.
                await self._propose(self._failed(key, applied.rejected))
        return len(outcomes)

    async def _follow(self) -> int:
        """Ask the platforms what has ended: an activation that left no outcome in the store has failed."""
        now_ms = self._now_ms()
        if now_ms - self._followed_ms < self._pace.follow_s * 1000:
            return 0
        self._followed_ms = now_ms
        by_cluster: dict[str, dict[str, Attempt]] = {}
        for run, attempt in _outstanding(self._log.state):
            if attempt.activation_id:
                by_cluster.setdefault(invoked_on(run, attempt)[0], {})[attempt.activation_id] = attempt
        ended = 0
        for cluster, attempts in by_cluster.items():
            since_ms = min(attempt.sent_ms for attempt in attempts.values()) - CLOCK_SKEW_MS
            try:
                records = await self._invoker.providers[cluster].ended(attempts.keys(), since_ms=since_ms)
            except ProviderError as exc:
                log.warning("could not follow up", cluster=cluster, problem=str(exc))
                continue
            ended += await self._settle((attempts[one], record) for one, record in records.items())
        return ended

    async def _settle(self, ended: Iterable[tuple[Attempt, Activation]]) -> int:
        """Activations that have ended: what they published counts, silence is failure."""
        over = {attempt.key: record for attempt, record in ended}
        if not over:
            return 0
        # Asked after the end was seen: a function publishes before it returns.
        outcomes = await self._store.outcomes(over.keys())
        claims = await self._store.claims([key for key in over if key not in outcomes])
        for key, record in over.items():
            claim = claims.get(key)
            if key in outcomes:
                continue  # the next look at the store takes it in
            if claim is not None and claim.activation_id != record.activation_id:
                await self._propose(self._sent(key, claim.activation_id))  # another one holds the key
                continue
            reason = record.reason or f"ended ({record.status}) and left no result"
            await self._propose(self._failed(key, reason))
        return len(over)

    async def _tick(self) -> int:
        due_ms = next_due_ms(self._log.state)
        if due_ms is None or due_ms > self._now_ms():
            return 0
        await self._propose(Tick(epoch=self._epoch, at_ms=self._now_ms()))
        return 1

    # --- telling the log ---------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        """The log's time: what commands are stamped with, and deadlines are compared to."""
        return self._clock.now_ms() + self._ahead_ms

    def _sent(self, key: str, activation_id: str) -> InvocationSent:
        return InvocationSent(key=key, activation_id=activation_id, epoch=self._epoch, at_ms=self._now_ms())

    def _failed(self, key: str, reason: str) -> InvocationFailed:
        return InvocationFailed(key=key, reason=reason, epoch=self._epoch, at_ms=self._now_ms())

    def _is_outstanding(self, run: str, key: str) -> bool:
        return run in self._log.state.runs and key in self._log.state.runs[run].outbox

    async def _propose(self, command: Command) -> Applied:
        return await self._log.propose(command)


def _outstanding(state: State) -> Iterator[tuple[Run, Attempt]]:
    """Every attempt without an answer yet, sent or not."""
    for run in state.runs.values():
        for attempt in run.outbox.values():
            yield run, attempt
