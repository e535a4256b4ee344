"""What a keeper must not forget (term, vote, entries, snapshot, identity), behind PySyncObj's journal hook.

All but the snapshot are records of one file, in the order in which they were made. They are gathered in
memory, and `sync` puts all that was gathered on disk at once: whoever is about to send or to count something
that depends on them calls it first.

PySyncObj's own journal is cleared when a crash falls between its dump and its truncation; see `files` why
this one never has to be. So `clear` is refused; the node loads and installs snapshots by the methods here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn, overload

from msgspec.structs import replace

from fedkeeper.errors import JournalError
from fedkeeper.replication.raft.base import Disk
from fedkeeper.replication.raft.contents import Identity
from fedkeeper.replication.raft.files import Files, PendingSnapshot
from fedkeeper.replication.raft.records import Kind, record
from fedkeeper.replication.raft.snapshots import Entry, Snapshot

OUR_FAULT: Final = "this is a fault of FedKeeper: please report it"


class Storage:
    """Blocking; called on the node's thread. Every error it raises is a JournalError.

    Once `sync`, or what syncs, has raised, nothing more is written: the node has to stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disk: Disk,
        fsync: bool,
        owner: str,
        incarnation: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """Claim `folder` and read what is in it; an empty one becomes `owner`'s, under a new incarnation.

        JournalDamaged, which names the file, the batch and the byte; JournalError if the folder is in use or
        another keeper's; JournalFull.
        """
        self._pending = bytearray()  # records that are not on disk yet
        self._commit: int  # as it is on disk
        self._durable: int
        try:
            self._files = Files(folder, disk, fsync=fsync)
            self._contents = self._files.load(Identity(name=owner, incarnation=incarnation()))
            self._renew()
        except BaseException:
            disk.close()
            raise

    # What PySyncObj asks for (`pysyncobj.journal.Journal`). Positions count from the first entry kept.

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry; it is in memory until `sync`."""
        self._contents.entries.append((command, idx, term))
        self._pending += record(Kind.ENTRY, index=idx, term=term, data=command)

    def clear(self) -> NoReturn:
        """Never: it would drop entries that were acknowledged."""
        raise JournalError(f"{self._files.journal}: refusing to clear it", hint=OUR_FAULT)

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        """Cut off the entries from that position on."""
        entries = self._contents.entries
        if entryFrom < len(entries):
            index = entries[entryFrom][1]
            del entries[entryFrom:]
            self._pending += record(Kind.CUT, index=index)
            self._durable = min(self._durable, index - 1)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        """Let go of the entries before that position: `finish` has done so; others need a snapshot."""
        if entryTo > 0:
            raise JournalError(
                f"{self._files.journal}: refusing to drop entries that no snapshot holds", hint=OUR_FAULT
            )

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._contents.entries[item]

    def __len__(self) -> int:
        return len(self._contents.entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Noted with the next `sync`, and not worth one of its own."""
        self._contents.commit = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """At least this was committed when the journal was last written; 1 at first."""
        return self._contents.commit

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Note the term and the vote in it. JournalError instead of going back, or of a second vote."""
        before, voted = self._contents.term, self._contents.voted
        if term < before or (term == before and voted is not None and voted != votedForNodeId):
            raise JournalError(
                f"{self._files.journal}: refusing term {term} with a vote for {votedForNodeId!r} after term"
                f" {before} with one for {voted!r}",
                hint=OUR_FAULT,
            )
        self._contents.term, self._contents.voted = term, votedForNodeId
        self._pending += record(Kind.TERM, term=term, data=(votedForNodeId or "").encode())

    def getCurrentTerm(self) -> int:  # noqa: N802
        """0 at first."""
        return self._contents.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """For whom this keeper voted in the current term."""
        return self._contents.voted

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Nothing waits for it."""

    def _destroy(self) -> None:
        self.close()

    # What makes it durable.

    @property
    def dirty(self) -> bool:
        """Whether there is anything that `sync` would put on disk."""
        return bool(self._pending)

    @property
    def failed(self) -> bool:
        """Whether nothing is written any more."""
        return self._files.failed

    @property
    def durable_index(self) -> int:
        """Of the last entry that is on disk, and so are all before it. 0: none."""
        return self._durable

    @property
    def journal_bytes(self) -> int:
        """How large the journal is on disk."""
        return self._files.size

    def sync(self) -> None:
        """Put all that was noted on disk: in order, all of it or (after a crash) nothing.

        JournalFull or JournalError: nothing of it is there. JournalUnconfirmed: it may be.
        """
        self._files.refuse_after_failure()
        if not self._pending:
            return
        if self._contents.commit != self._commit:
            self._commit = self._contents.commit
            self._pending += record(Kind.COMMIT, index=self._commit)
        self._files.append(self._pending)
        self._pending.clear()
        self._durable = self._contents.last_index

    def close(self) -> None:
        """Write what is left, and let go of the files and the folder; again is harmless."""
        try:
            if not self._files.failed:
                self.sync()
        finally:
            self._files.close()

    # Who this keeper is.

    @property
    def identity(self) -> Identity:
        """As it is on disk."""
        return self._contents.identity

    def join(self, cluster: str, founders: Mapping[str, str], *, newcomer_until: int = 0) -> None:
        """Be of that cluster from now on, on disk: as one of those that begin it, or as a newcomer."""
        if self.identity.cluster not in ("", cluster):
            raise JournalError(
                f"{self._files.folder} is of cluster {self.identity.cluster}, not of {cluster}"
            )
        self._become(
            replace(self.identity, cluster=cluster, founders=dict(founders), newcomer_until=newcomer_until)
        )

    def caught_up(self) -> None:
        """A newcomer no longer, on disk: it has what the leader had when it came."""
        if self._contents.last_index < self.identity.newcomer_until:
            raise JournalError(
                f"{self._files.folder}: entry {self.identity.newcomer_until} is still missing", hint=OUR_FAULT
            )
        self._become(replace(self.identity, newcomer_until=0))

    def _become(self, identity: Identity) -> None:
        self._contents.identity = identity
        self._pending += identity.record(Kind.IDENTITY)
        self.sync()

    # Snapshots.

    @property
    def snapshot_index(self) -> int:
        """Of the last entry in the snapshot; 0: there is none."""
        return self._contents.base

    def snapshot(self) -> Snapshot | None:
        """Read it from disk."""
        if not self._contents.base:
            return None
        return Snapshot.decode(self.snapshot_bytes(), str(self._files.snapshot))

    def snapshot_bytes(self) -> bytes:
        """As it can be sent to a follower. JournalError if there is none."""
        return self._files.read_snapshot()

    def begin_snapshot(
        self, state: bytes, last: tuple[Entry, Entry], members: Mapping[str, str]
    ) -> PendingSnapshot:
        """Prepare one of `state`, which is that after `last[1]` (`last[0]` is the entry before it).

        This and `PendingSnapshot.write` may run on any thread while the log goes on; `finish` may not.
        """
        return self._files.pending(
            Snapshot(
                cluster=self.identity.cluster,
                previous=last[0],
                last=last[1],
                members=members,
                state=state,
            )
        )

    def begin_install(self, data: bytes, origin: str) -> PendingSnapshot | None:
        """Prepare the one that `origin` sent. None: no newer than what is committed here.

        JournalDamaged if it does not check, JournalError if it is another cluster's.
        """
        snapshot = Snapshot.decode(data, f"the snapshot that {origin} sent")
        if snapshot.cluster != self.identity.cluster:
            raise JournalError(
                f"the snapshot that {origin} sent is of cluster {snapshot.cluster!r}, this keeper of"
                f" {self.identity.cluster!r}"
            )
        if snapshot.index <= self._contents.commit:
            return None
        return self._files.pending(snapshot)

    def finish(self, pending: PendingSnapshot) -> bool:
        """Put in place what was written, and let the log go on from it. False: a newer one is there already.

        All that was noted before is on disk afterwards.
        """
        self._files.refuse_after_failure()
        if pending.snapshot.index <= self._contents.base:
            self._files.discard(pending)
            return False
        self.sync()
        self._files.put(pending)
        self._contents.go_on_from(pending.snapshot)
        self._renew()
        return True

    def save_snapshot(self, state: bytes, last: tuple[Entry, Entry], members: Mapping[str, str]) -> None:
        """Begin, write and finish."""
        pending = self.begin_snapshot(state, last, members)
        pending.write()
        self.finish(pending)

    def install_snapshot(self, data: bytes, origin: str) -> Snapshot | None:
        """Begin, write and finish; what the log goes on from now, or None if nothing has changed."""
        pending = self.begin_install(data, origin)
        if pending is None:
            return None
        pending.write()
        return pending.snapshot if self.finish(pending) else None

    def _renew(self) -> None:
        self._files.renew(self._contents)
        self._pending.clear()
        self._commit = self._contents.commit
        self._durable = self._contents.last_index
