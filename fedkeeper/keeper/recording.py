"""What is reported of the runs by the keeper that conducts, beside the rounds and never in their way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Applied, Attempt, AttemptStatus, Command, Kind, RoundCommitted, Run, State
from fedkeeper.core.persistent import Grown
from fedkeeper.errors import EpochOver, FedKeeperError
from fedkeeper.keeper.fetching import Fetcher, Found, Wanted
from fedkeeper.keeper.lease import Lease
from fedkeeper.keeper.ports import Record, Reports
from fedkeeper.keeper.tasks import invoked_on
from fedkeeper.providers.base import Provider
from fedkeeper.replication.base import Log

log = structlog.get_logger(__name__)

RECORDS_WAIT_S = 15.0  # for the records of the last round, after the run has ended
RECENT_MS = 600_000  # a run that ended this long ago, or longer, has its reports from those who saw it


class Recorder:
    """One epoch's. Hands each run's rounds and ended attempts to the reports, those of the past as well."""

    def __init__(
        self,
        *,
        log: Log,
        providers: Mapping[str, Provider],
        reports: Reports,
        lease: Lease,
        clock: Clock,
    ) -> None:
        self._log = log
        self._providers = providers
        self._reports = reports
        self._lease = lease
        self._clock = clock
        self._all: Mapping[str, Run] = {}  # as last looked at
        self._runs: dict[str, Run] = {}  # those of them that are reported
        self._known: dict[str, set[tuple[str, AttemptStatus]]] = {}
        self._fetchers: dict[str, tuple[Fetcher, asyncio.Task[None]]] = {}  # by cluster
        # What is to be written yet, by run: bounded by the attempts of two rounds.
        self._tasks: dict[str, set[asyncio.Future[None]]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        self._reports.take_over()
        stop = self._log.listen(self._on_applied)
        try:
            for run in _worth_reporting(self._log.state):
                self._look(run, committed=False)
            await asyncio.get_running_loop().create_future()
        finally:
            stop()
            fetching = [task for _, task in self._fetchers.values()]
            tasks = [*fetching, *(task for tasks in self._tasks.values() for task in tasks)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait for what is being fetched and written now."""
        for fetcher, _ in self._fetchers.values():
            fetcher.hurry()
        while tasks := [task for tasks in self._tasks.values() for task in tasks]:
            await asyncio.wait(tasks)

    def _on_applied(self, command: Command, applied: Applied) -> None:
        if applied.state.runs is self._all:
            return
        self._all = applied.state.runs
        committed = {intent.run for intent in applied.intents if isinstance(intent, RoundCommitted)}
        for name in self._runs.keys() - applied.state.runs.keys():
            self._drop(name)
        for name, run in applied.state.runs.items():
            known = self._runs.get(name)
            if known is not run and (known is not None or run.phase not in ENDED):
                self._look(run, committed=name in committed)

    def _look(self, run: Run, *, committed: bool) -> None:
        name = run.spec.run
        before = self._runs.get(name)
        self._runs[name] = run
        if before is None:
            self._known[name] = set()
            self._spawn(name, self._begin, run)
        elif committed:
            self._spawn(name, self._changed, run)
        known, news = self._known[name], []
        for attempt in Grown.of(run.ended).news(before.ended if before is not None else ()):
            seen = (attempt.key, attempt.status)  # an update that counted may be refused later
            if seen not in known and attempt.kind is not Kind.DEPLOY:
                known.add(seen)
                news.append(attempt)
        if before is None and news:
            self._spawn(name, self._complete, run, news)
        else:
            for attempt in news:
                self._queue(run, attempt)
        if committed:  # rounds that are over for good are in `ended` no more
            known &= {(attempt.key, attempt.status) for attempt in run.ended}
        if run.phase in ENDED and (before is None or before.phase not in ENDED):
            self._spawn(name, self._end, run, tuple(self._tasks.get(name, ())))
            for fetcher, _ in self._fetchers.values():
                fetcher.hurry()

    def _spawn(self, name: str, act: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        tasks = self._tasks.setdefault(name, set())
        task = asyncio.ensure_future(_until_over(act, *args))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _queue(self, run: Run, attempt: Attempt) -> asyncio.Future[None]:
        """An attempt's record is fetched and written when its turn comes."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = self._tasks.setdefault(run.spec.run, set())
        left.add(written)
        written.add_done_callback(left.discard)
        cluster = invoked_on(run, attempt)[0]
        if cluster not in self._fetchers:
            fetcher = Fetcher(self._providers[cluster], self._clock, self._write)
            self._fetchers[cluster] = fetcher, asyncio.ensure_future(fetcher.run())
        self._fetchers[cluster][0].add(Wanted(run=run, attempt=attempt, written=written))
        return written

    async def _begin(self, run: Run) -> None:
        await self._lease.hold()  # only who conducts writes: on a shared folder two would mix their lines
        await self._reports.begin(run)

    async def _complete(self, run: Run, ended: Sequence[Attempt]) -> None:
        """What earlier conductors left out of the past: thousands of records, if it were all of it."""
        await self._lease.hold()  # until then another one may write
        missing = [attempt for attempt in ended if self._reports.lacks(attempt)]
        if missing and run.spec.run in self._runs:
            await asyncio.wait([self._queue(run, attempt) for attempt in missing])

    async def _changed(self, run: Run) -> None:
        await self._lease.hold()
        await self._reports.changed(run)

    async def _write(self, found: Found) -> None:
        records = []
        for one, activation in found:
            cluster, function = invoked_on(one.run, one.attempt)
            records.append(
                Record(
                    attempt=one.attempt,
                    cluster=cluster,
                    platform=self._providers[cluster].platform,
                    function=function,
                    activation=activation,
                )
            )
        await self._lease.hold()
        self._reports.record(records)

    async def _end(self, run: Run, before: tuple[asyncio.Future[None], ...]) -> None:
        """Once its records are in, or RECORDS_WAIT_S later."""
        if before:
            await asyncio.wait(before, timeout=RECORDS_WAIT_S)
        await self._lease.hold()
        try:
            await self._reports.ended(run)
        except (FedKeeperError, OSError) as exc:
            log.warning("the run's reports are not complete", run=run.spec.run, problem=str(exc))

    def _drop(self, name: str) -> None:
        """The run was forgotten."""
        del self._runs[name], self._known[name]
        for task in self._tasks.pop(name, set()):
            task.cancel()


async def _until_over(act: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
    with contextlib.suppress(EpochOver):
        await act(*args)


def _worth_reporting(state: State) -> list[Run]:
    return [
        run
        for run in state.runs.values()
        if run.phase not in ENDED or run.ended_ms > state.now_ms - RECENT_MS
    ]
