"""A small platform in memory: functions that behave as told, over the product's own memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkeeper.clock import SystemClock
from fedkeeper.core.conducting import Policy
from fedkeeper.core.model import Attempt, ClientPlace, KeeperStarted, Run, RunSpec, SubmitRun
from fedkeeper.errors import FunctionMissing
from fedkeeper.keeper.conducting import Conducting
from fedkeeper.keeper.engine import Tools
from fedkeeper.keeper.invoking import Invoker
from fedkeeper.keeper.lease import Seconds, since_boot_s
from fedkeeper.keeper.ports import Before, Deployment, Record
from fedkeeper.keeper.tasks import TaskBook
from fedkeeper.keeper.watching import Pace
from fedkeeper.providers.base import Activation, Deployed, Package, Progress, untold
from fedkeeper.replication.codec import VERSION
from fedkeeper.replication.memory import MemoryGroup, MemoryLog
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import (
    AggregateResult,
    AggregateTask,
    DataSpec,
    InitResult,
    InitTask,
    ModelSpec,
    Outcome,
    PartitionSpec,
    Ref,
    Source,
    TrainingSpec,
    TrainResult,
    TrainTask,
    decode,
    encode,
    weights_name,
)
from fedkeeper.weights.memory import MemoryUpdates

CLUSTER = "lab"
Behaviour = Callable[["Platform", str, Mapping[str, Any]], dict[str, Any]]


def ref(name: str) -> Ref:
    """A pointer to an object whose bytes nobody will look at."""
    return Ref(name=name, sha256="0" * 64, nbytes=8)


class Platform:
    """A Provider whose activations run as tasks; `behave` says what a function does instead of its work."""

    cluster = CLUSTER
    platform = "openwhisk"

    def __init__(self, objects: MemoryObjects) -> None:
        self.objects = objects
        self.invoked: list[str] = []  # keys, in the order of their invocations
        self.worked: list[str] = []  # keys that were claimed, so that work was done for them
        self.behave: dict[str, Callable[[str], dict[str, Any] | None]] = {}  # key -> instead of the work
        self.on_invoke: dict[str, list[Exception]] = {}  # key -> raised instead of taking it
        self.mute = False  # it never answers what has ended
        self.lose_answer: dict[str, Exception] = {}  # key -> taken, but the answer is lost
        self.delay_s = 0.0
        self.answer_s = 0.0  # from taking an invocation to saying so
        self.deployed: set[str] | None = None  # None: whatever is asked for is there
        self.records: dict[str, Activation] = {}
        self.lists = 0  # requests for many of them
        self.told: list[str] = []  # activations whose records were asked for, and there
        self.tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def check(self) -> None: ...

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        raise NotImplementedError

    async def remove(self, function: str) -> bool:
        raise NotImplementedError

    async def list(self) -> tuple[Deployed, ...]:
        return ()

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        self.invoked.append(key)
        if errors := self.on_invoke.get(key):
            raise errors.pop(0)
        if self.deployed is not None and function not in self.deployed:
            raise FunctionMissing(self.cluster, function, "HTTP 404", status=404)
        self._count += 1
        activation_id = f"{self._count:032x}"
        task = asyncio.ensure_future(self._run(function, activation_id, key, payload))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.sleep(self.answer_s)
        if key in self.lose_answer:
            raise self.lose_answer.pop(key)
        return activation_id

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        if self.mute:
            await asyncio.Event().wait()
        return {one: self.records[one] for one in activation_ids if one in self.records}

    async def activation(self, activation_id: str) -> Activation | None:
        found = self.records.get(activation_id)
        if found is not None:
            self.told.append(activation_id)
        return found

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        self.lists += 1
        found = [await self.activation(one) for one in activation_ids]
        return {one.activation_id: one for one in found if one}

    async def close(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _run(self, function: str, activation_id: str, key: str, payload: Mapping[str, Any]) -> None:
        start = SystemClock().now_ms()
        await asyncio.sleep(self.delay_s)
        result = self._work(function, activation_id, key, payload)
        if result is None:
            return  # hangs: no record, no outcome
        self.records[activation_id] = Activation(
            activation_id=activation_id,
            function=function,
            ok="error" not in result,
            status="success" if "error" not in result else "application error",
            reason=str(result.get("error", "")),
            result=result,
            start_ms=start,
            end_ms=SystemClock().now_ms(),
            billed_ms=1,
            memory_mb=256,
        )

    def _work(
        self, function: str, activation_id: str, key: str, payload: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        run = str(payload["run"])
        if not self.objects.claim(key, run=run, activation_id=activation_id):
            return {"duplicate": True, "key": key}
        self.worked.append(key)
        if key in self.behave:
            return self.behave[key](activation_id)
        result = encode(_result(function, dict(payload)))
        self.publish(key, run, activation_id, result=result)
        return result

    def publish(
        self,
        key: str,
        run: str,
        activation_id: str,
        *,
        result: dict[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        """What a function writes last."""
        self.objects.publish(
            Outcome(
                key=key,
                run=run,
                ok=not reason,
                result=result or {},
                reason=reason,
                activation_id=activation_id,
                at_ms=SystemClock().now_ms(),
            )
        )


def _result(function: str, payload: dict[str, Any]) -> InitResult | TrainResult | AggregateResult:
    if function == "fl_server_init":
        init = decode(InitTask, payload)
        return InitResult(
            weights=ref(weights_name(init.run, 0)), samples=dict.fromkeys(init.clients, 10), seconds={}
        )
    if function == "fl_server_aggregator":
        task = decode(AggregateTask, payload)
        if task.folds or (task.shards > 1 and not task.parts):
            return AggregateResult(
                weights=ref(task.key), loss=None, accuracy=None, refused=(), seconds={"aggregate": 0.1}
            )
        return AggregateResult(
            weights=ref(weights_name(task.run, task.round)),
            loss=1 / task.round,
            accuracy=1 - 1 / (task.round + 1),
            refused=(),
            seconds={"aggregate": 0.1, "evaluate": 0.2},
        )
    train = decode(TrainTask, payload)
    return TrainResult(update=ref(train.key), samples=10, loss=0.5, accuracy=0.9, seconds={})


BOOK = TaskBook(
    model=ModelSpec(name="cnn", input_shape=(28, 28, 1)),
    data=DataSpec(
        train_images=Source(url="file:///x"),
        train_labels=Source(url="file:///x"),
        test_images=Source(url="file:///x"),
        test_labels=Source(url="file:///x"),
    ),
    training=TrainingSpec(optimizer="adam", learning_rate=0.001, local_epochs=1, batch_size=32),
    partition=PartitionSpec(scheme="iid"),
    max_model_bytes=1 << 30,
)


def spec(run: str = "exp-1", *, clients: int = 3, **changes: Any) -> RunSpec:
    """A small run: every client each round, two rounds, quick limits."""
    values: dict[str, Any] = {
        "run": run,
        "digest": "d",
        "seed": 7,
        "clients": tuple(
            ClientPlace(client=f"client_{i}", cluster=CLUSTER, route="direct") for i in range(clients)
        ),
        "server_cluster": CLUSTER,
        "clients_per_round": clients,
        "rounds_max": 2,
        "target_accuracy": None,
        "min_updates": 1,
        "attempts_max": 3,
        "client_timeout_ms": 60_000,
        "server_timeout_ms": 60_000,
        "round_timeout_ms": 0,
        "retry_backoff_ms": 0,
        "book": BOOK.text(),
    }
    return RunSpec(**{**values, **changes})


@dataclass
class Deployments:
    """A Deployer that notes what it is asked for; `failures` are raised one after the other."""

    platform: Platform
    failures: list[Exception] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    functions: list[tuple[str, str]] = field(default_factory=list)
    delay_s: float = 0.0

    async def deploy(self, spec: RunSpec, before: Before) -> Deployment:
        """All at once."""
        await before()
        self.runs.append(spec.run)
        await asyncio.sleep(self.delay_s)
        if self.failures:
            raise self.failures.pop(0)
        return Deployment(urls={}, summary=f"{len(spec.clients)} created")

    async def redeploy(self, spec: RunSpec, cluster: str, function: str, before: Before) -> None:
        """One of them."""
        await before()
        self.functions.append((cluster, function))
        if self.platform.deployed is not None:
            self.platform.deployed.add(function)


@dataclass
class Notes:
    """Reports that are kept in memory."""

    begun: list[str] = field(default_factory=list)
    rounds: list[tuple[str, int]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def take_over(self) -> None:
        """Nobody else writes these."""

    def lacks(self, attempt: Attempt) -> bool:
        """Whether no record of it was noted with what its platform says."""
        return not any(
            one.attempt.key == attempt.key and one.attempt.status is attempt.status and one.activation
            for one in self.records
        )

    async def begin(self, run: Run) -> None:
        """Noted."""
        self.begun.append(run.spec.run)

    async def changed(self, run: Run) -> None:
        """Noted."""
        self.rounds.append((run.spec.run, len(run.history)))

    def record(self, records: Sequence[Record]) -> None:
        """Noted."""
        self.records += records

    async def ended(self, run: Run) -> None:
        """Noted."""
        self.ends.append(run.spec.run)


@dataclass
class Keeper:
    """One of a world's keepers: `kill` ends it between any two steps, as kill -9 does."""

    name: str
    log: MemoryLog
    conducting: Conducting
    notes: Notes
    task: asyncio.Task[None]

    async def kill(self) -> None:
        """At once."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class World:
    """A store, a platform, the memory of a cluster; keepers come and go."""

    def __init__(self, objects: MemoryObjects, platform: Platform, names: Collection[str] = ("k1",)) -> None:
        self.objects = objects
        self.platform = platform
        self.group = MemoryGroup(names)
        self.logs = {name: MemoryLog(name=name, group=self.group) for name in names}
        self.deployments = Deployments(platform)
        self.policy = Policy()
        self.lease_s = 1.5
        self.cannot_s = (1.0, 60.0)
        self.clock = SystemClock()
        self.keepers: dict[str, Keeper] = {}

    @property
    def log(self) -> MemoryLog:
        """Any one."""
        return next(iter(self.logs.values()))

    def run_of(self, run: str = "exp-1") -> Run:
        """As it stands."""
        return self.group.state.runs[run]

    def tools(self, notes: Notes) -> Tools:
        """What a keeper acts with."""
        store = MemoryUpdates(self.objects.shelf)
        return Tools(
            store=store,
            invoker=Invoker(
                providers={CLUSTER: self.platform},
                store=store,
                clock=self.clock,
                in_flight_max=lambda _: 100,
                platform_wait_s=0.4,
                platform_pause_max_s=4.0,
                look_again_s=0.05,
            ),
            deployer=self.deployments,
            reports=notes,
            clock=self.clock,
            pace=Pace(poll_min_s=0.002, poll_max_s=0.02, follow_s=0.02),
        )

    def start(
        self, name: str = "k1", *, seconds: Seconds = since_boot_s, tools: Tools | None = None
    ) -> Keeper:
        """A keeper with an empty memory over what is replicated."""
        notes = Notes()
        log = self.logs[name]
        conducting = Conducting(
            keeper=name,
            log=log,
            tools=tools or self.tools(notes),
            policy=self.policy,
            lease_s=self.lease_s,
            cannot_s=self.cannot_s,
            seconds=seconds,
        )
        keeper = Keeper(name, log, conducting, notes, asyncio.ensure_future(conducting.run()))
        self.keepers[name] = keeper
        return keeper

    async def announce(self, *names: str) -> None:
        """As a keeper does once it is up."""
        for name in names or tuple(self.logs):
            await self.log.propose(
                KeeperStarted(keeper=name, api=f"http://{name}", version=VERSION, at_ms=self.clock.now_ms())
            )

    async def submit(self, run_spec: RunSpec) -> None:
        """Propose the run."""
        await self.log.propose(SubmitRun(spec=run_spec, at_ms=self.clock.now_ms()))

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 20) -> None:
        """Wait until `condition` holds; what a keeper died of meanwhile is raised."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                for keeper in self.keepers.values():
                    if keeper.task.done() and not keeper.task.cancelled():
                        keeper.task.result()
                await asyncio.sleep(0.002)

    async def finish(self, run: str = "exp-1", keeper: Keeper | None = None) -> Run:
        """Let a keeper conduct until `run` has ended."""
        keeper = keeper or self.start()
        await self.until(lambda: self.run_of(run).ended_ms > 0)
        await keeper.kill()
        return self.run_of(run)

    async def close(self) -> None:
        """End all."""
        for keeper in self.keepers.values():
            await keeper.kill()
        await self.platform.close()
