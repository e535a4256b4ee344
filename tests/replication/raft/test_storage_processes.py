"""Real processes, real kills, real full disks."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedkeeper.errors import JournalError, JournalFull
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.storage import Storage
from tests.replication.raft import writer


def _writer(folder: Path, bytes_max: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", writer.__name__, str(folder), str(bytes_max)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _check(folder: Path, acknowledged: tuple[int, int]) -> int:
    """That everything up to there is in `folder`, and is what was written; the last entry."""
    index, term = acknowledged
    with closing(Storage(folder, disk=FolderDisk(), fsync=True, owner=writer.NAME)) as storage:
        snapshot = storage.snapshot()
        if snapshot:
            assert snapshot.state == writer.state(snapshot.index)
            assert storage[0][1] == snapshot.index - 1
        else:
            assert storage[0][1] == 1
        assert [entry[0] for entry in storage[:]] == [writer.command(entry[1]) for entry in storage[:]]
        assert storage[-1][1] >= index
        assert storage.getCurrentTerm() >= term
        assert storage.identity.cluster == "c"
        return storage[-1][1]


def test_a_killed_keeper_has_all_that_it_acknowledged(tmp_path):
    """Killed again and again, between and within writes, also while it puts snapshots in place."""
    chance = random.Random(1)  # noqa: S311
    last = 0
    for _ in range(5):
        with _writer(tmp_path) as process:
            assert process.stdout
            acknowledged = (0, 0)
            for _ in range(chance.randint(1, 120)):
                index, term = map(int, process.stdout.readline().split())
                acknowledged = (index, term)
            process.kill()
            for line in process.stdout:
                index, term = map(int, line.split())
                acknowledged = (index, term)
        assert acknowledged[0] > last
        last = _check(tmp_path, acknowledged)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    """The kernel lets go of the folder, however the process ended."""
    with _writer(tmp_path) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(JournalError, match=f"in use by process {process.pid}"):
            Storage(tmp_path, disk=FolderDisk(), fsync=True, owner=writer.NAME)
        process.kill()
    _check(tmp_path, (3, 1))


def test_a_limit_of_the_kernel_stops_the_keeper_and_what_was_acknowledged_stays(tmp_path):
    """The part of a batch that was written is taken back; nothing is written afterwards."""
    with _writer(tmp_path, 1500) as process:
        assert process.stdout
        *acknowledged, problem = process.stdout.read().splitlines()
    assert problem == "JournalFull, then JournalFull"
    index, term = map(int, acknowledged[-1].split())
    assert _check(tmp_path, (index, term)) == index


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "fedkeeper-test", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def _fill(storage: Storage) -> None:
    for index in itertools.count(1):
        storage.add(writer.command(index), index, 1)
        storage.sync()


def test_a_full_disk_stops_the_keeper_and_what_was_synced_stays(small_disk):
    """It starts again once there is space."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(24_000))
    folder = small_disk / "k1"
    with closing(Storage(folder, disk=FolderDisk(), fsync=True, owner=writer.NAME)) as storage:
        storage.join("c", {})
        with pytest.raises(JournalFull, match=r"journal cannot be written: No space left"):
            _fill(storage)
        synced = len(storage) - 1
        with pytest.raises(JournalFull):
            storage.sync()
        assert storage.durable_index == synced
    ballast.unlink()
    assert _check(folder, (synced, 0)) == synced
