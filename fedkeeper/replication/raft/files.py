"""A keeper's files, `journal` and `snapshot`, in its own folder: read whole, appended to, replaced whole.

Files are never edited: a snapshot or a shortened journal is a new file, synced, renamed, the folder synced.
A snapshot is in place before the journal is begun anew; until then the entries that are in both are skipped
at a start. So there is no moment at which a crash loses an entry.

What is read at a start may have been written by a process that was killed, and be in the memory of this
machine only; or an fsync had failed, and what can be read is not what the disk has. So each start writes the
journal anew as well.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import structlog

from fedkeeper.errors import JournalError, JournalUnconfirmed
from fedkeeper.replication.raft.base import Disk
from fedkeeper.replication.raft.contents import Contents, Identity, replay
from fedkeeper.replication.raft.disk import journal_error, mapped
from fedkeeper.replication.raft.records import batch, damaged, read
from fedkeeper.replication.raft.snapshots import Snapshot

JOURNAL: Final = "journal"
SNAPSHOT: Final = "snapshot"
NEW: Final = ".new"  # what is being written and is not in place yet
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class PendingSnapshot:
    """A snapshot on its way to the disk: it may be begun and written on any thread."""

    def __init__(self, snapshot: Snapshot, path: Path, disk: Disk, *, fsync: bool) -> None:
        self.snapshot = snapshot
        self.path = path
        self._disk = disk
        self._fsync = fsync

    def write(self) -> None:
        """Write and sync the new file. JournalError if that cannot be: the log goes on without it."""
        with fresh(self.path, self._disk):
            self._disk.append(self.path, self.snapshot.encode())
            if self._fsync:
                self._disk.sync(self.path)


class Files:
    """Once it has raised, nothing more is written: the next start tells what is on disk."""

    def __init__(self, folder: Path, disk: Disk, *, fsync: bool) -> None:
        """Claim `folder`: JournalError if another process has it."""
        self.folder = folder
        self.journal = folder / JOURNAL
        self.snapshot = folder / SNAPSHOT
        self.size = 0  # bytes of the journal that are on disk
        self._number = 0  # of its last batch
        self._snapshots = itertools.count(1)  # that are begun; on any thread
        self._disk = disk
        self._fsync = fsync
        self._failed: JournalError | None = None
        with mapped(folder):
            disk.claim(folder)

    def load(self, newborn: Identity) -> Contents:
        """Read everything; what belongs to `newborn` if there is nothing. Follow it with `renew`.

        Raises JournalDamaged, or JournalError if the folder is another keeper's.
        """
        with mapped(self.folder):
            names = self._disk.names(self.folder)
            for name in names:
                if name.endswith(NEW):
                    self._disk.remove(self.folder / name)
            snapshot = self._load_snapshot() if SNAPSHOT in names else None
            # A snapshot that can be seen must be there to stay, before a journal relies on it.
            self._sync_folder()
            if JOURNAL in names:
                contents = self._load_journal()
            elif snapshot is None:
                return Contents(identity=newborn)
            else:
                raise damaged(f"{self.journal} is missing, and {SNAPSHOT} is there")
        if contents.identity.name != newborn.name:
            raise JournalError(
                f"{self.folder} belongs to keeper {contents.identity.name!r}, this one is {newborn.name!r}",
                hint="give each keeper a folder of its own, and start each under its own name",
            )
        self._check(contents, snapshot)
        if snapshot is not None:
            contents.go_on_from(snapshot)
        return contents

    def renew(self, contents: Contents) -> None:
        """Write a journal of all `contents` in the place of the old one."""
        self.refuse_after_failure()
        data = batch(1, contents.records())
        path = self.folder / (JOURNAL + NEW)
        try:
            with fresh(path, self._disk):
                self._disk.append(path, data)
                self._sync(path)
        except JournalError as exc:
            raise self._fail(exc) from exc.__cause__
        self._put(path, self.journal)
        self.size, self._number = len(data), 1

    def append(self, records: bytearray) -> None:
        """Put `records` on disk as one batch.

        JournalFull or JournalError: nothing of it is there. JournalUnconfirmed: it may be. An fsync that
        failed is never tried again: the kernel would forget what it could not write, and call it written.
        """
        self.refuse_after_failure()
        data = batch(self._number + 1, records)
        try:
            self._disk.append(self.journal, data)
        except OSError as exc:
            self._take_back(exc)
        with self._fatal():
            self._sync(self.journal)
        self._number += 1
        self.size += len(data)

    def pending(self, snapshot: Snapshot) -> PendingSnapshot:
        """A file of its own for `snapshot`."""
        path = self.folder / f"{SNAPSHOT}.{next(self._snapshots)}{NEW}"
        return PendingSnapshot(snapshot, path, self._disk, fsync=self._fsync)

    def put(self, pending: PendingSnapshot) -> None:
        """Let it, which is written, be the snapshot. Follow it with `renew`."""
        self.refuse_after_failure()
        self._put(pending.path, self.snapshot)

    def discard(self, pending: PendingSnapshot) -> None:
        """It is not needed any more."""
        with mapped(pending.path):
            self._disk.remove(pending.path)

    def read_snapshot(self) -> bytes:
        """The whole file."""
        with mapped(self.snapshot):
            return self._disk.read(self.snapshot)

    def close(self) -> None:
        """Let go of the files and the folder; again is harmless."""
        if self._failed is None:
            self._failed = JournalError(f"{self.journal} is closed")
        self._disk.close()

    @property
    def failed(self) -> bool:
        """Whether it takes nothing more."""
        return self._failed is not None

    def refuse_after_failure(self) -> None:
        """Raise what was raised before."""
        if self._failed is not None:
            raise type(self._failed)(str(self._failed), hint=self._failed.hint)

    def _load_snapshot(self) -> Snapshot:
        snapshot = Snapshot.decode(self._disk.read(self.snapshot), str(self.snapshot))
        self._sync(self.snapshot)
        return snapshot

    def _load_journal(self) -> Contents:
        data = self._disk.read(self.journal)
        records, size = read(data, str(self.journal))
        if size < len(data):
            place = f"{self.journal} (byte {size})"
            _log.warning("torn batch cut off", place=place, bytes=len(data) - size)
        return replay(records)

    def _check(self, contents: Contents, snapshot: Snapshot | None) -> None:
        """That they belong together."""
        index = snapshot.index if snapshot else 0
        if index < contents.base:
            found = f"is of entry {index}" if snapshot else "is missing"
            raise damaged(f"{self.journal} goes on from entry {contents.base}, {self.snapshot} {found}")
        if snapshot is None:
            return
        if snapshot.cluster != contents.identity.cluster:
            raise damaged(
                f"{self.snapshot} is of cluster {snapshot.cluster}, {JOURNAL} of {contents.identity.cluster}"
            )
        if index == contents.base and [snapshot.previous, snapshot.last] != contents.entries[:2]:
            raise damaged(f"{self.snapshot}: its last entries are not the first of {JOURNAL}")

    def _put(self, source: Path, target: Path) -> None:
        with self._fatal():
            self._disk.replace(source, target)
            self._sync_folder()

    def _take_back(self, exc: OSError) -> NoReturn:
        """Cut off the part of a batch that was written, if any was: a disk may have become read-only."""
        with self._fatal():
            if len(self._disk.read(self.journal)) > self.size:
                self._disk.truncate(self.journal, self.size)
                self._sync(self.journal)
        raise self._fail(journal_error(exc, self.journal)) from exc

    def _sync(self, path: Path) -> None:
        if self._fsync:
            self._disk.sync(path)

    def _sync_folder(self) -> None:
        if self._fsync:
            self._disk.sync_folder(self.folder)

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """After a failure here only the next start can tell what is on disk."""
        try:
            yield
        except OSError as exc:
            raise self._fail(
                JournalUnconfirmed(
                    f"{exc.filename or self.journal}: {exc.strerror}",
                    hint="start this keeper again once the disk is well: the journal tells what was written",
                )
            ) from exc

    def _fail(self, error: JournalError) -> JournalError:
        self._failed = error
        return error


@contextlib.contextmanager
def fresh(path: Path, disk: Disk) -> Iterator[None]:
    """For writing the new file `path`: it is removed if that fails, because a full disk needs the space."""
    try:
        yield
    except OSError as exc:
        with contextlib.suppress(OSError):
            disk.remove(path)
        raise journal_error(exc, path) from exc
