"""What keepers, functions and store tell each other: tasks, results, outcomes.

Ships inside every function's zip, so it needs the standard library and msgspec only. Every value is
a frozen dataclass; `encode` makes plain JSON of it and `decode` checks types and unknown versions.
Objects in the store are named by `weights_name`, `assignment_name`, or by the key of the effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from fedkeeper.errors import TaskError
from fedkeeper.runtime.learned import learn

WIRE_VERSION = 3  # the newest that is read; a task says the oldest that understands it
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """Points at an object in the store, and says what bytes must be found there."""

    name: str
    sha256: str  # of the safetensors bytes, hex
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one array comes from: `https://`, `http://`, `file:///` or `module:function`.

    The format is told by the name: .npz (then `array` names the member), .npy, idx (.gz). Never a pickle.
    """

    url: str
    array: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The four arrays of an experiment; images are scaled to 0..1 by the functions if they are uint8."""

    train_images: Source
    train_labels: Source
    test_images: Source
    test_labels: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """`cnn`, `mnistnn` (the ancestor's two models), or `module:function` that returns a Keras model."""

    name: str
    input_shape: tuple[int, ...]  # without the batch axis, e.g. (28, 28, 1)
    hidden_size: int = 500
    output_size: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """One client's local work in a round."""

    optimizer: str  # adam | nadam | sgd
    learning_rate: float
    local_epochs: int
    batch_size: int
    proximal_mu: float = 0.0  # FedProx, Li et al., arXiv:1812.06127, eq. 2; 0 is FedAvg


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """How the training rows are dealt to the clients."""

    scheme: str  # iid | shards | dirichlet
    shards_per_client: int = 2  # McMahan et al., arXiv:1602.05629, section 3
    alpha: float = 0.5  # Dirichlet concentration, Hsu et al., arXiv:1909.06335


@dataclass(frozen=True, slots=True, kw_only=True)
class InitTask:
    """Write the initial weights (round 0) and every client's data assignment."""

    key: str
    run: str
    clients: tuple[str, ...]
    model: ModelSpec
    data: DataSpec
    partition: PartitionSpec
    seed: int
    max_model_bytes: int
    wire: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train `weights` on the rows of `client`; store the update under `key`."""

    key: str
    run: str
    round: int  # counts from 1; trains on the weights of round - 1
    client: str
    weights: Ref
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    seed: int
    max_model_bytes: int
    dealt: str = ""  # the same for all tasks with the same assignments: rows may be kept; empty: they may not
    whole: bool = False  # the update will be read as a whole only: there is one shard
    wire: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardTask:
    """For `fl_invoker_weights_update`: post `train` to a client that holds no credentials."""

    train: TrainTask
    cluster: str  # names the entry in FEDKEEPER_CLIENTS (see runtime.environment) that holds the credentials
    function: str  # as FedKeeper says it, e.g. "client_3"
    url: str  # where the client function is invoked, without credentials
    timeout_s: float
    wire: int = 1

    @property
    def key(self) -> str:
        """The key of the training it forwards."""
        return self.train.key


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRef:
    """A stored update and its weight in the average."""

    client: str
    update: Ref
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the first updates of a round come to: float64 sums of one shard, as raw bytes."""

    sums: Ref
    samples: int  # rows behind those updates


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateTask:
    """Average `updates`, in the order given, into the weights of `round`; evaluate them.

    Or one shard of it, or put the shards together: see `shards`, `shard`, `parts`. Thousands of updates are
    `counted`, and their outcomes in the store say the rest: a request has at most 1 MB on OpenWhisk.
    """

    key: str
    run: str
    round: int
    base: Ref  # weights of round - 1: what names, shapes and dtypes the updates must have
    updates: tuple[UpdateRef, ...]
    model: ModelSpec
    data: DataSpec
    max_model_bytes: int
    shards: int = 1  # into how many the weights are cut; if more than 1, version 2
    shard: int = 0  # the one to aggregate, and to store under `key`; nothing is evaluated
    parts: tuple[Ref, ...] = ()  # instead: all shards, to be put together and evaluated
    folds: bool = False  # instead: the sums of the updates, to go on from; if so, version 2
    begun: Begun | None = None  # the sums to go on from; if any, version 2
    counted: tuple[str, ...] = ()  # instead of `updates`: their keys without "run/round/"; if any, version 3
    wire: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult:
    """Answer to InitTask."""

    weights: Ref
    samples: dict[str, int]  # rows dealt to each client, > 0
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Answer to TrainTask. A loss that is not finite travels as None."""

    update: Ref
    samples: int
    loss: float | None
    accuracy: float | None
    seconds: dict[str, float]  # load, train, store


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An update, or a shard, that the aggregator would not take."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateResult:
    """Answer to AggregateTask. With `refused`, nothing was averaged and `weights` is None.

    For a shard, and for sums, `weights` points at it, and there is no loss nor accuracy.
    """

    weights: Ref | None
    loss: float | None
    accuracy: float | None
    refused: tuple[Refused, ...]
    seconds: dict[str, float]  # aggregate, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who works on a key. The first to claim it may; every other invocation of that key stands back."""

    key: str
    activation_id: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a key: written once, by the function, when all else that it wrote is durable."""

    key: str
    run: str
    ok: bool
    result: dict[str, Any]  # an encoded ...Result if ok, else empty
    reason: str  # empty if ok
    activation_id: str
    at_ms: int


def encode(value: object) -> dict[str, Any]:
    """Plain JSON types of a dataclass from this module. Raises TaskError for a NaN or infinity."""
    plain = msgspec.to_builtins(value)
    _refuse_nan(plain, type(value).__name__)
    if not isinstance(plain, dict):
        raise TaskError(f"{type(value).__name__} is not a message")
    return plain


def decode(kind: type[T], plain: object) -> T:
    """The dataclass `kind` from plain JSON types. Raises TaskError that names the faulty field."""
    if isinstance(plain, dict) and plain.get("wire", 1) not in range(1, WIRE_VERSION + 1):
        raise TaskError(
            f"{kind.__name__} has wire version {plain['wire']!r}, this function reads up to {WIRE_VERSION}",
            hint="deploy the functions again: python main.py -d",
        )
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as exc:
        raise TaskError(f"{kind.__name__}: {exc}") from exc


def weights_name(run: str, round_no: int) -> str:
    """Name of the global weights after `round_no`; 0 are the initial ones."""
    return f"{run}/w{round_no}"


def assignment_name(run: str, client: str) -> str:
    """Name of the object that holds the row indices of `client`: one int64 tensor `rows`."""
    return f"{run}/rows/{client}"


def round_prefix(run: str, round_no: int) -> str:
    """What the keys of a round's effects begin with."""
    return f"{run}/r{round_no}/"


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN (and OpenWhisk refuses it): what is not finite becomes None."""
    return float(value) if math.isfinite(value) else None


def _refuse_nan(plain: object, where: str) -> None:
    if isinstance(plain, float) and not math.isfinite(plain):
        raise TaskError(f"{where} is {plain}, and JSON has no such number")
    if isinstance(plain, dict):
        for name, value in plain.items():
            _refuse_nan(value, f"{where}.{name}")
    elif isinstance(plain, (list, tuple)):
        for index, value in enumerate(plain):
            _refuse_nan(value, f"{where}[{index}]")


learn(
    InitTask, TrainTask, ForwardTask, AggregateTask, InitResult, TrainResult, AggregateResult, Claim, Outcome
)
