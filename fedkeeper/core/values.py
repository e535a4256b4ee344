"""What is replicated: the state, and the values in it.

Standard library only; every value is frozen. Times are Unix milliseconds by the conductor's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedkeeper.core.persistent import Grown


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlace:
    """A client and where it lives."""

    client: str  # "client_3"
    cluster: str
    route: str  # direct | invoker


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything the core must know of a run; fixed when the run is submitted."""

    run: str
    digest: str  # of the whole experiment's config: a resumed run must be the same experiment
    seed: int
    clients: tuple[ClientPlace, ...]
    server_cluster: str
    clients_per_round: int
    rounds_max: int
    target_accuracy: float | None  # 0..1; the run ends when a round reaches it
    min_updates: int  # a round with fewer fails the run
    attempts_max: int  # invocations per client and round, and per server task
    client_timeout_ms: int  # one attempt of one client, from its invocation
    server_timeout_ms: int  # one attempt of fl_server_init or fl_server_aggregator
    round_timeout_ms: int  # of the training phase; 0: no limit but the attempts' own
    retry_backoff_ms: int  # before the second attempt; doubles with each further one
    deploy_timeout_ms: int = 0  # one attempt to deploy the functions; 0: they are there already
    book: str = ""  # what the functions are told beyond this, JSON; the core only carries it
    shards: int = 1  # aggregators of a round; 0: as many as the rule in `sharding` says
    shard_bytes_max: int = 0  # by the rule: of the weights, for one aggregator
    shard_updates_bytes_max: int = 0  # by the rule: of all updates of a round, read by one aggregator
    early_updates_min: int = 0  # that are added up while others are waited for; 0: none
    early_bytes_min: int = 0  # of those together


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Points at an object in the weights store; tensors themselves never come here."""

    name: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A client's stored update, counted in its round."""

    key: str
    client: str
    ref: ObjectRef
    samples: int
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A shard of a round's new weights, made of all its updates; counted in its round, once."""

    shard: int  # 0 is the first
    key: str
    ref: ObjectRef
    aggregate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The sums of a round's first updates, for one shard: what its aggregator goes on from."""

    shard: int
    key: str
    ref: ObjectRef
    updates: int  # how many


class Phase(StrEnum):
    """Where a run stands."""

    DEPLOYING = "deploying"
    INITIALISING = "initialising"
    TRAINING = "training"
    AGGREGATING = "aggregating"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Kind(StrEnum):
    """What an effect is for."""

    DEPLOY = "deploy"
    INIT = "init"
    TRAIN = "train"
    AGGREGATE = "aggregate"  # of the whole weights, or of the shards that are there
    SHARD = "shard"  # of one shard of the weights
    FOLD = "fold"  # of a shard's first updates, while others are waited for


class AttemptStatus(StrEnum):
    """How an attempt stands."""

    PENDING = "pending"  # not to be sent before `not_before_ms`
    SENDING = "sending"  # the intent is out; whether the platform has it is not known yet
    RUNNING = "running"  # the platform gave an activation ID
    OK = "ok"
    FAILED = "failed"
    SILENT = "silent"  # its time was up
    ABANDONED = "abandoned"  # the round, or the run, went on without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One invocation of one function for one purpose; `key` names it everywhere."""

    key: str  # "mnist-1/r3/client_7/a0", "mnist-1/deploy/a0", "mnist-1/init/a0", see `attempts.key`
    kind: Kind
    run: str
    round: int  # 0 for init
    client: str  # empty for server tasks
    number: int  # 0 is the first attempt
    cluster: str
    status: AttemptStatus
    not_before_ms: int
    issued_ms: int  # when the intent was issued; 0 while pending
    deadline_ms: int  # 0 while pending; while sending see outbox.deadline_ms
    sent_ms: int = 0  # when the platform took it
    ended_ms: int = 0
    activation_id: str = ""
    reason: str = ""  # why it failed
    shard: int = 0
    updates: int = 0  # of a fold: how many, from the round's first on


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A committed round: what is kept of it for good."""

    round: int
    weights: ObjectRef
    loss: float | None
    accuracy: float | None
    clients: tuple[str, ...]  # chosen
    updates: tuple[str, ...]  # keys averaged, by client
    samples: int
    failures: int  # attempts that failed or stayed silent
    gave_up: int  # clients without an update
    update_bytes: int
    train_loss: float | None  # mean over updates, weighted by samples
    started_ms: int
    invoked_ms: int  # when the last first attempt had been taken by its platform
    trained_ms: int  # when the last update was counted
    aggregated_ms: int
    aggregate_s: float  # as the aggregator measured them
    evaluate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. Weights pointer, outbox and history: all that a new conductor needs."""

    spec: RunSpec
    phase: Phase
    round: int  # 0 while initialising
    weights: ObjectRef | None  # of round - 1
    samples: Mapping[str, int] = field(default_factory=dict)  # rows dealt to each client
    chosen: tuple[str, ...] = ()
    outbox: Mapping[str, Attempt] = field(default_factory=dict)  # unanswered, by key
    ended: Sequence[Attempt] = field(default_factory=Grown)  # of this round and the last, for the reports
    updates: Mapping[str, Update] = field(default_factory=dict)  # counted in this round, by client
    gave_up: Mapping[str, str] = field(default_factory=dict)  # client -> last reason, this round
    history: tuple[RoundRecord, ...] = ()
    submitted_ms: int = 0
    round_started_ms: int = 0
    invoked_ms: int = 0
    trained_ms: int = 0
    ended_ms: int = 0
    reason: str = ""  # why it failed or was stopped
    urls: Mapping[str, str] = field(default_factory=dict)  # of clients on the invoker route, once deployed
    deployed: str = ""  # what the deployment did, for people: "13 created"
    parts: tuple[Part, ...] = ()  # of this round's new weights, as they came; empty where it has one shard
    folds: tuple[Fold, ...] = ()  # of this round, the latest of each shard
    settled: int = 0  # the first of those chosen of which nothing more is to come; counted if any are folded
    ready: int = 0  # updates among them
    resumed_ms: int = 0  # the latest takeover: what was to be sent then has its time from there, see outbox

    def __post_init__(self) -> None:
        if not isinstance(self.ended, Grown):  # it was read from a file, say
            object.__setattr__(self, "ended", Grown(self.ended))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperInfo:
    """What the cluster knows of one of its keepers."""

    name: str  # "k1"
    api: str  # base URL of its HTTP API
    version: int  # newest version of commands that it reads, see replication.codec
    alive: bool = True  # False from KeeperLost until its next KeeperStarted or KeeperMeasured
    started_ms: int = 0
    seen_ms: int = 0
    reason: str = ""  # why it counts as lost
    measured: bool = False  # it has, since it was started
    latencies: Mapping[str, float] = field(default_factory=dict)  # ms, by "keeper/k2"; absent: not reached
    unfit: str = ""  # why it could not conduct when it last did
    unfit_times: int = 0  # in a row
    unfit_until_ms: int = 0  # others conduct until then, if any can


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A value of the users' dictionary."""

    value: str  # JSON
    version: int  # State.kv_version of the write: what compare-and-set compares


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a request that its client may send again: the same, then."""

    version: int  # of the write; 0 if it was rejected
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that is replicated."""

    now_ms: int = 0  # running maximum of the times of the leader's and the conductor's commands
    epoch: int = 0
    conductor: str = ""
    conductor_why: str = ""  # why this keeper conducts, for people
    conductor_since_ms: int = 0
    conductor_rounds: int = 0  # committed since it took over
    pinned: bool = False  # chosen by hand: placement does not move it while it lives
    runs: Mapping[str, Run] = field(default_factory=dict)
    keepers: Mapping[str, KeeperInfo] = field(default_factory=dict)
    kv: Mapping[str, Entry] = field(default_factory=dict)  # the users' dictionary
    kv_version: int = 0  # writes so far
    kv_bytes: int = 0  # of all names and values, as UTF-8
    answered: Mapping[str, Answer] = field(default_factory=dict)  # by request, the latest ANSWERS_MAX
