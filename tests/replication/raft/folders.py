"""Keepers' folders on simulated disks, for tests of what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedkeeper.replication.raft.simulated_disk import Platter, SimulatedDisk
from fedkeeper.replication.raft.snapshots import Entry, Snapshot
from fedkeeper.replication.raft.storage import Storage

FOLDER = Path("/data/k1")
JOURNAL = FOLDER / "journal"
SNAPSHOT = FOLDER / "snapshot"


def entry(index: int) -> Entry:
    """As it is in the log."""
    return b'{"n":%d}' % index, index, 1


def opened(platter: Platter, owner: str = "k1") -> Storage:
    """By a new process."""
    return Storage(FOLDER, disk=SimulatedDisk(platter), fsync=True, owner=owner, incarnation=lambda: "i1")


def begun(platter: Platter, last: int, *, snapshot: int = 0, owner: str = "k1") -> Storage:
    """Three batches, and a snapshot after entry `snapshot`."""
    storage = opened(platter, owner)
    storage.join("c", {"k1": ""})
    storage.setCurrentTerm(1, "k1")
    for index in range(1, last):
        storage.add(*entry(index))
    storage.sync()
    if snapshot:
        storage.setRaftCommitIndex(snapshot)
        storage.save_snapshot(b"state", (entry(snapshot - 1), entry(snapshot)), {"k1": ""})
    storage.add(*entry(last))
    storage.sync()
    return storage


def files_on(platter: Platter) -> dict[Path, bytes]:
    """As a killed process leaves them."""
    disk = SimulatedDisk(platter)
    return {FOLDER / name: disk.read(FOLDER / name) for name in disk.names(FOLDER)}


def disk_with(files: Mapping[Path, bytes]) -> Platter:
    """A disk that holds these files."""
    platter = Platter(1)
    disk = SimulatedDisk(platter)
    for path, data in files.items():
        disk.append(path, data)
    return platter


def seen(storage: Storage) -> tuple[object, ...]:
    """All that is in it."""
    return (
        storage[:],
        storage.getCurrentTerm(),
        storage.getVotedForNodeId(),
        storage.getRaftCommitIndex(),
        storage.identity,
        storage.snapshot(),
    )


def folder() -> dict[Path, bytes]:
    """The files of a keeper with a snapshot of entry 4, and entries up to 6."""
    platter = Platter(1)
    begun(platter, 6, snapshot=4)
    return files_on(platter)


def other(*, last: int = 4, cluster: str = "c", term: int = 1) -> bytes:
    """A snapshot that is not the one in `folder`."""
    entries = (entry(last - 1), (b"other", last, term))
    return Snapshot(
        cluster=cluster, previous=entries[0], last=entries[1], members={}, state=b"state"
    ).encode()
