"""The files of each run, in `logs.folder` of who conducts it, and the functions' inputs in params/."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Final

import structlog

from fedkeeper import report
from fedkeeper.config import Experiment
from fedkeeper.core.model import Attempt, AttemptStatus, Run
from fedkeeper.errors import TaskError
from fedkeeper.keeper.ports import Record
from fedkeeper.keeper.tasks import AGGREGATE_FUNCTION, INIT_FUNCTION, TaskBook, book_of
from fedkeeper.providers.base import Provider
from fedkeeper.runtime.wire import encode

ROUNDS_OPEN: Final = 3  # of which lines may change: attempts end within two, and some records come late
FAILURES: Final = (AttemptStatus.FAILED, AttemptStatus.SILENT)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReports:
    """A `keeper.ports.Reports` on disk."""

    experiment: Experiment
    providers: Mapping[str, Provider]
    _reports: dict[str, report.Report] = field(default_factory=dict)
    _with_urls: set[str] = field(default_factory=set)  # runs whose params/ are whole
    # Of params/: one after the other, also when this keeper conducts anew before the last writing has ended.
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "params"))

    def take_over(self) -> None:
        """Forget what the files held when this keeper last conducted."""
        self._reports.clear()

    def lacks(self, attempt: Attempt) -> bool:
        """Whether activations.csv has it otherwise, or without what its platform says."""
        return self._of(attempt.run).lacks(attempt)

    async def begin(self, run: Run) -> None:
        """Config, inputs, and all rounds so far."""
        files = self._files(run)
        book = _book(run)
        if book is not None and book.config:
            files.config(book.config)
        self._rounds(run)
        if book is not None:
            await self._params(run, book)

    async def changed(self, run: Run) -> None:
        """All rounds so far."""
        self._rounds(run)
        if run.urls and run.spec.run not in self._with_urls and (book := _book(run)) is not None:
            await self._params(run, book)

    async def _params(self, run: Run, book: TaskBook) -> None:
        """On a thread: a file for each of ten thousand clients takes longer than a lease lasts."""
        if run.urls:
            self._with_urls.add(run.spec.run)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write_params, run, book)

    def record(self, records: Sequence[Record]) -> None:
        """Their lines, and what their functions wrote."""
        rows: dict[str, list[report.ActivationRow]] = {}
        for record in records:
            attempt = record.attempt
            if record.activation is not None and record.activation.logs:
                # First: its line says that all is there.
                self._of(attempt.run).function_log(attempt.key, record.activation)
            home = self.providers.get(attempt.cluster)
            row = report.activation_row(
                attempt,
                platform=home.platform if home is not None else record.platform,
                function=record.function,
                invoked_on=record.cluster,
                activation=record.activation,
            )
            rows.setdefault(attempt.run, []).append(row)
        attempts = {record.attempt.key: record.attempt for record in records}
        for run, some in rows.items():
            for news in self._of(run).activations(some):
                if news.status in FAILURES:
                    log.warning(
                        "attempt failed",
                        run=run,
                        key=news.key,
                        cluster=attempts[news.key].cluster,
                        activation_id=news.activation_id,
                        status=news.status,
                        reason=news.reason,
                    )

    async def ended(self, run: Run) -> None:
        """The model, if a round was committed and it is not there yet."""
        from fedkeeper.wiring.models import write_model  # noqa: PLC0415 - numpy, only needed here

        files = self._files(run)
        self._rounds(run)
        self._reports.pop(run.spec.run, None)
        path = files.folder / "model.safetensors"
        if not path.exists():  # or an earlier conductor has said so
            log.info(
                "run ended",
                run=run.spec.run,
                phase=str(run.phase),
                rounds=len(run.history),
                reason=run.reason,
            )
        if run.history and run.weights is not None and not path.exists():
            await write_model(self.experiment, run.spec.run, run.weights, path)
            log.info("model written", run=run.spec.run, path=str(path))

    def _rounds(self, run: Run) -> None:
        """rounds.csv, and an event for each that it did not have yet: whoever follows the run, or nobody."""
        files = self._files(run)
        files.forget(run.round - ROUNDS_OPEN + 1)
        for row in files.rounds(run):
            log.info("round finished", run=run.spec.run, **asdict(row))

    def _files(self, run: Run) -> report.Report:
        return self._of(run.spec.run)

    def _of(self, run: str) -> report.Report:
        if run not in self._reports:
            self._reports[run] = report.Report(self.experiment.logs.folder / run)
        return self._reports[run]

    def _write_params(self, run: Run, book: TaskBook) -> None:
        """What the functions will be told in the first round, for people to look at."""
        name, spec, learning = run.spec.run, run.spec, self.experiment.learning
        init = encode(book.init_task(run, f"{name}/init/a0"))
        common = {"run": name, "data": init["data"], "model": init["model"]}
        training = encode(book.training)
        server = self.experiment.cluster(spec.server_cluster).platform
        client = self.experiment.cluster(spec.clients[0].cluster).platform
        report.write_params(
            init=(self.experiment.params_path(INIT_FUNCTION, server), init),
            usage=(
                self.experiment.params_path(AGGREGATE_FUNCTION, server),
                {**common, "clients": [place.client for place in spec.clients]},
            ),
            folder=self.experiment.params_path(learning.client_function, client),
            clients={
                place.client: {
                    **common,
                    "client": place.client,
                    "cluster": place.cluster,
                    "route": place.route,
                    "url": run.urls.get(place.client, ""),
                    "training": training,
                }
                for place in spec.clients
            },
        )


def _book(run: Run) -> TaskBook | None:
    try:
        return book_of(run)
    except TaskError as exc:
        log.warning("no inputs to write", run=run.spec.run, problem=str(exc))
        return None
