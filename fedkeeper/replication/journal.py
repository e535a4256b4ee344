"""The files of a one-node log: `journal.jsonl`, `snapshot.json` and `lock`, in a folder of their own.

A record is one line: `crc32 seq first json`. `crc32` (hex) is of all that follows it; `seq` counts commands
from 1; `first` is the `seq` of the first record that was written in the same batch. The journal begins with
a record that carries the `seq` it goes on from, so that a lost or emptied file does not pass for a new one.

What a crash may leave: a last batch of which some bytes are missing or, after a power cut, some blocks read
as zeros. That batch was never acknowledged and is cut off. A batch is begun only after the one before it is
on disk, so any other fault is damage, and is never repaired by dropping what was acknowledged.

A snapshot is in place, durably, before the journal is begun anew, and the commands that are in both are
skipped by their `seq`: there is no moment at which a crash loses one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import JournalDamaged, JournalError, JournalFull, JournalUnconfirmed
from fedkeeper.replication import codec

Apply = Callable[[State, Command], Applied]
HEADER: Final = b'{"kind":"Journal","v":1}'
NOT_WRITABLE: Final = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
)
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Record:
    seq: int
    first: int
    payload: bytes
    place: str  # "…/journal.jsonl, line 3 (byte 210)"


class Journal:
    """Blocking; its owner calls from one thread at a time. Every error it raises is a JournalError."""

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        """Make `folder` (0700) and lock it: JournalError if another process has it."""
        self.folder = folder
        self.entries = 0  # commands in the journal that no snapshot holds
        self._fsync = fsync
        self._journal = folder / "journal.jsonl"
        self._snapshot = folder / "snapshot.json"
        self._fd = -1
        self._size = 0  # bytes of the journal that are on disk
        self._seq = 0  # of the last record
        with _mapped(folder):
            self._make_folder()
            self._lock = _lock(folder / "lock")

    def load(self, apply: Apply) -> State:
        """Snapshot, then every command after it; a torn tail is cut off. Raises JournalDamaged."""
        with _mapped(self.folder):
            state = self._load_snapshot()
            snapshot_seq = self._seq
            if not self._journal.exists():
                if self._snapshot.exists():
                    raise _damaged(f"{self._journal} is missing, and {self._snapshot.name} is there")
                self._renew(0)
            else:
                self._fd = _open_journal(self._journal)
            last_seq = 0
            for record in self._records(snapshot_seq):
                last_seq = record.seq
                if record.seq > snapshot_seq:
                    state = _replay(apply, state, record)
                    self.entries += 1
            self._seq = max(snapshot_seq, last_seq)
            # What a killed process wrote, or put in place, may still be in memory only, and is relied upon
            # from now on.
            self._sync(self._fd)
            self._sync_folder(self.folder)
            if last_seq < snapshot_seq:
                self._renew(snapshot_seq)
        return state

    def append(self, lines: Sequence[bytes]) -> None:
        """Write `lines` as one batch and wait for the disk.

        Raises JournalFull or JournalError if none of them is in the journal, JournalUnconfirmed if some may
        be. In either case nothing more must be appended.
        """
        first = self._seq + 1
        batch = b"".join(_record(first + index, first, line) for index, line in enumerate(lines))
        try:
            _write(self._fd, batch)
            self._sync(self._fd)
        except OSError as exc:
            try:
                os.ftruncate(self._fd, self._size)
                self._sync(self._fd)
            except OSError as worse:
                raise JournalUnconfirmed(
                    f"{self._journal}: {exc.strerror}, then {worse.strerror}",
                    hint="start again once the disk is well: the journal tells what was written",
                ) from exc
            raise _journal_error(exc, self._journal) from exc
        self._size += len(batch)
        self._seq += len(lines)
        self.entries += len(lines)

    def compact(self, state: State) -> None:
        """Write `state`, which every command so far has been applied to, and begin the journal anew.

        A snapshot that cannot be written is reported only: the journal goes on as it is. Raises JournalError
        if the journal cannot be begun anew: then nothing more must be appended.
        """
        self.entries = 0  # or the next attempt would follow at once
        try:
            payload = codec.encode_state(state)
            self._replace(self._snapshot, _record(self._seq, self._seq, payload))
        except (OSError, JournalError) as exc:
            _log.error("snapshot failed", file=str(self._snapshot), problem=str(exc))
            return
        with _mapped(self._journal):
            self._renew(self._seq)

    def close(self) -> None:
        """Let go of the files and the lock; again is harmless."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    def _load_snapshot(self) -> State:
        try:
            data = self._snapshot.read_bytes()
        except FileNotFoundError:
            return State()
        place = f"{self._snapshot}, line 1 (byte 0)"
        record = _parse(data.removesuffix(b"\n"), place)
        if record is None:
            raise _damaged(f"{place}: the checksum is wrong")
        self._seq = record.seq
        return codec.decode_state(record.payload, place=place)

    def _records(self, snapshot_seq: int) -> Iterator[_Record]:
        """Every record, checked; cuts off a torn tail and sets the size."""
        data = self._journal.read_bytes()
        offset, number, expected = 0, 0, -1
        while offset < len(data) or number == 0:
            number += 1
            place = f"{self._journal}, line {number} (byte {offset})"
            end = data.find(b"\n", offset)
            line = data[offset:] if end < 0 else data[offset:end]
            record = _parse(line, place) if end >= 0 else None
            if number == 1 and (record is None or record.payload != HEADER):
                raise _damaged(f"{place}: not the beginning of a journal that this version knows")
            if record is None:
                if _torn(line, data[offset + len(line) :], whole=end >= 0, expected=expected):
                    self._cut(offset, len(data), place)
                    return
                raise _damaged(f"{place}: the checksum is wrong")
            if number == 1 and record.seq > snapshot_seq:
                raise _damaged(f"{place}: goes on from {record.seq}, the snapshot is of {snapshot_seq}")
            if number > 1 and record.seq != expected:
                raise _damaged(f"{place}: record {record.seq} where {expected} belongs")
            yield record
            expected, offset = record.seq + 1, end + 1
            self._size = offset

    def _cut(self, size: int, was: int, place: str) -> None:
        _log.warning("torn record cut off", place=place, bytes=was - size)
        os.ftruncate(self._fd, size)

    def _renew(self, seq: int) -> None:
        """An empty journal that goes on from `seq`, in the place of what was there."""
        header = _record(seq, seq, HEADER)
        self._replace(self._journal, header)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._fd = _open_journal(self._journal)
        self._size = len(header)

    def _replace(self, path: Path, data: bytes) -> None:
        """Old or new content, never a mixture, whenever the machine stops."""
        fresh = path.with_name(path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data)
            self._sync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()  # a full disk needs the space
            raise
        finally:
            os.close(fd)
        fresh.replace(path)
        self._sync_folder(path.parent)

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for path in missing:  # a folder is on disk when the one that names it is
            self._sync_folder(path.parent)

    def _sync(self, fd: int) -> None:
        if self._fsync:
            os.fsync(fd)

    def _sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync(fd)
        finally:
            os.close(fd)


def _replay(apply: Apply, state: State, record: _Record) -> State:
    command = codec.decode(record.payload, place=record.place)
    try:
        return apply(state, command).state
    except Exception as exc:  # the machine promises never to raise: say which record broke the promise
        raise JournalError(
            f"{record.place}: {type(command).__name__} cannot be applied: {exc!r}",
            hint="this is a fault of FedKeeper: go on with the version that wrote the journal, and report it",
        ) from exc


def _record(seq: int, first: int, payload: bytes) -> bytes:
    body = b"%d %d %b" % (seq, first, payload)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _parse(line: bytes, place: str) -> _Record | None:
    """The record in `line`, None if it does not check."""
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        seq, first, payload = body.split(b" ", 2)
        return _Record(int(seq), int(first), payload, place)
    except ValueError:
        return None


def _torn(line: bytes, rest: bytes, *, whole: bool, expected: int) -> bool:
    """Whether `line`, which does not check, is what a crash may leave of the last batch; see the module."""
    if whole and b"\0" not in line:
        return False
    later = (_parse(other, "") for other in rest.split(b"\n"))
    return all(record is None or record.first <= expected for record in later)


def _open_journal(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _lock(path: Path) -> int:
    """Hold the folder for this process; the kernel lets go when the process ends, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise JournalError(
            f"{path.parent} is in use by process {pid}",
            hint="wait for it to end or stop it: two keepers must never share a log",
        ) from None
    except OSError:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _journal_error(exc, path) from exc


def _journal_error(exc: OSError, path: Path) -> JournalError:
    where = exc.filename or path
    if exc.errno in NOT_WRITABLE:
        return JournalFull(
            f"{where} cannot be written: {exc.strerror}",
            hint="free some space, or lift the limit, and start again: it goes on from the last command",
        )
    return JournalError(f"{where}: {exc.strerror or exc!r}")


def _damaged(problem: str) -> JournalDamaged:
    return JournalDamaged(
        problem,
        hint="restore the folder from a backup; or move it away, and the runs in it begin anew",
    )
