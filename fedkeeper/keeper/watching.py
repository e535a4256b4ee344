"""Looking after what is under way: at the store, at the platforms, at the clock, in this order.

The order matters: after a pause, what is in the store counts before time makes anybody silent. A platform
that does not answer holds up neither what the others say nor what is in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.machine import next_due_ms
from fedkeeper.core.model import Attempt, Kind, Run, Tick
from fedkeeper.errors import ProviderError
from fedkeeper.keeper.proposing import Proposer, find, outstanding, together
from fedkeeper.keeper.tasks import command_for, invoked_on
from fedkeeper.providers.base import Activation, Provider
from fedkeeper.runtime.wire import Outcome
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

CLOCK_SKEW_MS = 60_000  # how far a platform's clock may be from ours when its records are searched
LOOK_RESTS = 3  # times as long as it took to look at the store, it is left alone
FOLLOW_RESTS = 9  # the same of platforms, whose lists say of a few what the store does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the engine looks, in seconds."""

    poll_min_s: float = 0.05  # right after something arrived
    poll_max_s: float = 0.25  # when nothing has arrived for a while
    rest_max_s: float = 1.0  # between looks at the store that take their time, with thousands outstanding
    follow_s: float = 1.0  # between looks at the platforms' activation records
    follow_max_s: float = 10.0  # the same where looks take their time
    keep_rounds: int = 2  # whose weights and updates stay in the store


class Watch:
    """One epoch's."""

    def __init__(
        self,
        *,
        proposer: Proposer,
        store: UpdateStore,
        providers: Mapping[str, Provider],
        clock: Clock,
        pace: Pace,
    ) -> None:
        self.changed = asyncio.Event()  # set by whoever hears of a command
        self._proposer = proposer
        self._store = store
        self._providers = providers
        self._clock = clock
        self._pace = pace
        self._followed_ms = 0
        self._followed: dict[str, asyncio.Task[None]] = {}  # the question under way, by cluster
        self._follow_next_ms: dict[str, int] = {}  # not before, by cluster

    async def run(self) -> None:
        """Look more often while things move; not at all while nothing is outstanding."""
        wait_s = self._pace.poll_min_s
        async with asyncio.TaskGroup() as group:
            while True:
                begun_ms = self._proposer.now_ms()
                moved = await self._collect()
                self._follow(group)
                moved += await self._tick()
                wait_s = self._pace.poll_min_s if moved else min(wait_s * 1.5, self._pace.poll_max_s)
                took_s = (self._proposer.now_ms() - begun_ms) / 1000
                rest_s = max(took_s, min(LOOK_RESTS * took_s, self._pace.rest_max_s))
                await self._pause(max(wait_s, rest_s))

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not past the next deadline, and not if something to wait for has just appeared."""
        due_ms = next_due_ms(self._proposer.state)
        if due_ms is not None:
            seconds = min(seconds, max(0.0, (due_ms - self._proposer.now_ms()) / 1000))
        if next(outstanding(self._proposer.state), None) is None:
            self.changed.clear()
            await self.changed.wait()
            return
        await self._clock.sleep(max(seconds, 0.001))

    async def _collect(self) -> int:
        """Ask the store about every outstanding key, in one query."""
        waiting = {
            one.key: (run, one)
            for run, one in outstanding(self._proposer.state)
            if one.kind is not Kind.DEPLOY  # leaves nothing there
        }
        if not waiting:
            return 0
        outcomes = await self._store.outcomes(waiting.keys())
        await together(self._tell(*waiting[key], outcome) for key, outcome in outcomes.items())
        return len(outcomes)

    async def _tell(self, run: Run, attempt: Attempt, outcome: Outcome) -> None:
        """What became of an attempt, as the store has it."""
        key = attempt.key
        if not attempt.activation_id and outcome.activation_id:
            await self._proposer.sent(key, outcome.activation_id)
        applied = await self._proposer.propose(
            command_for(run, attempt, outcome, epoch=self._proposer.epoch, at_ms=self._proposer.now_ms())
        )
        if applied.rejected and find(self._proposer.state, key) is not None:
            # It would come up, and be rejected, at every look: it is a failed attempt.
            await self._proposer.failed(key, applied.rejected)

    def _follow(self, group: asyncio.TaskGroup) -> None:
        """Ask each platform what has ended, if it has answered the last time, and rested."""
        now_ms = self._proposer.now_ms()
        if now_ms - self._followed_ms < self._pace.follow_s * 1000:
            return
        self._followed_ms = now_ms
        by_cluster: dict[str, dict[str, Attempt]] = {}
        for run, attempt in outstanding(self._proposer.state):
            if attempt.activation_id:
                by_cluster.setdefault(invoked_on(run, attempt)[0], {})[attempt.activation_id] = attempt
        for cluster, attempts in by_cluster.items():
            asked = self._followed.get(cluster)
            if (asked is None or asked.done()) and now_ms >= self._follow_next_ms.get(cluster, 0):
                self._followed[cluster] = group.create_task(self._follow_and_rest(cluster, attempts))

    async def _follow_and_rest(self, cluster: str, attempts: Mapping[str, Attempt]) -> None:
        """A list of ten thousand activations takes a second to read, and nine parts of ten are left alone."""
        begun_ms = self._proposer.now_ms()
        await self._follow_up(cluster, attempts)
        now_ms = self._proposer.now_ms()
        rest_ms = min(FOLLOW_RESTS * (now_ms - begun_ms), round(self._pace.follow_max_s * 1000))
        self._follow_next_ms[cluster] = now_ms + rest_ms

    async def _follow_up(self, cluster: str, attempts: Mapping[str, Attempt]) -> None:
        """An activation that has ended and left no outcome in the store has failed."""
        since_ms = min(attempt.sent_ms for attempt in attempts.values()) - CLOCK_SKEW_MS
        try:
            records = await self._providers[cluster].ended(attempts.keys(), since_ms=since_ms)
        except ProviderError as exc:
            log.warning("could not follow up", cluster=cluster, problem=str(exc))
            return
        await self._settle((attempts[one], record) for one, record in records.items())

    async def _settle(self, ended: Iterable[tuple[Attempt, Activation]]) -> None:
        """Activations that have ended: what they published counts, silence is failure."""
        over = {attempt.key: record for attempt, record in ended}
        if not over:
            return
        # Asked after the end was seen: a function publishes before it returns.
        outcomes = await self._store.outcomes(over.keys())
        claims = await self._store.claims([key for key in over if key not in outcomes])
        for key, record in over.items():
            claim = claims.get(key)
            if key in outcomes:
                continue  # the next look at the store takes it in
            if claim is not None and claim.activation_id != record.activation_id:
                await self._proposer.sent(key, claim.activation_id)  # another one holds the key
                continue
            reason = record.reason or f"ended ({record.status}) and left no result"
            await self._proposer.failed(key, reason)

    async def _tick(self) -> int:
        due_ms = next_due_ms(self._proposer.state)
        if due_ms is None or due_ms > self._proposer.now_ms():
            return 0
        await self._proposer.propose(Tick(epoch=self._proposer.epoch, at_ms=self._proposer.now_ms()))
        return 1
