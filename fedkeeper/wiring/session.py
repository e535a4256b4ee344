"""One experiment, opened: platforms, store, log, engine and reports, for the commands to work with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from fedkeeper import deployment, logs, report
from fedkeeper.clock import Clock, SystemClock
from fedkeeper.config import Experiment, Learning
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import (
    Applied,
    ClientPlace,
    Command,
    ForgetRun,
    RoundCommitted,
    Run,
    RunSpec,
    State,
    StopRun,
    SubmitRun,
)
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.errors import ConfigError, DeploymentFailed, RunChanged, RunFailed
from fedkeeper.keeper.engine import Engine, Pace
from fedkeeper.keeper.invoking import Invoker
from fedkeeper.keeper.recording import Record, Recorder
from fedkeeper.keeper.runs import Start, plan_start
from fedkeeper.keeper.tasks import AGGREGATE_FUNCTION, INIT_FUNCTION, TaskBook
from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Provider
from fedkeeper.replication.base import Listener, Log
from fedkeeper.replication.single import SingleLog
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.tensors import pack
from fedkeeper.runtime.wire import encode
from fedkeeper.weights.base import UpdateStore
from fedkeeper.weights.embedded import open_embedded_mongo
from fedkeeper.weights.mongo import MongoUpdates
from fedkeeper.wiring.clusters import Clusters, open_clusters
from fedkeeper.wiring.keeping import keep_alive, keep_open
from fedkeeper.wiring.packages import Packages, learning_targets

log = structlog.get_logger(__name__)

KEEPER = "k1"
RECORDS_WAIT_S = 15.0  # for the platforms' records of the last round, after the run has ended
ORPHANS_OLDER_THAN_S = 86_400.0


@dataclass(slots=True, kw_only=True)
class ExperimentSession:
    """What `open_experiment` gives. `start` and what follows need it opened with `learn`."""

    experiment: Experiment
    clusters: Clusters
    packages: Packages
    clock: Clock
    stack: AsyncExitStack
    store_address: StoreAddress | None = field(default=None, repr=False)
    store: UpdateStore | None = None
    log: Log | None = None
    _urls: dict[Target, str] = field(default_factory=dict)
    _conducting: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _recorder: Recorder | None = None

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The clusters that were asked for, by name."""
        return self.clusters.providers

    @property
    def state(self) -> State:
        """The replicated state; an immutable value, so any thread may read it."""
        return self._log.state

    def targets(self) -> tuple[Target, ...]:
        """Where `main.py` deploys: each client under its name, server functions on the server's cluster."""
        return learning_targets(self.experiment)

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        """Build and deploy `targets`, those of `targets()` if None. "client_3" is made from fl_client."""
        wanted = [self.packages.wanted(one) for one in (self.targets() if targets is None else targets)]
        lines = await deployment.deploy(
            wanted,
            self.providers,
            in_flight_max=self.experiment.limits.deployments_in_flight_max,
            progress=progress,
        )
        for line in lines:
            if line.url:
                self._urls[Target(cluster=line.cluster, function=line.function)] = line.url
        return lines

    async def start(self, *, fresh: bool) -> str:
        """Resume the unfinished run of this experiment, or begin the next; return its name.

        Its functions must have been deployed in this session. RunChanged if there is an unfinished run with
        another config and `fresh` is not set.
        """
        start = self._plan(fresh=fresh)
        name = start.run
        logs.to_folder(self._folder(name), run=name)
        for old in start.abandon:
            reason = "abandoned by the user"
            await self._log.propose(StopRun(run=old, reason=reason, at_ms=self.clock.now_ms()))
        for old in start.forget:  # the store first: a name that comes up again must find nothing there
            await self._store.drop(old)
            await self._log.propose(ForgetRun(run=old, at_ms=self.clock.now_ms()))
        if not start.resumed:
            self._fingerprint_file(name).write_text(json.dumps(self.experiment.fingerprint(), indent=1))
            applied = await self._log.propose(SubmitRun(spec=self._spec(name), at_ms=self.clock.now_ms()))
            if applied.rejected:
                raise RunFailed(f"run {name} was not taken: {applied.rejected}")
        orphans = await self._store.sweep(older_than_s=ORPHANS_OLDER_THAN_S)
        if orphans:
            log.info("removed blobs that a killed upload left", blobs=orphans)
        log.info("run resumed" if start.resumed else "run begun", run=name)
        self._report(name)
        self._conduct()
        return name

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, on the event loop; returns how to stop."""
        return self._log.listen(listener)

    async def finished(self, run: str) -> Run:
        """The run at its end, or as it stands after `request_stop`. Raises what made going on impossible."""
        assert self._conducting is not None, "start first"
        while self.state.runs[run].phase not in ENDED and not self._stop.is_set():
            changed, stopped = (asyncio.ensure_future(one.wait()) for one in (self._changed, self._stop))
            await asyncio.wait({self._conducting, changed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for waiting in (changed, stopped):
                waiting.cancel()
            if self._conducting.done():
                self._conducting.result()
            self._changed.clear()
        if self.state.runs[run].phase in ENDED and self._recorder is not None:
            await self._recorder.drain(RECORDS_WAIT_S)
        return self.state.runs[run]

    def request_stop(self) -> None:
        """Let `finished` return soon, with everything that was decided on disk."""
        self._stop.set()

    async def export_model(self, run: str, path: Path) -> None:
        """Write the weights of the last committed round to `path` (safetensors)."""
        weights = self.state.runs[run].weights
        if weights is None or self.store_address is None:
            raise RunFailed(f"run {run} has no weights yet")

        def fetch(address: StoreAddress) -> None:
            objects = open_store(address)
            try:
                tensors = objects.get(weights.name, sha256=weights.sha256)
            finally:
                objects.close()
            fresh = path.with_suffix(".new")
            try:
                fresh.write_bytes(pack(tensors, {"run": run, "sha256": weights.sha256}))
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)

        await asyncio.to_thread(fetch, self.store_address)

    # --- how -----------------------------------------------------------------------------------------

    @property
    def _log(self) -> Log:
        assert self.log is not None, "open the experiment with learn=True"
        return self.log

    @property
    def _store(self) -> UpdateStore:
        assert self.store is not None, "open the experiment with learn=True"
        return self.store

    def _plan(self, *, fresh: bool) -> Start:
        name, digest = self.experiment.name, self.experiment.digest()
        unfinished = [run.spec.run for run in self.state.runs.values() if run.phase not in ENDED]
        try:
            return plan_start(self.state, name, digest, fresh=fresh, taken=self._taken())
        except RunChanged as exc:
            changed = ", ".join(self._changed_keys(unfinished[-1]))
            raise RunChanged(f"{exc}; changed: {changed}", hint=exc.hint) from None

    def _changed_keys(self, run: str) -> list[str]:
        try:
            before: dict[str, Any] = json.loads(self._fingerprint_file(run).read_text())
        except (OSError, ValueError):
            return ["unknown, its fingerprint is gone"]
        now = self.experiment.fingerprint()
        return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))

    def _fingerprint_file(self, run: str) -> Path:
        return keeper_folder(self.experiment) / f"{run}.experiment.json"

    def _taken(self) -> list[str]:
        folder = self.experiment.logs.folder
        return [one.name for one in folder.iterdir()] if folder.is_dir() else []

    def _folder(self, run: str) -> Path:
        return self.experiment.logs.folder / run

    def _spec(self, run: str) -> RunSpec:
        learning = self.experiment.learning
        limits, stopping = learning.limits, learning.stopping
        return RunSpec(
            run=run,
            digest=self.experiment.digest(),
            seed=self.experiment.learning_seed,
            clients=tuple(
                ClientPlace(client=place.client, cluster=place.cluster, route=place.route)
                for place in self.experiment.placements()
            ),
            server_cluster=learning.server_config.server_cluster_name,
            clients_per_round=learning.clients_info.num_clients_per_round,
            rounds_max=stopping.rounds_max,
            target_accuracy=stopping.target_accuracy,
            min_updates=learning.min_updates,
            attempts_max=limits.attempts_max,
            client_timeout_ms=round(limits.client_timeout_s * 1000),
            server_timeout_ms=round(limits.server_timeout_s * 1000),
            round_timeout_ms=round(limits.round_timeout_s * 1000),
            retry_backoff_ms=round(limits.retry_backoff_s * 1000),
        )

    def _book(self, _: Run) -> TaskBook:
        learning = self.experiment.learning
        return TaskBook(
            model=learning.model_spec(),
            data=learning.data_spec(),
            training=learning.training_spec(),
            partition=learning.partition_spec(),
            max_model_bytes=learning.limits.model_bytes_max,
            client_urls={target.function: url for target, url in self._urls.items()},
        )

    def _conduct(self) -> None:
        limits = self.experiment.learning.limits
        engine = Engine(
            keeper=KEEPER,
            log=self._log,
            store=self._store,
            invoker=Invoker(
                providers=self.providers,
                store=self._store,
                clock=self.clock,
                redeploy=self._redeploy,
                in_flight_max=self.experiment.in_flight_max,
                platform_wait_s=limits.platform_wait_s,
            ),
            books=self._book,
            clock=self.clock,
            pace=Pace(
                poll_min_s=limits.poll_interval_s,
                poll_max_s=limits.poll_interval_max_s,
                follow_s=limits.activations_interval_s,
                keep_rounds=limits.keep_rounds,
            ),
        )
        self._conducting = keep_open(self.stack, engine.run())

    async def _redeploy(self, cluster: str, function: str) -> None:
        [line] = await self.deploy(lambda _: None, [Target(cluster=cluster, function=function)])
        if line in deployment.failures([line]):
            raise DeploymentFailed(cluster, function, line.problem, hint=line.hint)

    # --- reports ---------------------------------------------------------------------------------------

    def _report(self, run: str) -> None:
        """Keep logs/<run>/ up to date from here on; what an earlier keeper left unwritten is written now."""
        files = report.Report(self._folder(run))
        files.config(self.experiment.redacted())
        self._write_params(run)
        files.rounds(self.state.runs[run])

        def on_applied(_: Command, applied: Applied) -> None:
            self._changed.set()
            if any(isinstance(one, RoundCommitted) and one.run == run for one in applied.intents):
                files.rounds(applied.state.runs[run])

        def on_record(record: Record) -> None:
            row = report.activation_row(
                record.attempt,
                platform=self.providers[record.attempt.cluster].platform,
                function=record.function,
                invoked_on=record.cluster,
                activation=record.activation,
            )
            files.activations([row])
            if record.activation is not None and record.activation.logs:
                files.function_log(record.attempt.key, record.activation)

        self.stack.callback(self._log.listen(on_applied))
        self._recorder = Recorder(
            run=run, log=self._log, providers=self.providers, sink=on_record, clock=self.clock
        )
        self.stack.push_async_callback(self._recorder.close)

    def _write_params(self, run: str) -> None:
        """What the functions will be told in the first round, for people to look at."""
        book, state = self._book(self.state.runs[run]), self.state.runs[run]
        learning = self.experiment.learning
        init = encode(book.init_task(state, f"{run}/init/a0"))
        common = {"run": run, "data": init["data"], "model": init["model"]}
        training = encode(learning.training_spec())
        server = self.experiment.cluster(learning.server_config.server_cluster_name).platform
        client = self.experiment.placements()[0].cluster
        report.write_params(
            init=(self.experiment.params_path(INIT_FUNCTION, server), init),
            usage=(
                self.experiment.params_path(AGGREGATE_FUNCTION, server),
                {**common, "clients": [place.client for place in self.experiment.placements()]},
            ),
            folder=self.experiment.params_path(
                learning.client_function, self.experiment.cluster(client).platform
            ),
            clients={
                place.client: {
                    **common,
                    "client": place.client,
                    "cluster": place.cluster,
                    "route": place.route,
                    "url": self._urls.get(Target(cluster=place.cluster, function=place.client), ""),
                    "training": training,
                }
                for place in self.experiment.placements()
            },
        )


@asynccontextmanager
async def open_experiment(
    experiment: Experiment,
    *,
    scenario: str | None = None,
    clusters: Collection[str] | None = None,
    learn: bool = False,
) -> AsyncIterator[ExperimentSession]:
    """Open what the experiment needs; everything is closed in the reverse order, whatever happens.

    Args:
        experiment: the config, loaded.
        scenario: whose functions are deployed; the one that is learned if None.
        clusters: names of those to open; all if None.
        learn: also the log and the engine's side of the store, for `start`.
    """
    chosen = experiment.learning_name if scenario is None else scenario
    learning = isinstance(experiment.scenario(chosen), Learning)
    async with AsyncExitStack() as stack:
        store = None
        if learning:
            store = await _open_store(experiment, stack)
            if store.password:
                register_secret(SecretStr(store.password))
        names = tuple(experiment.clusters()) if clusters is None else tuple(clusters)
        opened = await open_clusters(experiment, names, stack)
        session = ExperimentSession(
            experiment=experiment,
            clusters=opened,
            packages=Packages(experiment=experiment, scenario=chosen, store=store, access=opened.access),
            clock=SystemClock(),
            stack=stack,
            store_address=store,
        )
        if learn:
            if store is None:
                raise ConfigError(f"scenario {chosen!r} has nothing to learn")
            session.store = MongoUpdates(store)
            stack.push_async_callback(session.store.close)
            await session.store.ping()
            session.log = await stack.enter_async_context(SingleLog.open(keeper_folder(experiment)))
        yield session


def keeper_folder(experiment: Experiment) -> Path:
    """Where the keeper's log of this experiment lives."""
    return experiment.embedded.data_dir / "keepers" / experiment.name / KEEPER


async def _open_store(experiment: Experiment, stack: AsyncExitStack) -> StoreAddress:
    mongo = experiment.learning.mongo_config
    if not mongo.embedded:
        return mongo.address()
    opened = await open_embedded_mongo(
        experiment.embedded.data_dir / "mongo",
        port=mongo.port,
        database=mongo.db,
        collection=mongo.collection,
        cache_mb=mongo.cache_mb,
        linger_s=experiment.embedded.linger_s,
        start_timeout_s=experiment.embedded.start_timeout_s,
    )
    stack.push_async_callback(opened.close)
    keep_open(stack, keep_alive("mongod's guard", opened.running.ensure, SystemClock()))
    return replace(opened.address, wait_s=mongo.wait_s)
