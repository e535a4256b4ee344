"""The log of commands, as the keeper sees it: one node in memory (`memory`), or several under Raft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fedkeeper.core.model import Applied, Command, State

Listener = Callable[[Command, Applied], None]
Apply = Callable[[State, Command], Applied]  # a state machine


class Log(Protocol):
    """Commands in one order, applied to one state, durable before `propose` returns."""

    @property
    def state(self) -> State:
        """The state after the last command applied here."""
        ...

    async def propose(self, command: Command) -> Applied:
        """Append, make durable, apply. Bounded in time.

        Raises NoLeader or KeeperStopped if it certainly did not happen, OutcomeUnknown or JournalUnconfirmed
        if it may have, JournalError if it cannot be made durable.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, in order, on the event loop; returns how to stop."""
        ...

    async def close(self) -> None:
        """Write what is buffered and let go of the files."""
        ...


class Role(StrEnum):
    """What a keeper is to the others."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One keeper of the cluster, as this one sees it."""

    name: str  # "k1"
    address: str  # of its Raft port, "host:port"; empty: found by name
    connected: bool  # always True for oneself
    match_index: int | None  # what it has of the leader's log; None where this keeper does not lead


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatus:
    """A node at one moment, for people, for placement and for the API."""

    name: str
    role: Role
    leader: str  # as far as this node knows; empty: none
    term: int
    voted_for: str
    commit_index: int
    applied_index: int
    last_index: int
    members: tuple[Member, ...]  # itself included, by name
    ready: bool  # has everything that was committed when it started
    problem: str = ""  # why it does not work: "no majority: k2, k3 cannot be reached", "disk full", ...
    counts: bool = True  # it is a member as far as it knows, and not about to become one


class ClusterLog(Log, Protocol):
    """A log that several keepers replicate. Everything is called on, and calls back on, the event loop."""

    @property
    def status(self) -> LogStatus:
        """As of now."""
        ...

    def watch(self, watcher: Callable[[LogStatus], None]) -> Callable[[], None]:
        """Call `watcher` when role, leader, term, members, a connection or `problem` change."""
        ...

    async def barrier(self) -> State:
        """The state with everything in it that was acknowledged before the call: a linearizable read."""
        ...

    async def transfer(self, to: str) -> None:
        """Have `to` lead; returns when it does. MembershipRefused if it cannot be, NoLeader in time."""
        ...

    async def add_member(self, name: str, address: str) -> None:
        """Take `name` in; returns when the change is committed. Only on the leader; one at a time."""
        ...

    async def remove_member(self, name: str) -> None:
        """Let `name` go; returns when the change is committed. Only on the leader, of another than itself."""
        ...

    async def stopped(self) -> None:
        """Wait until this node cannot go on; then raise why (KeeperStopped, JournalDamaged, JournalFull)."""
        ...
