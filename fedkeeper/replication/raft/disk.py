"""The real disk: a claimed folder and its files, with the operations that durability is made of."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from fedkeeper.errors import JournalError, JournalFull

LOCK: Final = "lock"
NOT_WRITABLE: Final = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
)


class FolderDisk:
    """A `Disk` on this machine. Files that are appended to stay open.

    Two threads may use it at once if they use different files.
    """

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._locks: list[int] = []

    def claim(self, folder: Path) -> None:
        """The kernel lets go when the process ends, however it ends."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for path in missing:  # a folder is on disk when the one that names it is
            self.sync_folder(path.parent)
        self._locks.append(_lock(folder / LOCK))

    def read(self, path: Path) -> bytes:
        """The whole file, as this machine sees it now: not all of it need be on the disk."""
        return path.read_bytes()

    def append(self, path: Path, data: bytes) -> None:
        """Write all of `data`; if it raises, any part of it may have been written."""
        fd = self._fd(path)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def truncate(self, path: Path, size: int) -> None:
        """Cut it to `size` bytes."""
        os.ftruncate(self._fd(path), size)

    def sync(self, path: Path) -> None:
        """fdatasync: the bytes and the size, which is what reading needs."""
        os.fdatasync(self._fd(path))

    def replace(self, source: Path, target: Path) -> None:
        """Rename, atomically."""
        self._close(source)
        self._close(target)
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Delete it if it is there."""
        self._close(path)
        path.unlink(missing_ok=True)

    def names(self, folder: Path) -> Collection[str]:
        """Its files, without the lock."""
        try:
            return {path.name for path in folder.iterdir()} - {LOCK}
        except FileNotFoundError:
            return ()

    def sync_folder(self, folder: Path) -> None:
        """Wait until new names and renames in the folder are on the disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the files and the lock; again is harmless."""
        for path in list(self._open):
            self._close(path)
        while self._locks:
            os.close(self._locks.pop())

    def _fd(self, path: Path) -> int:
        fd = self._open.get(path)
        if fd is None:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._open[path] = fd
        return fd

    def _close(self, path: Path) -> None:
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn what a disk raises into a JournalError that names the file, or `path`."""
    try:
        yield
    except OSError as exc:
        raise journal_error(exc, path) from exc


def journal_error(exc: OSError, path: Path) -> JournalError:
    """JournalFull where nothing can be written, with the way out."""
    where = exc.filename or path
    if isinstance(exc, BlockingIOError):
        return JournalError(
            f"{where}: {exc.strerror}",
            hint="wait for it to end or stop it: two keepers must never share a folder",
        )
    if exc.errno in NOT_WRITABLE:
        return JournalFull(
            f"{where} cannot be written: {exc.strerror}",
            hint="free some space, or lift the limit, and start this keeper again: it takes what it missed"
            " from the others",
        )
    return JournalError(f"{where}: {exc.strerror or exc!r}")


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, f"in use by process {pid}", str(path.parent)) from None
    except OSError:
        os.close(fd)
        raise
    return fd
