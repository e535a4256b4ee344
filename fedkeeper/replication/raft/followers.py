"""What followers do with a leader's entries, and a leader with their acknowledgements.

Both are ours and not PySyncObj's. Its follower deletes whatever stands after the entry that a message goes
on from, also what it has acknowledged (a late or repeated message is enough), advances its commit index over
entries that nobody verified, and installs any snapshot, also one older than its state; its acknowledgements
carry no term, and each sets the leader's next index back to what is acknowledged.
"""

from __future__ import annotations

from typing import Any

import structlog

from fedkeeper.errors import JournalError, KeeperStopped
from fedkeeper.replication import codec
from fedkeeper.replication.raft.library import FAIL_REASON, Peer

FOLLOWER = 0
CHUNK_BYTES = 1024 * 1024
log = structlog.get_logger(__name__)


class Sending:
    """In the place of the library's Serializer: sends our snapshot, piece by piece."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._under_way: dict[Any, tuple[bytes, int]] = {}

    def getTransmissionData(self, peer: Peer) -> tuple[bytes, bool, bool] | None:  # noqa: N802
        """The next piece for `peer`: bytes, whether it is the first, whether it is the last."""
        data, position = self._under_way.get(peer) or (self._node.storage.snapshot_bytes(), 0)
        piece = data[position : position + CHUNK_BYTES]
        position += len(piece)
        last = position >= len(data)
        if last:
            self._under_way.pop(peer, None)
        else:
            self._under_way[peer] = (data, position)
        return piece, position == len(piece), last

    def cancelTransmisstion(self, peer: Peer) -> None:  # noqa: N802 - the library's spelling
        """Begin anew next time."""
        self._under_way.pop(peer, None)

    def checkSerializing(self) -> tuple[int, None]:  # noqa: N802
        """Never: see `_SyncObj__tryLogCompaction`."""
        return 0, None


class Followers:
    """Of RaftNode."""

    def _init_followers(self: Any) -> None:
        self._SyncObj__serializer = Sending(self)
        self._incoming: tuple[str, bytearray] | None = None  # a snapshot: from whom, and what came so far

    # --- as a follower ---------------------------------------------------------------------------------

    def _on_append(self: Any, peer: Peer, message: dict[str, Any]) -> None:
        term = message["term"]
        if term < self.raftCurrentTerm:
            return
        if term == self.raftCurrentTerm and self.leads:
            raise KeeperStopped(f"{peer.id} leads in term {term}, and so does {self.name}")
        self._heard_leader()
        if term > self.raftCurrentTerm:
            self._SyncObj__transferInProgress = False
        if not self._SyncObj__transferInProgress:
            self._put_off()
        if self._SyncObj__raftLeader != peer:
            self._SyncObj__onLeaderChanged()
            self._incoming = None
        self._SyncObj__raftLeader = peer
        if term > self.raftCurrentTerm:
            self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__leaderCommitIndex = message["commit_index"]
        if "prevLogIdx" in message:
            self._incoming = None
            verified = self._take_entries(peer, message)
        else:
            verified = self._take_snapshot(peer, message.get("serialized"))
        if verified:
            self._SyncObj__sendNextNodeIdx(peer, nextNodeIdx=verified + 1, success=True)
            committed = min(message["commit_index"], verified)
            if committed > self.raftCommitIndex:
                self._SyncObj__raftCommitIndex = committed
                self.storage.setRaftCommitIndex(committed)

    def _take_entries(self: Any, peer: Peer, message: dict[str, Any]) -> int:
        """The index up to which this log is the leader's; 0: it does not follow on, as the leader is told."""
        before, entries = message["prevLogIdx"], message["entries"]
        first = self.storage[0][1]
        verified = before + len(entries)
        if before < first:  # it is in our snapshot, and what is in that is committed
            if verified <= self.storage.snapshot_index:
                return int(verified)
            entries = entries[first - before :]
        elif before > self.last_index:
            self._SyncObj__sendNextNodeIdx(peer, success=False, reset=True)
            return 0
        elif self.storage[before - first][2] != message["prevLogTerm"]:
            if before <= self.raftCommitIndex:
                raise KeeperStopped(f"entry {before} is committed, and leader {peer.id} has another one")
            self._SyncObj__sendNextNodeIdx(peer, nextNodeIdx=before, success=False, reset=True)
            return 0
        for command, index, term in entries:
            position = index - first
            if position < len(self.storage):
                if self.storage[position][2] == term:
                    continue  # it is here, and may have been acknowledged: never touch it
                self._cut_from(position, index, peer)
            elif position != len(self.storage):
                raise KeeperStopped(f"leader {peer.id} sent entry {index} after {self.last_index}")
            self.storage.add(command, index, term)
            self._membership_appended(command, index)
        return int(verified)

    def _cut_from(self: Any, position: int, index: int, peer: Peer) -> None:
        """Entries of a leader that lost."""
        if index <= self.raftCommitIndex:
            raise KeeperStopped(f"entry {index} is committed, and leader {peer.id} has another one")
        self._membership_cut(self.storage[position:])
        self.storage.deleteEntriesFrom(position)

    def _take_snapshot(self: Any, peer: Peer, piece: Any) -> int:
        """The index of the snapshot once it is whole and in place; 0 before."""
        if piece is None:
            return 0
        data, is_first, is_last = piece
        if is_first:
            self._incoming = (peer.id, bytearray())
        if self._incoming is None or self._incoming[0] != peer.id:
            return 0
        self._incoming[1].extend(data)
        if not is_last:
            return 0
        whole, self._incoming = bytes(self._incoming[1]), None
        try:
            snapshot = self.storage.install_snapshot(whole, peer.id)
        except JournalError as exc:
            if self.storage.failed:
                raise
            log.warning("snapshot refused", leader=peer.id, problem=str(exc))
            return 0
        if snapshot is None:  # no newer than what is committed here
            return int(self.raftCommitIndex)
        self.state = codec.decode_state(snapshot.state, place=f"the snapshot that {peer.id} sent")
        self._SyncObj__raftLastApplied = snapshot.index
        self._SyncObj__raftCommitIndex = max(self.raftCommitIndex, snapshot.index)
        self._take_members(snapshot.members)
        for index in [one for one in self._SyncObj__commandsWaitingCommit if one <= snapshot.index]:
            for _, callback in self._SyncObj__commandsWaitingCommit.pop(index):
                callback(None, FAIL_REASON.UNKNOWN_OUTCOME)
        self._installed()
        return int(snapshot.index)

    # --- as the leader ---------------------------------------------------------------------------------

    def _on_acknowledged(self: Any, peer: Peer, message: dict[str, Any]) -> None:
        if (
            not self.leads
            or message.get("term") != self.raftCurrentTerm
            or peer not in self._SyncObj__raftNextIndex
        ):
            return
        upcoming = self._SyncObj__raftNextIndex[peer]
        self._SyncObj__onMessageReceived(peer, message)
        if message["success"]:  # what is under way need not be sent again
            self._SyncObj__raftNextIndex[peer] = max(self._SyncObj__raftNextIndex[peer], upcoming)
        elif message["reset"]:
            self._announced = (0, 0)  # tell it at once what it lacks
        self._learner_acknowledged(peer)
