"""The JSON that goes in and out. What is replicated itself (runs, their specs) is as in `core.model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of a request. An unknown key is a mistake that its writer should hear of."""


class Submission(Body):
    """A run to start."""

    spec: dict[str, Any]  # a core.model.RunSpec
    config: dict[str, Any] = {}  # the experiment's, without secrets: shown, and kept beside the run
    fingerprint: dict[str, Any] = {}  # what of the config the digest covers


class Stop(Body):
    """Why a run is to end."""

    reason: str = "stopped by a user"


class Put(Body):
    """A value to set."""

    value: msgspec.Raw
    expected: int | None = None  # version that the entry must have; 0: it must not be there
    request: str = ""  # the same request again is answered as the first time
    fence: str = ""  # an entry that must have `fence_version`
    fence_version: int = 0


class Conduct(Body):
    """Who is to conduct; null: whom placement chooses."""

    keeper: str | None


class NewMember(Body):
    """A keeper to take in."""

    name: str
    address: str  # of its Raft port, host:port


class Lead(Body):
    """Who is to lead."""

    to: str


class Answer(msgspec.Struct, kw_only=True):
    """Of a keeper."""


class Error(Answer):
    """What went wrong, for programs and for people."""

    kind: str  # the class in fedkeeper/errors.py
    message: str
    hint: str  # what to try; may be empty
    definite: bool  # false: it may have happened all the same
    retry_after_s: float | None = None  # when it is worth another try


class Failure(Answer):
    """Every answer that is not the one asked for."""

    error: Error


class Health(Answer):
    """Whether a keeper works."""

    name: str
    up: bool
    ready: bool  # has everything that was committed when it started
    problem: str


class KeeperStatus(Answer):
    """A keeper, as this one sees it."""

    name: str
    api: str  # base URL; empty: it has never been up
    address: str  # of its Raft port; empty: found by name
    member: bool
    alive: bool
    connected: bool | None  # to this keeper; null: not a member
    leads: bool
    conducts: bool
    lag: int | None  # commands that it has not yet, where this keeper knows
    version: int
    started_ms: int
    seen_ms: int
    reason: str  # why it counts as lost, or cannot conduct
    latencies: Mapping[str, float]  # ms, by "keeper/k2", "cluster/ow_here"


class RunSummary(Answer):
    """A run in one line."""

    run: str
    phase: str
    round: int
    rounds_max: int
    clients: int
    outstanding: int  # attempts without an answer
    updates: int  # counted in this round
    accuracy: float | None  # after the last committed round
    loss: float | None
    submitted_ms: int
    ended_ms: int  # 0: it has not
    reason: str
    digest: str  # of its config


class Status(Answer):
    """The cluster, as this keeper sees it."""

    name: str
    role: str  # leader | follower | candidate
    leader: str  # empty: none that it knows of
    conductor: str
    conductor_why: str
    conductor_since_ms: int
    pinned: bool  # chosen by hand
    epoch: int
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    ready: bool
    problem: str
    members: tuple[str, ...]
    keepers: tuple[KeeperStatus, ...]
    runs: tuple[RunSummary, ...]
    entries: int  # in the users' dictionary
    now_ms: int  # of the replicated state


class Diagnostic(Answer):
    """What rafty told of a server."""

    status: str  # leader | follower | candidate
    term: int
    vote: str
    leader: str
    cluster: tuple[str, ...]
    commit_index: int
    applied_index: int
    reads: int  # of the dictionary, asked of this keeper in the last window_s
    writes: int  # requests to change something, answered by this keeper in the last window_s
    appends: int  # commands of the log that this keeper applied in the last window_s
    window_s: float


class Runs(Answer):
    """All runs, and how much of the log they come from."""

    runs: tuple[RunSummary, ...]
    applied_index: int


class Value(Answer):
    """An entry of the dictionary."""

    value: Any
    version: int


class Written(Answer):
    """A write that is committed."""

    version: int  # of the entry; after a deletion, of the deletion


class NamedValue(Answer):
    """An entry with its name."""

    name: str
    value: Any
    version: int


class Names(Answer):
    """Part of the dictionary's names, in the order of their code points."""

    names: tuple[str, ...]
    next: str | None  # for `after`; null: there are no more
    version: int  # of the dictionary: two pages with the same one are of the same moment


class Entries(Answer):
    """As Names, with values."""

    entries: tuple[NamedValue, ...]
    next: str | None
    version: int


class Conductor(Answer):
    """Who conducts now."""

    conductor: str
    epoch: int
    why: str
    pinned: bool


class Leader(Answer):
    """Who leads now."""

    leader: str
    term: int


class MemberStatus(Answer):
    """A member of the cluster."""

    name: str
    address: str
    connected: bool


class Members(Answer):
    """The members of the cluster now."""

    members: tuple[MemberStatus, ...]


class Deleted(Answer):
    """What is not there any more."""

    deleted: str


EVERY = (*Body.__subclasses__(), *Answer.__subclasses__())
