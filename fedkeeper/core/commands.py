"""What changes the state. Times arrive inside commands: the core has no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedkeeper.core.values import ObjectRef, RunSpec

KV_BYTES_MAX = 64 * 1024 * 1024  # of the users' dictionary, names and values, unless a write says otherwise


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
    resumes: bool = False  # a takeover is noted once per run; without it, in every attempt to be sent


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
class UpdatesFolded:
    """The sums of a shard's first updates are stored. Names the base and exactly what was added."""

    key: str
    base: ObjectRef
    ref: ObjectRef
    updates: tuple[str, ...]  # keys, from the round's first on
    epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStored:
    """A shard of the new weights is stored. Compare-and-set on `base`, names exactly what it averaged."""

    key: str
    base: ObjectRef
    ref: ObjectRef
    updates: tuple[str, ...]  # keys
    aggregate_s: float
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
    parts: tuple[str, ...] = ()  # keys of the shards that it was put together from, if it was


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesRefused:
    """The aggregator would not take these: each counts as a failed attempt, of its client or of its shard."""

    key: str
    refused: Mapping[str, str]  # key of an update, of a shard or of sums -> reason
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
    | UpdatesFolded
    | ShardStored
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
