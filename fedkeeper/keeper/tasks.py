"""Which function an attempt calls, and with what: the one place where core and wire format meet."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fedkeeper.core import sharding
from fedkeeper.core.model import (
    Attempt,
    ClientPlace,
    Command,
    InvocationFailed,
    Kind,
    ObjectRef,
    RoundAggregated,
    Run,
    RunSpec,
    ShardStored,
    UpdatesFolded,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.core.records import ordered_updates
from fedkeeper.errors import TaskError
from fedkeeper.runtime.learned import learn
from fedkeeper.runtime.wire import (
    AggregateResult,
    AggregateTask,
    Begun,
    DataSpec,
    ForwardTask,
    InitResult,
    InitTask,
    ModelSpec,
    Outcome,
    PartitionSpec,
    Ref,
    TrainingSpec,
    TrainResult,
    TrainTask,
    UpdateRef,
    decode,
    encode,
    round_prefix,
)

INIT_FUNCTION = "fl_server_init"
AGGREGATE_FUNCTION = "fl_server_aggregator"
FORWARD_FUNCTION = "fl_invoker_weights_update"
LISTED_MAX: Final = 1_000  # updates that a task points at; of more it names the keys only


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One invocation, ready for a provider."""

    cluster: str
    function: str
    payload: Mapping[str, Any]
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBook:
    """What a run's functions are told beyond what the core knows: `RunSpec.book`, for any keeper to tell.

    No secrets: it is in the replicated log.
    """

    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    partition: PartitionSpec
    max_model_bytes: int
    config: Mapping[str, Any] = field(default_factory=dict)  # the experiment's, redacted, for the reports
    fingerprint: Mapping[str, str] = field(default_factory=dict)  # what of it defines the run
    submission: str = ""  # tells a run from another one that somebody else submits under its name

    def text(self) -> str:
        """As it stands in a RunSpec."""
        return msgspec.json.encode(self, order="sorted").decode()

    def call(self, run: Run, attempt: Attempt) -> Call:
        """The invocation that carries `attempt` out."""
        spec = run.spec
        match attempt.kind:
            case Kind.DEPLOY:
                raise TaskError(f"{attempt.key}: deploying is no invocation")
            case Kind.INIT:
                return self._server(run, INIT_FUNCTION, self.init_task(run, attempt.key))
            case Kind.AGGREGATE | Kind.SHARD | Kind.FOLD:
                return self._server(run, AGGREGATE_FUNCTION, self._aggregate_task(run, attempt))
            case Kind.TRAIN:
                task = self.train_task(run, attempt.key, attempt.client)
                timeout_s = spec.client_timeout_ms / 1000
                place = places(spec)[attempt.client]
                if place.route == "direct":
                    return Call(
                        cluster=place.cluster,
                        function=place.client,
                        payload=encode(task),
                        timeout_s=timeout_s,
                    )
                url = run.urls.get(place.client, "")
                if not url:
                    raise TaskError(f"run {spec.run}: it is not known where {place.client} is invoked")
                forward = ForwardTask(
                    train=task,
                    cluster=place.cluster,
                    function=place.client,
                    url=url,
                    timeout_s=timeout_s,
                )
                return Call(
                    cluster=spec.server_cluster,
                    function=FORWARD_FUNCTION,
                    payload=encode(forward),
                    timeout_s=timeout_s,
                )

    def init_task(self, run: Run, key: str) -> InitTask:
        """What fl_server_init is told."""
        return InitTask(
            key=key,
            run=run.spec.run,
            clients=tuple(place.client for place in run.spec.clients),
            model=self.model,
            data=self.data,
            partition=self.partition,
            seed=run.spec.seed,
            max_model_bytes=self.max_model_bytes,
        )

    def train_task(self, run: Run, key: str, client: str) -> TrainTask:
        """What fl_client is told in the run's current round."""
        return TrainTask(
            key=key,
            run=run.spec.run,
            round=run.round,
            client=client,
            weights=_ref(_pointer(run)),
            model=self.model,
            data=self.data,
            training=self.training,
            seed=run.spec.seed,
            max_model_bytes=self.max_model_bytes,
            dealt=self.submission,
            whole=sharding.count(run) == 1,
        )

    def _aggregate_task(self, run: Run, attempt: Attempt) -> AggregateTask:
        shards = sharding.count(run)
        joins = shards > 1 and attempt.kind is Kind.AGGREGATE
        updates = () if joins else ordered_updates(run)
        fold = next((one for one in run.folds if one.shard == attempt.shard and not joins), None)
        first = fold.updates if fold else 0
        last = attempt.updates if attempt.kind is Kind.FOLD else len(updates)
        rows = sum(update.samples for update in updates[:first])
        chosen = updates[first:last]
        begins = round_prefix(run.spec.run, run.round)
        many = len(chosen) > LISTED_MAX
        begun = Begun(sums=_ref(fold.ref), samples=rows) if fold else None
        return AggregateTask(
            key=attempt.key,
            run=run.spec.run,
            round=run.round,
            base=_ref(_pointer(run)),
            updates=()
            if many
            else tuple(
                UpdateRef(client=update.client, update=_ref(update.ref), samples=update.samples)
                for update in chosen
            ),
            model=self.model,
            data=self.data,
            max_model_bytes=self.max_model_bytes,
            shards=shards,
            shard=attempt.shard,
            parts=tuple(_ref(part.ref) for part in sharding.in_order(run)) if joins else (),
            folds=attempt.kind is Kind.FOLD,
            begun=begun,
            counted=tuple(update.key.removeprefix(begins) for update in chosen) if many else (),
            wire=3 if many else 2 if shards > 1 or fold or attempt.kind is Kind.FOLD else 1,
        )

    def _server(self, run: Run, function: str, task: InitTask | AggregateTask) -> Call:
        return Call(
            cluster=run.spec.server_cluster,
            function=function,
            payload=encode(task),
            timeout_s=run.spec.server_timeout_ms / 1000,
        )


learn(TaskBook)


def book_of(run: Run) -> TaskBook:
    """What the run's functions are told. TaskError if a newer FedKeeper wrote it, or nobody did."""
    return _book(run.spec.book)


@functools.lru_cache(maxsize=64)
def _book(text: str) -> TaskBook:
    try:
        return msgspec.json.decode(text, type=TaskBook)
    except msgspec.DecodeError as exc:
        raise TaskError(f"what the functions are to be told cannot be read: {exc}") from exc


_places: dict[str, tuple[RunSpec, Mapping[str, ClientPlace]]] = {}
_PLACES_MAX: Final = 64  # runs


def places(spec: RunSpec) -> Mapping[str, ClientPlace]:
    """Each client's place, by its name. Remembered: a round asks for each of its clients."""
    known = _places.get(spec.run)
    if known is None or known[0] is not spec:
        while len(_places) >= _PLACES_MAX:
            _places.pop(next(iter(_places)))
        known = _places[spec.run] = spec, {place.client: place for place in spec.clients}
    return known[1]


def invoked_on(run: Run, attempt: Attempt) -> tuple[str, str]:
    """Cluster and function that an attempt's activation ID belongs to."""
    if attempt.kind is Kind.DEPLOY:
        return run.spec.server_cluster, ""
    if attempt.kind is Kind.INIT:
        return run.spec.server_cluster, INIT_FUNCTION
    if attempt.kind in (Kind.AGGREGATE, Kind.SHARD, Kind.FOLD):
        return run.spec.server_cluster, AGGREGATE_FUNCTION
    place = places(run.spec)[attempt.client]
    if place.route == "direct":
        return place.cluster, place.client
    return run.spec.server_cluster, FORWARD_FUNCTION


def command_for(run: Run, attempt: Attempt, outcome: Outcome, *, epoch: int, at_ms: int) -> Command:
    """What the store says of a key, as a command. A result that cannot be read is a failed attempt."""
    if not outcome.ok:
        return InvocationFailed(key=attempt.key, reason=outcome.reason, epoch=epoch, at_ms=at_ms)
    try:
        return _success(run, attempt, outcome, epoch=epoch, at_ms=at_ms)
    except TaskError as exc:
        return InvocationFailed(key=attempt.key, reason=f"unreadable result: {exc}", epoch=epoch, at_ms=at_ms)


def _success(run: Run, attempt: Attempt, outcome: Outcome, *, epoch: int, at_ms: int) -> Command:
    key = attempt.key
    match attempt.kind:
        case Kind.DEPLOY:
            raise TaskError(f"{key}: deploying leaves nothing in the store")
        case Kind.INIT:
            made = decode(InitResult, outcome.result)
            return WeightsInitialised(
                key=key, weights=_object(made.weights), samples=made.samples, epoch=epoch, at_ms=at_ms
            )
        case Kind.TRAIN:
            trained = decode(TrainResult, outcome.result)
            return UpdateStored(
                key=key,
                ref=_object(trained.update),
                samples=trained.samples,
                loss=trained.loss,
                accuracy=trained.accuracy,
                epoch=epoch,
                at_ms=at_ms,
            )
        case Kind.AGGREGATE | Kind.SHARD | Kind.FOLD:
            averaged = decode(AggregateResult, outcome.result)
            if averaged.weights is None:
                return UpdatesRefused(
                    key=key,
                    refused={one.key: one.reason for one in averaged.refused},
                    epoch=epoch,
                    at_ms=at_ms,
                )
            updates = tuple(update.key for update in ordered_updates(run))
            if attempt.kind is Kind.FOLD:
                return UpdatesFolded(
                    key=key,
                    base=_pointer(run),
                    ref=_object(averaged.weights),
                    updates=updates[: attempt.updates],
                    epoch=epoch,
                    at_ms=at_ms,
                )
            if attempt.kind is Kind.SHARD:
                return ShardStored(
                    key=key,
                    base=_pointer(run),
                    ref=_object(averaged.weights),
                    updates=updates,
                    aggregate_s=averaged.seconds.get("aggregate", 0.0),
                    epoch=epoch,
                    at_ms=at_ms,
                )
            return RoundAggregated(
                key=key,
                base=_pointer(run),
                weights=_object(averaged.weights),
                updates=updates,
                parts=tuple(part.key for part in sharding.in_order(run)),
                loss=averaged.loss,
                accuracy=averaged.accuracy,
                aggregate_s=averaged.seconds.get("aggregate", 0.0),
                evaluate_s=averaged.seconds.get("evaluate", 0.0),
                epoch=epoch,
                at_ms=at_ms,
            )


def _pointer(run: Run) -> ObjectRef:
    if run.weights is None:
        raise TaskError(f"run {run.spec.run} has no weights yet")
    return run.weights


def _ref(ref: ObjectRef) -> Ref:
    return Ref(name=ref.name, sha256=ref.sha256, nbytes=ref.nbytes)


def _object(ref: Ref) -> ObjectRef:
    return ObjectRef(name=ref.name, sha256=ref.sha256, nbytes=ref.nbytes)
