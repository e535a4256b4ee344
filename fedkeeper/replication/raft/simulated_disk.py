"""A disk in memory that forgets, when its power is cut, whatever POSIX does not promise to keep.

For simulations and for crash tests: a `Platter` is what outlives the processes, each of which uses it through
a `SimulatedDisk` of its own. What a cut leaves is drawn from the platter's seed, so a seed replays it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

SECTOR: Final = 512  # bytes that are on the disk, or not, together


class PowerCut(Exception):
    """The process that used the disk is gone; `Platter` says whether the machine is as well."""


class Platter:
    """What is stored, and the faults that are wanted of it."""

    def __init__(self, seed: int) -> None:
        self.operations = 0  # that changed something or made it durable, so far
        self.cut_at = 0  # the power goes in the middle of this operation; 0: of none
        self.kill_at = 0  # the process is killed after this one
        self.space_bytes: int | None = None  # of all files; more is ENOSPC
        self.read_only = False
        self.sync_fails = False  # EIO, and what was to be synced never will be, as on Linux
        self._chance = random.Random(seed)  # noqa: S311 (a simulation)
        self._files: dict[Path, _File] = {}
        self._safe: dict[Path, _File] = {}  # names that a cut leaves for certain
        self._named: list[tuple[Path, _File | None, Path | None]] = []  # since: name, file, name it had
        self._life = 0
        self._claims: dict[Path, SimulatedDisk] = {}

    def cut_power(self) -> None:
        """Whoever uses the disk is gone, and so is any part of what was not synced."""
        self._life += 1
        self._claims.clear()
        for change in self._named:  # each by itself: nothing orders them
            if self._chance.random() < 0.5:
                _name(self._safe, *change)
        self._named.clear()
        self._files = dict(self._safe)
        for file in self._files.values():
            file.cut_power(self._chance)


class SimulatedDisk:
    """A process's view of a platter: a `Disk`. `close` without more is what kill -9 does."""

    def __init__(self, platter: Platter) -> None:
        self._platter = platter
        self._life = platter._life
        self._dead = False

    def claim(self, folder: Path) -> None:
        """The folder is there, and stays."""
        self._check_alive()
        holder = self._platter._claims.get(folder)
        if holder is not None and not holder._dead:
            raise BlockingIOError(errno.EAGAIN, "in use by process 1", str(folder))
        self._platter._claims[folder] = self

    def read(self, path: Path) -> bytes:
        """Also what is not synced."""
        self._check_alive()
        return self._file(path).content()

    def append(self, path: Path, data: bytes) -> None:
        """As much of it as there is space for."""
        with self._change(path):
            file = self._platter._files.get(path)
            if file is None:
                file = _File()
                self._name(path, file, None)
            space = self._space()
            file.append(data[:space])
            if len(data) > space:
                raise _error(errno.ENOSPC, path)

    def truncate(self, path: Path, size: int) -> None:
        """Cut it to `size` bytes."""
        with self._change(path):
            self._file(path).truncate(size)

    def sync(self, path: Path) -> None:
        """A cut in the middle leaves any part of it."""
        with self._operation():
            file = self._file(path)
        if self._platter.sync_fails:
            file.lost = True
            raise _error(errno.EIO, path)
        file.sync()

    def replace(self, source: Path, target: Path) -> None:
        """Rename, atomically."""
        with self._change(source):
            self._name(target, self._file(source), source)

    def remove(self, path: Path) -> None:
        """Delete it if it is there."""
        with self._change(path):
            if path in self._platter._files:
                self._name(path, None, None)

    def names(self, folder: Path) -> Collection[str]:
        """Sorted, so that a seed replays."""
        self._check_alive()
        return sorted(path.name for path in self._platter._files if path.parent == folder)

    def sync_folder(self, folder: Path) -> None:
        """Its names are there to stay; the content of the files need not be."""
        with self._operation():
            pass
        if self._platter.sync_fails:
            raise _error(errno.EIO, folder)
        for change in self._platter._named:
            if change[0].parent == folder:
                _name(self._platter._safe, *change)
        self._platter._named = [item for item in self._platter._named if item[0].parent != folder]

    def close(self) -> None:
        """Again, or after a cut, is harmless."""
        self._dead = True

    def _check_alive(self) -> None:
        if self._dead or self._life != self._platter._life:
            raise PowerCut

    @contextlib.contextmanager
    def _operation(self) -> Iterator[None]:
        self._check_alive()
        yield
        self._platter.operations += 1
        if self._platter.operations == self._platter.kill_at:
            self.close()
            raise PowerCut
        if self._platter.operations == self._platter.cut_at:
            self._platter.cut_power()
            raise PowerCut

    @contextlib.contextmanager
    def _change(self, path: Path) -> Iterator[None]:
        with self._operation():
            if self._platter.read_only:
                raise _error(errno.EROFS, path)
            yield

    def _file(self, path: Path) -> _File:
        try:
            return self._platter._files[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def _name(self, target: Path, file: _File | None, source: Path | None) -> None:
        _name(self._platter._files, target, file, source)
        self._platter._named.append((target, file, source))

    def _space(self) -> int:
        if self._platter.space_bytes is None:
            return 1 << 62
        used = sum(file.size for file in self._platter._files.values())
        return max(0, self._platter.space_bytes - used)


class _File:
    """Bytes that are on the disk, and what was done to them since."""

    def __init__(self) -> None:
        self.size = 0
        self.lost = False  # an fsync failed: nothing will be on the disk any more
        self._safe = bytearray()
        self._since: list[bytes | int] = []  # appended, or truncated to

    def content(self) -> bytes:
        return bytes(_done(self._safe, self._since))

    def append(self, data: bytes) -> None:
        self._since.append(bytes(data))
        self.size += len(data)

    def truncate(self, size: int) -> None:
        self._since.append(size)
        self.size = min(self.size, size)

    def sync(self) -> None:
        if not self.lost:
            for step in self._since:
                _do(self._safe, step)
            self._since.clear()

    def cut_power(self, chance: random.Random) -> None:
        """Some first part of what was done since; of that, some sectors may have been left as zeros."""
        count = chance.randint(0, len(self._since))
        kept = self._since[:count]
        if count < len(self._since) and isinstance(torn := self._since[count], bytes):
            kept.append(torn[: chance.randint(0, len(torn))])
        certain = min([len(self._safe), *(step for step in kept if isinstance(step, int))])
        data = _done(self._safe, kept)
        zeros = chance.choice((0.0, 0.0, 0.3, 1.0))
        for start in range(certain - certain % SECTOR, len(data), SECTOR):
            if chance.random() < zeros:
                hole = slice(max(start, certain), min(start + SECTOR, len(data)))
                data[hole] = bytes(hole.stop - hole.start)
        self._safe, self._since, self.size, self.lost = data, [], len(data), False


def _done(safe: bytearray, steps: list[bytes | int]) -> bytearray:
    data = bytearray(safe)
    for step in steps:
        _do(data, step)
    return data


def _do(data: bytearray, step: bytes | int) -> None:
    if isinstance(step, bytes):
        data += step
    else:
        del data[step:]


def _name(names: dict[Path, _File], target: Path, file: _File | None, source: Path | None) -> None:
    if source is not None:
        names.pop(source, None)
    if file is None:
        names.pop(target, None)
    else:
        names[target] = file


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
