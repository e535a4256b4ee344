"""Platforms and keepers without either: the real core and the memory log, driven by a script of rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkeeper import deployment
from fedkeeper.cli.cluster_view import Overview
from fedkeeper.cli.session import Backend, Reach
from fedkeeper.config import Experiment, load
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import (
    AttemptStatus,
    ClaimConductor,
    ClientPlace,
    ForgetRun,
    FunctionsDeployed,
    InvocationFailed,
    InvocationSent,
    Kind,
    ObjectRef,
    RoundAggregated,
    Run,
    RunSpec,
    StopRun,
    SubmitRun,
    Tick,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.errors import FedKeeperError, NotThere, Rejected
from fedkeeper.keeper.api.runs import summaries
from fedkeeper.keeper.api.schemas import KeeperStatus, RunSummary, Status
from fedkeeper.keeper.client import Json, Versioned
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
        "deploy_timeout_ms": 60_000,
    }
    return RunSpec(**(values | changes))


@dataclass
class Script:
    """What the fakes do. `failing`: clients whose every attempt fails; times move by `step_ms`."""

    accuracies: tuple[float | None, ...] = (0.5, 0.8, 0.96)
    failing: dict[str, str] = field(default_factory=dict)
    init_failure: str = ""
    rounds_then_wait: int | None = None  # after so many rounds nothing happens until a stop is asked for
    step_ms: int = 100
    breaks: Exception | None = None  # raised by `follow` after the first round
    export: FedKeeperError | None = None
    on_wait: Callable[[], None] | None = None  # called when the waiting begins
    deaf: bool = False  # never says whether anybody else needs the keepers
    slow_start: bool = False  # a run is never taken
    embedded: bool = True  # the keepers
    shared: bool = False  # another command uses them
    notices: tuple[str, ...] = ()  # of `follow`
    keeper_breaks: FedKeeperError | None = None  # why a keeper that is hosted ends


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
            case Kind.DEPLOY:
                return FunctionsDeployed(
                    key=attempt.key, urls={}, summary="5 created", epoch=epoch, at_ms=self._tick()
                )
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
            case Kind.AGGREGATE | Kind.SHARD:  # these runs have one shard
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

    def __init__(self, world: World) -> None:
        self.providers = world.platforms

    def targets(self) -> tuple[Target, ...]:
        return TARGETS

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        chosen = TARGETS if targets is None else targets
        wants = [want for one in chosen for want in wanted(one.cluster, one.function)]
        return await deployment.deploy(wants, self.providers, in_flight_max=4, progress=progress)


class FakeCluster:
    """A `cli.session.Cluster` of one keeper, that conducts while it is followed."""

    def __init__(self, experiment: Experiment, world: World) -> None:
        self.experiment = experiment
        self.world = world
        self.script = world.script
        self.log = world.log
        self.driver = Driver(self.log, self.script)

    @property
    def embedded(self) -> bool:
        return self.script.embedded

    async def begin(self, *, fresh: bool, new: bool) -> tuple[str, Run | None]:
        self.world.started.append((fresh, new))
        if self.script.slow_start:
            await self.wait()
        name = f"{self.experiment.name}-{2 if new else 1}"
        before = self.log.state.runs.get(name)
        await self.driver.submit(spec(name))
        return name, before

    async def runs(self) -> tuple[RunSummary, ...]:
        return summaries(self.log.state)

    async def run(self, name: str) -> Run:
        return self.log.state.runs[name]

    async def follow(self, run: str, notice: Callable[[str], None]) -> AsyncIterator[Run]:
        seen: list[Run] = [self.log.state.runs[run]]
        stop = self.log.listen(lambda _, applied: seen.append(applied.state.runs[run]))
        for text in self.script.notices:
            notice(text)
        going = True
        try:
            while going:
                going = await self.driver.step(run)
                await asyncio.sleep(0)
                for one in seen:
                    yield one
                seen.clear()
                done = len(self.log.state.runs[run].history)
                if self.script.breaks is not None and done == 1:
                    raise self.script.breaks
                if done == self.script.rounds_then_wait:
                    await self.wait()
        finally:
            stop()

    async def wait(self) -> None:
        """Say so, and wait for ever."""
        if self.script.on_wait is not None:
            self.script.on_wait()
        await asyncio.Event().wait()

    async def reported(self, run: Run) -> None:
        self.world.asked.append(("reported", run.spec.run))

    async def stop_run(self, run: str, reason: str) -> Run:
        await self.log.propose(StopRun(run=run, reason=reason, at_ms=self.driver.at_ms))
        return self.log.state.runs[run]

    async def forget_run(self, run: str) -> None:
        await self.log.propose(ForgetRun(run=run, at_ms=self.driver.at_ms))

    async def export_model(self, run: Run, path: Path) -> None:
        if self.script.export is not None:
            raise self.script.export
        await asyncio.to_thread(path.write_bytes, b"weights")

    async def alone(self, run: str) -> bool:
        if self.script.deaf:
            await asyncio.Event().wait()
        return self.script.embedded and not self.script.shared

    def at_close(self, *, end: bool) -> None:
        self.world.ended = end

    def how_to_start(self) -> str:
        return "start them"

    async def views(self) -> tuple[Mapping[str, Status], Mapping[str, str]]:
        return self.world.overview.answers, self.world.overview.silent

    async def handover(self, keeper: str) -> None:
        self.world.asked.append(("handover", keeper))

    async def add_keeper(self, name: str, address: str) -> None:
        self.world.asked.append(("add", name, address))

    async def remove_keeper(self, name: str) -> None:
        self.world.asked.append(("remove", name))

    async def get(self, name: str, *, stale: bool) -> Versioned:
        self.world.asked.append(("get", name, stale))
        if name not in self.world.entries:
            raise NotThere(f"no entry {name!r}", status=404)
        return self.world.entries[name]

    async def put(self, name: str, value: Json, *, expected: int | None) -> int:
        version = len(self.world.entries) + 1
        if expected is not None and expected != 0:
            raise Rejected(f"{name} has another version than {expected}", status=409)
        self.world.entries[name] = Versioned(value=value, version=version)
        return version

    async def delete(self, name: str, *, expected: int | None) -> None:
        await self.get(name, stale=False)
        del self.world.entries[name]

    async def entries(self, prefix: str, *, stale: bool) -> Mapping[str, Versioned]:
        return {name: one for name, one in self.world.entries.items() if name.startswith(prefix)}


def status(name: str = "k1", **changes: Any) -> Status:
    """What a keeper of three says: k1 leads and conducts."""
    values: dict[str, Any] = {
        "name": name,
        "role": "leader" if name == "k1" else "follower",
        "leader": "k1",
        "conductor": "k1",
        "conductor_why": "it leads",
        "conductor_since_ms": START_MS,
        "pinned": False,
        "epoch": 3,
        "term": 5,
        "commit_index": 120,
        "applied_index": 120,
        "last_index": 120,
        "ready": True,
        "problem": "",
        "members": ("k1", "k2", "k3"),
        "keepers": tuple(keeper(one) for one in ("k1", "k2", "k3")),
        "runs": (),
        "entries": 0,
        "now_ms": START_MS + 60_000,
    }
    return Status(**(values | changes))


def keeper(name: str, **changes: Any) -> KeeperStatus:
    """One of three, in good health."""
    values: dict[str, Any] = {
        "name": name,
        "api": f"http://127.0.0.1:700{name[1:]}",
        "address": "",
        "member": True,
        "alive": True,
        "connected": True,
        "leads": name == "k1",
        "conducts": name == "k1",
        "lag": 0,
        "version": 2,
        "started_ms": START_MS,
        "seen_ms": START_MS,
        "reason": "",
        "latencies": {},
    }
    return KeeperStatus(**(values | changes))


def healthy(**changes: Any) -> Overview:
    """All three answer."""
    return Overview(answers={name: status(name, **changes) for name in ("k1", "k2", "k3")}, silent={})


@dataclass
class World:
    """What outlives a command: platforms and the log. `backend()` is what the commands are given."""

    script: Script = field(default_factory=Script)
    platforms: dict[str, FakePlatform] = field(default_factory=dict)
    log: MemoryLog = field(default_factory=MemoryLog)
    overview: Overview = field(default_factory=healthy)
    entries: dict[str, Versioned] = field(default_factory=dict)
    started: list[tuple[bool, bool]] = field(default_factory=list)  # fresh, new
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    hosted: list[tuple[str, bool]] = field(default_factory=list)
    opened: list[tuple[str, tuple[str, ...] | None]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)  # how
    ended: bool | None = None  # what becomes of embedded keepers; None: not said
    closed: int = 0
    on_close: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        for name, platform in (("ow_a", "openwhisk"), ("ow_b", "openwhisk"), ("gcf_a", "google")):
            self.platforms.setdefault(name, FakePlatform(name, platform))

    def backend(self) -> Backend:
        return Backend(load=load, open=self._open, connect=self._connect, host=self._host)

    @asynccontextmanager
    async def _open(
        self, experiment: Experiment, *, scenario: str, clusters: Collection[str] | None
    ) -> AsyncIterator[FakeSession]:
        self.opened.append((scenario, None if clusters is None else tuple(clusters)))
        try:
            yield FakeSession(self)
        finally:
            self._close()

    @asynccontextmanager
    async def _connect(self, experiment: Experiment, *, reach: Reach) -> AsyncIterator[FakeCluster]:
        self.connected.append(reach)
        try:
            yield FakeCluster(experiment, self)
        finally:
            self._close()

    async def _host(
        self, experiment: Experiment, name: str, *, until_unused: bool, stop: asyncio.Event
    ) -> None:
        self.hosted.append((name, until_unused))
        if self.script.keeper_breaks is not None:
            raise self.script.keeper_breaks
        if self.script.on_wait is not None:
            self.script.on_wait()
            await stop.wait()

    def _close(self) -> None:
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
