"""What the platforms say of each ended attempt, fetched beside the rounds and handed to the reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import Applied, Attempt, AttemptStatus, Command, Run
from fedkeeper.errors import ProviderError
from fedkeeper.keeper.tasks import invoked_on
from fedkeeper.providers.base import Activation, Provider
from fedkeeper.replication.base import Log

log = structlog.get_logger(__name__)

FETCHES_AT_ONCE = 8
TRIES_MAX = 4  # a platform writes its record a moment after the function has returned
TRY_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An ended attempt, and the platform's record of its activation (None: it keeps none)."""

    attempt: Attempt
    cluster: str
    platform: str
    function: str
    activation: Activation | None


class Recorder:
    """Listens to the log; each ended attempt of `run` is handed to `sink`, those of the past as well."""

    def __init__(
        self,
        *,
        run: str,
        log: Log,
        providers: Mapping[str, Provider],
        sink: Callable[[Record], None],
        clock: Clock,
    ) -> None:
        self._providers = providers
        self._sink = sink
        self._clock = clock
        self._run = run
        self._known: set[tuple[str, AttemptStatus]] = set()
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()  # bounded by the attempts of two rounds
        self._stop = log.listen(self._on_applied)
        if run in log.state.runs:
            self._note(log.state.runs[run])  # what ended while nobody was recording

    def _on_applied(self, command: Command, applied: Applied) -> None:
        if any(intent.run == self._run for intent in applied.intents):
            self._note(applied.state.runs[self._run])

    def _note(self, run: Run) -> None:
        for attempt in run.ended:
            seen = (attempt.key, attempt.status)  # an update that counted may be refused later
            if seen not in self._known:
                self._known.add(seen)
                task = asyncio.ensure_future(self._record(run, attempt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _record(self, run: Run, attempt: Attempt) -> None:
        cluster, function = invoked_on(run, attempt)
        provider = self._providers[cluster]
        activation = None
        async with self._slots:
            for _ in range(TRIES_MAX if attempt.activation_id else 0):
                try:
                    activation = await provider.activation(attempt.activation_id)
                except ProviderError as exc:
                    log.warning("no activation record", key=attempt.key, problem=str(exc))
                    break
                if activation is not None:
                    break
                await self._clock.sleep(TRY_AGAIN_S)
        self._sink(
            Record(
                attempt=attempt,
                cluster=cluster,
                platform=provider.platform,
                function=function,
                activation=activation,
            )
        )

    async def drain(self, timeout_s: float) -> None:
        """Wait for the records that are still being fetched, at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    async def close(self) -> None:
        """Stop listening; what is still being fetched is dropped (the next start fetches it)."""
        self._stop()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
