"""One contract for the real disk and the simulated one; what the latter forgets when its power goes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fedkeeper.replication.raft.base import Disk
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.simulated_disk import Platter, PowerCut, SimulatedDisk


class DiskContract:
    """What every disk does. `disk` and `other` are those of two processes on one machine."""

    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / "a" / "b"

    def test_appended_bytes_are_read(self, disk, folder):
        """In order; the file is made by the first of them."""
        disk.append(folder / "f", b"ab")
        disk.append(folder / "f", b"")
        disk.append(folder / "f", b"cd")
        disk.sync(folder / "f")
        assert disk.read(folder / "f") == b"abcd"

    def test_a_missing_file_is_told(self, disk, folder):
        """By its name."""
        with pytest.raises(FileNotFoundError, match="nothing"):
            disk.read(folder / "nothing")
        with pytest.raises(FileNotFoundError, match="nothing"):
            disk.replace(folder / "nothing", folder / "f")

    def test_after_truncation_it_goes_on_from_there(self, disk, folder):
        """And what was cut off does not come back."""
        disk.append(folder / "f", b"abcd")
        disk.truncate(folder / "f", 1)
        disk.append(folder / "f", b"e")
        assert disk.read(folder / "f") == b"ae"

    def test_a_replaced_file_is_the_new_one(self, disk, folder):
        """Also for what is appended afterwards."""
        disk.append(folder / "f", b"old")
        disk.append(folder / "f.new", b"new")
        disk.replace(folder / "f.new", folder / "f")
        disk.append(folder / "f", b"er")
        disk.sync_folder(folder)
        assert disk.read(folder / "f") == b"newer"
        assert sorted(disk.names(folder)) == ["f"]

    def test_a_removed_file_is_gone(self, disk, folder):
        """Again is harmless; one of the same name begins empty."""
        disk.append(folder / "f", b"a")
        disk.remove(folder / "f")
        disk.remove(folder / "f")
        assert sorted(disk.names(folder)) == []
        disk.append(folder / "f", b"b")
        assert disk.read(folder / "f") == b"b"

    def test_no_folder_has_no_files(self, disk, folder):
        """It need not be there to be looked into."""
        assert sorted(disk.names(folder / "c")) == []

    def test_a_claimed_folder_is_one_process_s(self, disk, other, folder):
        """Until that one closes."""
        with pytest.raises(BlockingIOError, match=r"in use by process \d+"):
            other.claim(folder)
        disk.append(folder / "f", b"a")
        disk.close()
        disk.close()
        other.claim(folder)
        assert other.read(folder / "f") == b"a"


class TestFolder(DiskContract):
    @pytest.fixture
    def disk(self, folder):
        with closing(FolderDisk()) as disk:
            disk.claim(folder)
            yield disk

    @pytest.fixture
    def other(self):
        with closing(FolderDisk()) as disk:
            yield disk


class TestSimulated(DiskContract):
    @pytest.fixture
    def platter(self):
        return Platter(1)

    @pytest.fixture
    def disk(self, platter, folder) -> Disk:
        disk = SimulatedDisk(platter)
        disk.claim(folder)
        return disk

    @pytest.fixture
    def other(self, platter) -> Disk:
        return SimulatedDisk(platter)


FILE = Path("/f")


def _after_cuts(prepare, *, seeds: int = 200) -> set[bytes | None]:
    """What `prepare` leaves in FILE, when the power goes after it, on many platters."""
    left: set[bytes | None] = set()
    for seed in range(seeds):
        platter = Platter(seed)
        disk = SimulatedDisk(platter)
        prepare(disk)
        platter.cut_power()
        disk = SimulatedDisk(platter)
        left.add(disk.read(FILE) if FILE.name in disk.names(FILE.parent) else None)
    return left


def _written(disk: SimulatedDisk, data: bytes) -> None:
    disk.append(FILE, data)
    disk.sync(FILE)
    disk.sync_folder(FILE.parent)


def test_what_was_synced_survives_a_cut():
    """File and name: each needs its own."""
    assert _after_cuts(lambda disk: _written(disk, b"abc")) == {b"abc"}

    def only_the_file(disk: SimulatedDisk) -> None:
        disk.append(FILE, b"abc")
        disk.sync(FILE)

    assert _after_cuts(only_the_file) == {b"abc", None}


def test_what_was_not_synced_may_be_there_in_part():
    """Any first part of it, with zeros for sectors that were not written, and never anything before it."""

    def prepare(disk: SimulatedDisk) -> None:
        _written(disk, b"abc")
        disk.append(FILE, b"de")

    assert _after_cuts(prepare) >= {b"abc", b"abcd", b"abcde", b"abc\0\0"}
    assert all(left is not None and left.startswith(b"abc") for left in _after_cuts(prepare))


def test_a_rename_may_survive_what_it_renames():
    """A new name without the bytes: why files are synced before they are renamed."""

    def prepare(disk: SimulatedDisk) -> None:
        _written(disk, b"old")
        disk.append(FILE.with_name("new"), b"new")
        disk.replace(FILE.with_name("new"), FILE)

    assert _after_cuts(prepare) >= {b"old", b"", b"new"}


def test_after_a_failed_fsync_nothing_more_is_kept_for_certain():
    """The next fsync says that all is well, and it is not: so it must not be trusted."""

    def prepare(disk: SimulatedDisk) -> None:
        _written(disk, b"abc")
        disk.append(FILE, b"def")
        disk._platter.sync_fails = True
        with pytest.raises(OSError, match="Input/output error"):
            disk.sync(FILE)
        disk._platter.sync_fails = False
        disk.sync(FILE)

    assert _after_cuts(prepare) >= {b"abc", b"abcdef"}


def test_a_process_is_gone_with_the_power_and_what_it_wrote_stays_when_it_is_killed():
    """Both end it in the middle of an operation."""
    platter = Platter(1)
    disk = SimulatedDisk(platter)
    platter.kill_at = 1
    with pytest.raises(PowerCut):
        disk.append(FILE, b"abc")
    with pytest.raises(PowerCut):
        disk.read(FILE)
    disk = SimulatedDisk(platter)
    assert disk.read(FILE) == b"abc"
    platter.cut_at = 2
    with pytest.raises(PowerCut):
        disk.sync(FILE)
    with pytest.raises(PowerCut):
        disk.append(FILE, b"d")


def test_full_and_read_only_disks_are_told():
    """What there was space for is written, as a real disk does."""
    platter = Platter(1)
    disk = SimulatedDisk(platter)
    platter.space_bytes = 4
    with pytest.raises(OSError, match="No space left"):
        disk.append(FILE, b"abcdef")
    assert disk.read(FILE) == b"abcd"
    platter.read_only = True
    with pytest.raises(OSError, match="Read-only"):
        disk.truncate(FILE, 0)
