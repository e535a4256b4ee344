"""The values of the pure core: what is replicated (State), what changes it (commands), what it asks for
(intents).

Standard library only; every value is frozen. Times are Unix milliseconds by the conductor's clock and
arrive inside commands: the core has no clock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedkeeper.core.persistent import Grown

KV_BYTES_MAX = 64 * 1024 * 1024  # of the users' dictionary, names and values, unless a write says otherwise

# --- what a run is -------------------------------------------------------------------------------


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
    AGGREGATE = "aggregate"


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

    key: str  # "mnist-1/r3/client_7/a0", "mnist-1/deploy/a0", "mnist-1/init/a0", "mnist-1/r3/aggregate/s0/a0"
    kind: Kind
    run: str
    round: int  # 0 for init
    client: str  # empty for server tasks
    number: int  # 0 is the first attempt
    cluster: str
    status: AttemptStatus
    not_before_ms: int
    issued_ms: int  # when the intent was issued; 0 while pending
    deadline_ms: int  # 0 while pending
    sent_ms: int = 0  # when the platform took it
    ended_ms: int = 0
    activation_id: str = ""
    reason: str = ""  # why it failed


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


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimConductor:
    """Make `keeper` the one that acts, by compare-and-set on the epoch.

    Proposed by the leader: for itself, or for the keeper that placement or a user chose. Every change of the
    conductor is a new epoch; what was made under an older one is rejected.
    """

    keeper: str
    expected_epoch: int
    at_ms: int
    why: str = ""  # for people
    pinned: bool = False  # by hand: stays until this keeper is lost, or a claim without it
    unfit: str = ""  # why the conductor so far cannot conduct; empty: it could
    unfit_ms: int = 0  # for how long others shall try


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRun:
    """Start a run; again with the same run and digest is harmless."""

    spec: RunSpec
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun:
    """End a run before its end."""

    run: str
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRun:
    """Drop a run that has ended."""

    run: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionsDeployed:
    """Every function of the run is on its platform."""

    key: str
    urls: Mapping[str, str]  # where clients on the invoker route are invoked, by client
    summary: str  # "13 created"
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationSent:
    """The platform has taken it."""

    key: str
    activation_id: str
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationFailed:
    """An attempt came to nothing. Counts once, while `key` is in the outbox."""

    key: str
    reason: str
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInitialised:
    """fl_server_init has stored the initial weights and the data assignment."""

    key: str
    weights: ObjectRef
    samples: Mapping[str, int]
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStored:
    """A client's update is in the store, under `key`. Counts once, while `key` is in the outbox."""

    key: str
    ref: ObjectRef
    samples: int  # rows trained on, > 0
    loss: float | None
    accuracy: float | None
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregated:
    """The new weights are stored and evaluated. Compare-and-set on `base`, names exactly what it averaged."""

    key: str
    base: ObjectRef
    weights: ObjectRef
    updates: tuple[str, ...]  # keys
    loss: float | None
    accuracy: float | None
    aggregate_s: float
    evaluate_s: float
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesRefused:
    """The aggregator would not average these: each counts as a failed attempt of its client."""

    key: str
    refused: Mapping[str, str]  # update key -> reason
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passes: deadlines fall due, pending attempts are released."""

    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperStarted:
    """A keeper is up and says where and what it is. Its clock has no say: `at_ms` moves nothing."""

    keeper: str
    api: str
    version: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperMeasured:
    """A keeper's latencies; it is alive. Its clock has no say."""

    keeper: str
    latencies: Mapping[str, float]  # ms, by "keeper/k2", "cluster/ow_here"; what it did not reach is left out
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperLost:
    """The leader does not hear this keeper any more. Conducting ends by a claim, not by this."""

    keeper: str
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperRemoved:
    """A keeper is no longer a member: forget what is known of it."""

    keeper: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutValue:
    """Set a value of the users' dictionary. With `expected`, by compare-and-set on the entry's version."""

    name: str
    value: str  # JSON
    expected: int | None = None  # version; 0: it must not be there; None: whatever is there
    request: str = ""  # the same request again is answered as the first time; empty: not looked for
    fence: str = ""  # an entry that must have `fence_version`, or this is rejected: a lock that was lost
    fence_version: int = 0
    total_bytes_max: int = KV_BYTES_MAX  # of the whole dictionary after it, as the leader is configured
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteValue:
    """Delete a value. Rejected if it is not there, or has another version than `expected`."""

    name: str
    expected: int | None = None
    request: str = ""
    fence: str = ""
    fence_version: int = 0
    at_ms: int


Command = (
    ClaimConductor
    | SubmitRun
    | StopRun
    | ForgetRun
    | FunctionsDeployed
    | InvocationSent
    | InvocationFailed
    | WeightsInitialised
    | UpdateStored
    | RoundAggregated
    | UpdatesRefused
    | Tick
    | KeeperStarted
    | KeeperMeasured
    | KeeperLost
    | KeeperRemoved
    | PutValue
    | DeleteValue
)

# --- intents -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoke:
    """Carry this attempt out: deploy, or invoke its function. It is in the outbox of its run under `key`."""

    run: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Weights and updates of rounds below `before_round` are no longer needed by the core."""

    run: str
    before_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCommitted:
    """For the reports: a round is done."""

    run: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """For the reports: the run has ended, see its phase."""

    run: str


Intent = Invoke | Prune | RoundCommitted | RunEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply` returns. `rejected` says why a command changed nothing; empty if it did its work."""

    state: State
    intents: tuple[Intent, ...] = ()
    rejected: str = ""
