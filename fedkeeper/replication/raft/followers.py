"""What a follower does with its leader's entries and snapshots.

PySyncObj's own follower deletes whatever stands after the entry that a message goes on from, also what it has
acknowledged (a repeated message is enough), moves its commit index over entries that nobody has compared, and
installs any snapshot, also one older than its state. This one deletes only what conflicts, and acknowledges
and commits only what the leader's messages have been compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from fedkeeper.errors import JournalDamaged, JournalError, KeeperStopped
from fedkeeper.replication import codec

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

SNAPSHOT_BYTES_MAX: Final = 1024 * 1024 * 1024
log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class Followers:
    """One node's part as a follower."""

    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self._incoming: tuple[str, int, int] = (
            "",
            0,
            0,
        )  # a snapshot: from whom, in which term, of which entry
        self._received = bytearray()
        self._compared: tuple[str, int, int] | None = None  # to be acknowledged: leader, term, index

    def on_append(self, peer: str, message: dict[str, Any]) -> None:
        """Entries, or none: a heartbeat."""
        if not self._accept(peer, message["term"]):
            return
        if not self._node.beginning.is_member:
            self._answer(peer, success=False)
            return
        before, entries = message["before"], message["entries"]
        if not self._goes_on(peer, before, message["before_term"]):
            return
        self._take(peer, entries)
        compared = before + len(entries)
        self._commit(min(message["commit"], compared))
        if not message["quiet"]:
            self._compared = (peer, self._node.term, max(compared, self._already(peer)))

    def on_snapshot(self, peer: str, message: dict[str, Any]) -> None:
        """A piece of one. Its answer says how much of it is here."""
        node = self._node
        if not self._accept(peer, message["term"]) or not node.beginning.is_member:
            return
        which = (peer, node.term, message["index"])
        if self._incoming != which:
            self._incoming = which
            self._received.clear()
        if message["offset"] == len(self._received) and message["size"] <= SNAPSHOT_BYTES_MAX:
            self._received += message["data"]
        received = len(self._received)
        if received == message["size"]:
            data = bytes(self._received)
            self._forget()
            compared = self._install(peer, data)
            if not compared:
                return  # the leader tries again, in a while
            self._compared = (peer, node.term, compared)
        answer = {"type": "snapshot_ack", "term": node.term, "index": message["index"], "received": received}
        node.say(peer, answer)

    def answer(self) -> None:
        """Acknowledge, once, what the messages of one read have brought. After the sync, as all promises."""
        node, compared = self._node, self._compared
        self._compared = None
        if compared is not None and compared[1] == node.term:
            self._answer(compared[0], success=True, following=compared[2] + 1)

    # --- in detail ---------------------------------------------------------------------------------------

    def _accept(self, peer: str, term: int) -> bool:
        """Follow the leader `peer`, unless it is none any more."""
        node = self._node
        if term < node.term:
            self._answer(peer, success=False)  # with our term: it learns that its time is over
            return False
        if term == node.term and node.leads:
            raise KeeperStopped(
                f"{peer} leads in term {term}, and so does {node.name}",
                hint="has a keeper's folder been copied, or put back from a backup?",
            )
        node.follow(term)
        if node.leader != peer:
            node.leader = peer
            self._forget()
        node.elections.heard_leader()
        return True

    def _already(self, peer: str) -> int:
        """The index up to which `peer` has been compared in this read; 0: not at all."""
        compared = self._compared
        return compared[2] if compared and compared[:2] == (peer, self._node.term) else 0

    def _goes_on(self, peer: str, before: int, term: int) -> bool:
        """Whether the entry `before` is here; if not, tell the leader from where to send."""
        node = self._node
        if before < node.first_index:
            return True  # it is in our snapshot: committed, so it is the leader's as well
        if before > node.last_index:
            self._answer(peer, success=False, following=node.last_index + 1, reset=True)
            return False
        ours = node.entry(before)[2]
        if ours == term:
            return True
        if before <= node.commit_index:
            raise _contradiction(peer, before)
        while before > max(node.first_index, node.commit_index) and node.entry(before)[2] == ours:
            before -= 1  # the leader may lack all of that term
        self._answer(peer, success=False, following=before + 1, reset=True)
        return False

    def _take(self, peer: str, entries: list[Any]) -> None:
        node = self._node
        storage, first = node.entries, node.first_index
        for command, index, term in entries:
            position = index - first
            if position < 0:
                continue  # in our snapshot
            if position < len(storage):
                if storage[position][2] == term:
                    continue  # it is here, and may have been acknowledged: leave it alone
                if index <= node.commit_index:
                    raise _contradiction(peer, index)
                storage.deleteEntriesFrom(position)
                node.membership.log_changed()
            elif position > len(storage):
                raise KeeperStopped(f"{peer} sent entry {index} after entry {node.last_index}")
            storage.add(command, index, term)
            node.membership.appended(command)

    def _commit(self, index: int) -> None:
        self._node.commit_index = max(self._node.commit_index, index)

    def _install(self, peer: str, data: bytes) -> int:
        """Put the snapshot in the place of everything up to its entry; return that entry's index."""
        node = self._node
        try:
            pending = node.storage.begin_install(data, peer)
            if pending is None:
                return node.commit_index  # it is no newer than what is here
            snapshot = pending.snapshot
            state = codec.decode_state(snapshot.state, place=f"the snapshot that {peer} sent")
        except JournalDamaged as exc:
            if exc.hint == codec.UPGRADE:
                raise
            log.warning("snapshot refused", keeper=node.name, leader=peer, problem=str(exc))
            return 0
        except JournalError as exc:
            log.warning("snapshot refused", keeper=node.name, leader=peer, problem=str(exc))
            return 0
        pending.write()
        if not node.storage.finish(pending):
            return node.commit_index
        node.applied_index = snapshot.index
        self._commit(snapshot.index)
        node.proposals.skipped(snapshot.term)
        node.membership.restored(snapshot.members)
        node.restored(state, snapshot.index)
        return snapshot.index

    def _forget(self) -> None:
        self._incoming = ("", 0, 0)
        self._received.clear()

    def _answer(self, peer: str, *, success: bool, following: int = 0, reset: bool = False) -> None:
        node = self._node
        node.say(
            peer,
            {
                "type": "appended",
                "term": node.term,
                "next": following,
                "reset": reset,
                "success": success,
                "newcomer": not node.beginning.counts,
            },
        )


def _contradiction(leader: str, index: int) -> KeeperStopped:
    return KeeperStopped(
        f"entry {index} is committed here, and leader {leader} has another one",
        hint="has a keeper's folder been put back from a backup? Move it away: the keeper rejoins empty",
    )
