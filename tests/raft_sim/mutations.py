"""Faults put into the code on purpose: a simulation that does not notice them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fedkeeper.core import machine
from fedkeeper.core.model import Applied, ClaimConductor, PutValue, State, Tick
from fedkeeper.replication.raft import elections, followers, library, membership, storage
from fedkeeper.replication.raft import node as nodes
from fedkeeper.replication.raft.beginning import Beginning
from fedkeeper.replication.raft.contents import Contents
from fedkeeper.replication.raft.simulated_disk import SimulatedDisk
from fedkeeper.replication.raft.snapshots import Snapshot
from tests.patches import Patch, method, replaced, together, value
from tests.raft_sim import checks, hosts


def _core(make: Callable[[Any], Any]) -> Patch:
    """Another state machine, for the keepers and for the checks alike: only its rules can tell."""

    @contextmanager
    def mutated() -> Iterator[None]:
        apply = make(machine.apply)
        with replaced(hosts, "apply", apply), replaced(checks, "apply", apply):
            yield

    return mutated


# --- the disk ------------------------------------------------------------------------------------------


def _vote_not_written(before: Any) -> Any:
    def set_current_term(self: Any, term: int, voted: str | None) -> None:
        pending = bytes(self._pending)
        before(self, term, voted)
        self._pending[:] = pending

    return set_current_term


def _cleared_at_load(before: Any) -> Any:
    """As PySyncObj does when it finds a dump."""

    def go_on_from(self: Contents, snapshot: Any) -> None:
        before(self, snapshot)
        del self.entries[2:]

    return go_on_from


def _sent_before_sync(before: Any) -> Any:
    """The acknowledgement is out, and then the entries are written."""

    def send(self: Any, *, hurry: bool = False) -> None:
        outbox, self._outbox = self._outbox, []
        for peer, message in outbox:
            self._network.send(peer, message)
        if hurry:
            return
        before(self, hurry=hurry)

    return send


def _synced_a_little_later(before: Any) -> Any:
    """Every other sync is left for the next one."""

    def sync(self: Any) -> None:
        self.left_out = not getattr(self, "left_out", False)
        if not self.left_out:
            before(self)

    return sync


# --- followers and leaders -----------------------------------------------------------------------------


def _cut_what_is_there(before: Any) -> Any:
    """As PySyncObj does: whatever stands after the entry that a message goes on from."""

    def take(self: Any, peer: str, entries: list[Any]) -> None:
        if entries and entries[0][1] <= self._node.last_index:
            position = entries[0][1] - self._node.first_index
            if position >= 0:
                self._node.entries.deleteEntriesFrom(position)
                self._node.membership.log_changed()
        before(self, peer, entries)

    return take


def _commit_unread(before: Any) -> Any:
    """The leader's commit index, over entries that nobody has compared."""

    def on_append(self: Any, peer: str, message: dict[str, Any]) -> None:
        before(self, peer, message)
        if message["term"] == self._node.term and self._node.beginning.is_member:
            self._commit(min(message["commit"], self._node.last_index))

    return on_append


def _any_vote_counts(before: Any) -> Any:
    def on_response_vote(self: Any, peer: str, message: dict[str, Any]) -> None:
        message["term"] = self._node.term
        self._node.hand(peer, message)
        self._node.hand(peer, message)

    return on_response_vote


def _votes_again(before: Any) -> Any:
    """Whoever asks last gets the vote."""

    def on_request_vote(self: Any, peer: str, message: dict[str, Any]) -> None:
        node = self._node
        if message["term"] == node.term and node.role != library.LEADER:
            node.say(peer, {"type": "response_vote", "term": node.term})
            return
        before(self, peer, message)

    return on_request_vote


@contextmanager
def _for_anybody() -> Iterator[None]:
    """Whatever the candidate lacks."""
    pre_vote, vote = elections.Elections.on_pre_vote, elections.Elections.on_request_vote

    def on_pre_vote(self: Any, peer: str, message: dict[str, Any]) -> None:
        pre_vote(self, peer, {**message, "last_index": 2**40, "last_term": 2**40})

    def on_request_vote(self: Any, peer: str, message: dict[str, Any]) -> None:
        vote(self, peer, {**message, "last_log_index": 2**40, "last_log_term": 2**40})

    with (
        replaced(elections.Elections, "on_pre_vote", on_pre_vote),
        replaced(elections.Elections, "on_request_vote", on_request_vote),
    ):
        yield


def _half_is_enough(before: Any) -> Any:
    def count_for(self: Any, peer: str, index: int) -> None:
        for other in self.other_names:
            before(self, other, max(index, self._SyncObj__raftMatchIndex.get(library.Peer(other), 0)))

    return count_for


def _takes_any(self: Any, data: bytes, origin: str) -> Any:
    """A snapshot is installed whatever is here already."""
    return self._files.pending(Snapshot.decode(data, origin))


def _puts_any(before: Any) -> Any:
    """And, as with PySyncObj, nothing else is left of the log."""

    def finish(self: Any, pending: Any) -> bool:
        self._contents.base, self._contents.entries = 0, []
        return bool(before(self, pending))

    return finish


# --- members and newcomers -----------------------------------------------------------------------------


def _counts_at_once(_before: Any) -> Any:
    """A wiped keeper votes, and its acknowledgements count, as soon as it is a member."""
    return property(lambda self: self.is_member)


def _several_changes(before: Any) -> Any:
    def unfit(self: Any, members: Any, *, joining: str = "") -> Any:
        return None if self._node.leads else before(self, members, joining=joining)

    return unfit


# --- proposals and reads -------------------------------------------------------------------------------


def _reads_here(self: Any, done: Any) -> None:
    self.soon(done, self.state)


# --- the state machine ---------------------------------------------------------------------------------


def _any_epoch(apply: Any) -> Any:
    def mutated(state: State, command: Any) -> Applied:
        if isinstance(command, Tick):
            command = replace(command, epoch=state.epoch)
        return apply(state, command)  # type: ignore[no-any-return]

    return mutated


def _any_claim(apply: Any) -> Any:
    def mutated(state: State, command: Any) -> Applied:
        if isinstance(command, ClaimConductor):
            command = replace(command, expected_epoch=state.epoch)
        return apply(state, command)  # type: ignore[no-any-return]

    return mutated


def _forgets_requests(apply: Any) -> Any:
    return lambda state, command: apply(replace(state, answered=type(state.answered)()), command)


def _any_version(apply: Any) -> Any:
    def mutated(state: State, command: Any) -> Applied:
        if isinstance(command, PutValue):
            command = replace(command, expected=None)
        return apply(state, command)  # type: ignore[no-any-return]

    return mutated


MUTATIONS: Mapping[str, Patch] = {
    "no fsync": method(SimulatedDisk, "sync", lambda _: lambda self, path: None),
    "sync a little later": method(storage.Storage, "sync", _synced_a_little_later),
    "vote not written": method(storage.Storage, "setCurrentTerm", _vote_not_written),
    "acknowledge before sync": method(nodes.RaftNode, "_send", _sent_before_sync),
    "journal cleared at load": method(Contents, "go_on_from", _cleared_at_load),
    "append truncates": method(followers.Followers, "_take", _cut_what_is_there),
    "commit unread entries": method(followers.Followers, "on_append", _commit_unread),
    "votes counted twice": method(elections.Elections, "on_response_vote", _any_vote_counts),
    "two votes in a term": method(elections.Elections, "on_request_vote", _votes_again),
    "vote for anybody": _for_anybody,
    "one acknowledgement is enough": method(library.Raft, "count_for", _half_is_enough),
    "older snapshot taken": together(
        value(storage.Storage, "begin_install", _takes_any), method(storage.Storage, "finish", _puts_any)
    ),
    "wiped keeper counts": method(Beginning, "counts", _counts_at_once),
    "many changes at once": method(membership.Membership, "_unfit", _several_changes),
    "reads are local": value(nodes.RaftNode, "barrier", _reads_here),
    "no epoch check": _core(_any_epoch),
    "claims not compared": _core(_any_claim),
    "requests forgotten": _core(_forgets_requests),
    "versions not compared": _core(_any_version),
}
