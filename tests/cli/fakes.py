"""A session without platforms: the real core and the memory log, driven through a script of rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedkeeper import deployment, logs
from fedkeeper.cli.session import Backend
from fedkeeper.config import Experiment, load
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import (
    AttemptStatus,
    ClaimConductor,
    ClientPlace,
    InvocationFailed,
    InvocationSent,
    Kind,
    ObjectRef,
    RoundAggregated,
    Run,
    RunSpec,
    State,
    SubmitRun,
    Tick,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.errors import FedKeeperError
from fedkeeper.replication.base import Listener
from fedkeeper.replication.memory import MemoryLog
from tests.deployment.platform import FakePlatform, wanted

START_MS = 1_790_000_000_000
CLIENTS = (("client_0", "ow_a"), ("client_1", "ow_b"), ("client_2", "gcf_a"))
TARGETS = (
    Target(cluster="ow_a", function="fl_server_init"),
    Target(cluster="ow_a", function="fl_server_aggregator"),
    *(Target(cluster=cluster, function=client) for client, cluster in CLIENTS),
)


def ref(name: str) -> ObjectRef:
    """Weights that nobody looks at."""
    return ObjectRef(name=name, sha256="0" * 64, nbytes=1024 * 1024)


def spec(run: str = "mnist-1", **changes: object) -> RunSpec:
    """Three clients, three rounds, target 0.95."""
    values = {
        "run": run,
        "digest": "d",
        "seed": 1,
        "clients": tuple(ClientPlace(client=c, cluster=p, route="direct") for c, p in CLIENTS),
        "server_cluster": "ow_a",
        "clients_per_round": 3,
        "rounds_max": 3,
        "target_accuracy": 0.95,
        "min_updates": 1,
        "attempts_max": 2,
        "client_timeout_ms": 60_000,
        "server_timeout_ms": 60_000,
        "round_timeout_ms": 0,
        "retry_backoff_ms": 1_000,
    }
    return RunSpec(**(values | changes))


@dataclass
class Script:
    """What a fake session does. `failing`: clients whose every attempt fails; times move by `step_ms`."""

    accuracies: tuple[float | None, ...] = (0.5, 0.8, 0.96)
    failing: dict[str, str] = field(default_factory=dict)
    init_failure: str = ""
    rounds_then_wait: int | None = None  # after so many rounds nothing happens until a stop is asked for
    step_ms: int = 100
    breaks: Exception | None = None  # raised by `finished` after the first round
    export: FedKeeperError | None = None
    on_wait: Callable[[], None] | None = None  # called when the waiting begins
    deaf: bool = False  # does not hear that a stop is asked for
    slow_deploy: bool = False  # never ends


class Driver:
    """Answers the core's intents as platforms, store and clock would."""

    def __init__(self, log: MemoryLog, script: Script) -> None:
        self.log = log
        self.script = script
        self.at_ms = max(START_MS, log.state.now_ms)

    async def submit(self, run: RunSpec) -> None:
        await self.log.propose(
            ClaimConductor(keeper="k1", expected_epoch=self.log.state.epoch, at_ms=self._tick())
        )
        if run.run not in self.log.state.runs:
            await self.log.propose(SubmitRun(spec=run, at_ms=self._tick()))

    async def step(self, name: str) -> bool:
        """Answer every attempt that is out; False when the run has ended."""
        run = self.log.state.runs[name]
        if run.phase in ENDED:
            return False
        for attempt in tuple(run.outbox.values()):
            epoch = self.log.state.epoch
            if attempt.status is AttemptStatus.PENDING:
                self.at_ms = max(self.at_ms, attempt.not_before_ms)
                await self.log.propose(Tick(epoch=epoch, at_ms=self._tick()))
                continue
            sent = InvocationSent(
                key=attempt.key, activation_id=f"id-{attempt.key}", epoch=epoch, at_ms=self._tick()
            )
            await self.log.propose(sent)
            await self.log.propose(self._answer(run, attempt, epoch))
        return True

    def _answer(self, run: Run, attempt, epoch):
        failure = self.script.failing.get(attempt.client, "")
        if attempt.kind is Kind.INIT:
            failure = self.script.init_failure
        if failure:
            return InvocationFailed(key=attempt.key, reason=failure, epoch=epoch, at_ms=self._tick())
        match attempt.kind:
            case Kind.INIT:
                samples = {place.client: 100 for place in run.spec.clients}
                return WeightsInitialised(
                    key=attempt.key, weights=ref("w0"), samples=samples, epoch=epoch, at_ms=self._tick()
                )
            case Kind.TRAIN:
                return UpdateStored(
                    key=attempt.key,
                    ref=ref(attempt.key),
                    samples=100,
                    loss=0.3,
                    accuracy=0.9,
                    epoch=epoch,
                    at_ms=self._tick(),
                )
            case Kind.AGGREGATE:
                return RoundAggregated(
                    key=attempt.key,
                    base=run.weights,
                    weights=ref(f"w{run.round}"),
                    updates=tuple(update.key for update in run.updates.values()),
                    loss=1.0 / run.round,
                    accuracy=self.script.accuracies[run.round - 1],
                    aggregate_s=0.02,
                    evaluate_s=0.01,
                    epoch=epoch,
                    at_ms=self._tick(),
                )

    def _tick(self) -> int:
        self.at_ms += self.script.step_ms
        return self.at_ms


class FakeSession:
    """A `cli.session.Session`."""

    def __init__(self, experiment: Experiment, script: Script, log: MemoryLog, world: World) -> None:
        self.experiment = experiment
        self.providers = world.platforms
        self.script = script
        self.log = log
        self.driver = Driver(log, script)
        self.stop = asyncio.Event()
        self.world = world

    @property
    def state(self) -> State:
        return self.log.state

    def targets(self) -> tuple[Target, ...]:
        return TARGETS

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        chosen = TARGETS if targets is None else targets
        if self.script.slow_deploy:
            await self.wait()
        wants = [want for one in chosen for want in wanted(one.cluster, one.function)]
        return await deployment.deploy(wants, self.providers, in_flight_max=4, progress=progress)

    async def start(self, *, fresh: bool) -> str:
        self.world.started.append(fresh)
        name = f"{self.experiment.name}-1"
        logs.to_folder(self.experiment.logs.folder / name, run=name)
        await self.driver.submit(spec(name))
        return name

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self.log.listen(listener)

    async def finished(self, run: str) -> Run:
        while await self.driver.step(run):
            await asyncio.sleep(0)
            done = len(self.state.runs[run].history)
            if self.script.breaks is not None and done == 1:
                raise self.script.breaks
            if done == self.script.rounds_then_wait:
                await self.wait()
                break
        return self.state.runs[run]

    async def wait(self) -> None:
        """Say so, and wait for a stop."""
        if self.script.on_wait is not None:
            self.script.on_wait()
        await self.stop.wait()

    def request_stop(self) -> None:
        if not self.script.deaf:
            self.stop.set()

    async def export_model(self, run: str, path: Path) -> None:
        if self.script.export is not None:
            raise self.script.export
        await asyncio.to_thread(path.write_bytes, b"weights")


@dataclass
class World:
    """What outlives a session: platforms and the log. `backend()` is what the commands are given."""

    script: Script = field(default_factory=Script)
    platforms: dict[str, FakePlatform] = field(default_factory=dict)
    log: MemoryLog = field(default_factory=MemoryLog)
    started: list[bool] = field(default_factory=list)
    opened: list[tuple[str, tuple[str, ...] | None, bool]] = field(default_factory=list)
    closed: int = 0
    on_close: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        for name, platform in (("ow_a", "openwhisk"), ("ow_b", "openwhisk"), ("gcf_a", "google")):
            self.platforms.setdefault(name, FakePlatform(name, platform))

    def backend(self) -> Backend:
        return Backend(load=load, open=self._open)

    @asynccontextmanager
    async def _open(
        self, experiment: Experiment, *, scenario: str, clusters: Collection[str] | None, learn: bool
    ) -> AsyncIterator[FakeSession]:
        self.opened.append((scenario, None if clusters is None else tuple(clusters), learn))
        try:
            yield FakeSession(experiment, self.script, self.log, self)
        finally:
            self.closed += 1
            if self.on_close is not None:
                self.on_close()


CONFIG = """\
name: mnist
logs: {folder: logs}
providers:
  openwhisk:
    ow_a: {embedded: true}
    ow_b: {embedded: true}
  google:
    gcf_a: {embedded: true}
scenarios:
  federated_learning:
    server_config: {server_cluster_name: ow_a}
    clients_info: {total_num_clients: 3, num_clients_per_round: 3, ow_clients_count: 2, gcf_clients_count: 1}
    mongo_config: {embedded: true}
    training_test_data:
      train_images_url: https://example.org/mnist.npz
      train_labels_url: https://example.org/mnist.npz
      test_images_url: https://example.org/mnist.npz
      test_labels_url: https://example.org/mnist.npz
    stopping: {rounds_max: 3, target_accuracy: 0.95}
  test:
    functions:
      nodeinfo: {openwhisk: {memory: 256}, google: {memory: 256}}
      only_ow: {openwhisk: {func_path: only_ow}}
"""
SECRET = "23bc46b1:long-key-of-theirs"
REAL = CONFIG.replace(
    "ow_b: {embedded: true}",
    f"ow_b: {{auth: {{ow_api_host: 'https://10.0.0.1', ow_auth: '{SECRET}'}}, tls_verify: false}}",
).replace("mongo_config: {embedded: true}", "mongo_config: {url: 'db.example.org:27017'}")
