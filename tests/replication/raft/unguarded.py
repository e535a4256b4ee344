"""PySyncObj's own code back in the place of our guards, or nothing where it has nothing. See `guards`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkeeper.errors import FedKeeperError, JournalDamaged
from fedkeeper.replication.raft import records
from fedkeeper.replication.raft.applying import Applying
from fedkeeper.replication.raft.contents import Contents
from fedkeeper.replication.raft.elections import Elections
from fedkeeper.replication.raft.files import Files
from fedkeeper.replication.raft.followers import Followers
from fedkeeper.replication.raft.leading import Leading
from fedkeeper.replication.raft.library import Raft
from fedkeeper.replication.raft.node import RaftNode
from fedkeeper.replication.raft.proposals import Proposals
from fedkeeper.replication.raft.snapshots import Snapshot
from fedkeeper.replication.raft.storage import Storage
from tests.patches import method, together, value

# --- the library's own code, put back --------------------------------------------------------------------


def library_appends(before: Any) -> Any:
    """Entries go to the library's own handler, in its own words."""

    def on_append(self: Followers, peer: str, message: dict[str, Any]) -> None:
        if not self._node.beginning.is_member or message["term"] < self._node.term:
            before(self, peer, message)
            return
        self._node.elections.heard_leader()
        theirs = {"type": "append_entries", "term": message["term"], "commit_index": message["commit"]}
        if message.get("dumping"):
            theirs["serialized"] = None
        else:
            theirs["prevLogIdx"], theirs["prevLogTerm"] = message["before"], message["before_term"]
            theirs["entries"] = message["entries"]
        self._node.hand(peer, theirs)

    return on_append


def library_says(before: Any) -> Any:
    """In our words, which a leader of ours reads; and as long as it dumps, a leader sends no entries."""

    def say(self: RaftNode, peer: str, message: dict[str, Any]) -> None:
        if message["type"] == "next_node_idx":
            answer = {"type": "appended", "term": self.term, "next": message["next_node_idx"]}
            message = {**message, **answer, "newcomer": not self.beginning.counts}
        elif message["type"] == "append" and self.storage.snapshot_index:
            following = self.leading._of(peer).following
            message = {**message, "dumping": following <= self.first_index}
        before(self, peer, message)

    return say


def library_calls_back(self: RaftNode, call: Callable[[], None]) -> None:
    """In the middle of applying, before the entry is noted as applied."""
    call()


def library_clears(self: Contents, snapshot: Any) -> None:
    """As `__loadDumpFile` does: the journal begins with other entries than the dump's, so it is cleared."""
    if self.entries[:2] != [snapshot.previous, snapshot.last]:
        self.entries = [snapshot.previous, snapshot.last]
    self.base, self.commit = snapshot.index, max(self.commit, snapshot.index)


def library_counts_votes(self: Elections, peer: str, message: dict[str, Any]) -> None:
    """Every message is a vote."""
    self._node.hand(peer, message)


def library_skips(before: Any) -> Any:
    """An entry that this version cannot read is logged and passed over."""

    def entry(self: Applying, data: bytes) -> None:
        try:
            before(self, data)
        except JournalDamaged:
            return

    return entry


def library_waits(before: Any) -> Any:
    """A command for which there is no leader is queued, without a limit of time."""

    def propose(self: Proposals, *args: Any) -> None:
        if self._node.leader:
            before(self, *args)

    return propose


def library_falls_back(before: Any) -> Any:
    """After its own default."""

    def init(self: Raft, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        self.conf.leaderFallbackTimeout = 30.0  # its default

    return init


def library_loads(before: Any) -> Any:
    """A snapshot that cannot be read is logged, and the keeper goes on with an empty state."""

    def load(self: Files) -> Any:
        try:
            return before(self)
        except JournalDamaged:
            return None

    return load


# --- other ways to be without a guard --------------------------------------------------------------------


def apply_unguarded(self: Applying, command: Any, _index: int) -> Any:
    """What the machine raises goes on its way."""
    applied = self._apply(self.state, command)
    self.state = applied.state
    return applied


def vote_in_memory(before: Any) -> Any:
    """The term and the vote are not put on disk."""

    def set_current_term(self: Storage, term: int, voted: str | None) -> None:
        pending = bytes(self._pending)
        before(self, term, voted)
        self._pending[:] = pending

    return set_current_term


def any_answer(before: Any) -> Any:
    """Of whatever term it is."""

    def is_answer(self: Leading, peer: str, message: dict[str, Any]) -> bool:
        return bool(before(self, peer, {**message, "term": self._node.term}))

    return is_answer


def library_installs(self: Storage, data: bytes, origin: str) -> Any:
    """Whatever comes."""
    return self._files.pending(Snapshot.decode(data, origin))


def library_puts(before: Any) -> Any:
    """`clearJournal=True`: nothing else is left of the log."""

    def finish(self: Storage, pending: Any) -> bool:
        self._contents.base, self._contents.entries = 0, []
        return bool(before(self, pending))

    return finish


def any_term(before: Any) -> Any:
    """Whichever leader it was meant for."""

    def on_forward(self: Proposals, peer: str, message: dict[str, Any]) -> None:
        before(self, peer, {**message, "term": self._node.term})

    return on_forward


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """Not done."""


def read_here(self: RaftNode, done: Any) -> None:
    """As the local state is, and at once."""
    self.soon(done, self.state)


def on_after_failure(_self: Files, error: FedKeeperError) -> Any:
    """The error is told, and forgotten."""
    return error


def commit_unread(before: Any) -> Any:
    """Up to the leader's commit index, whatever is there."""

    def on_append(self: Followers, peer: str, message: dict[str, Any]) -> None:
        before(self, peer, message)
        self._commit(min(message["commit"], self._node.last_index))

    return on_append


class NoChecksum:
    """Every checksum is right."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args: 0


library_follows = together(
    method(Followers, "on_append", library_appends), method(RaftNode, "say", library_says)
)
no_checksums = value(records, "zlib", NoChecksum())
