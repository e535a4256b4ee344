"""A process that appends to a keeper's storage until it is killed, and tells of each entry once it is synced.

Arguments: the folder; bytes beyond which the kernel refuses to write a file (0: no limit).
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from fedkeeper.errors import JournalError
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.storage import Storage

NAME = "k1"
COMPACT_EVERY = 40  # entries


def command(index: int) -> bytes:
    """Of entry `index`."""
    return b"%d:" % index + b"x" * (index % 50)


def state(index: int) -> bytes:
    """After entry `index`."""
    return b"after %d" % index


def write(storage: Storage, group: int) -> None:
    """Groups of entries, a new term now and then, and snapshots, without end."""
    last = storage[-1][1] if len(storage) else 0
    while True:
        if last % 7 == 0:
            storage.setCurrentTerm(storage.getCurrentTerm() + 1, NAME)
        for _ in range(group):
            last += 1
            storage.add(command(last), last, storage.getCurrentTerm())
        storage.sync()
        storage.setRaftCommitIndex(last)
        os.write(1, b"%d %d\n" % (last, storage.getCurrentTerm()))
        if last - storage.snapshot_index >= COMPACT_EVERY:
            storage.save_snapshot(state(last), (storage[-2], storage[-1]), {NAME: ""})


def main(folder: Path, bytes_max: int) -> None:
    """Write until killed, or until the storage refuses; then say how."""
    if bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    storage = Storage(folder, disk=FolderDisk(), fsync=True, owner=NAME)
    if not storage.identity.cluster:
        storage.join("c", {NAME: ""})
    try:
        write(storage, group=3)
    except JournalError as first:
        try:
            storage.sync()
        except JournalError as second:
            os.write(1, f"{type(first).__name__}, then {type(second).__name__}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
