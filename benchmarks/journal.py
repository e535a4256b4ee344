"""How fast a keeper's journal is: `python -m benchmarks.journal [folder]`.

Entries of 100 bytes, added in groups that share one `sync`, with and without fsync. The bare disk does in the
same run what cannot be avoided: one write of as many bytes, and one fdatasync. The ratio is the cost of the
journal; it is close to 1 where the disk decides. The folder should be on the disk that keepers will use.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.storage import Storage

GROUPS: Final = (1, 8, 64)  # entries to a sync
COMMAND: Final = b"x" * 100
SYNCS: Final = 600  # in one measurement
REPEATS: Final = 5  # of which the median counts


def journal(folder: Path, group: int, *, fsync: bool) -> float:
    """Seconds for SYNCS groups of entries."""
    with closing(Storage(folder, disk=FolderDisk(), fsync=fsync, owner="k1")) as storage:
        storage.join("c", {"k1": ""})
        index = len(storage)
        begin = time.perf_counter()
        for _ in range(SYNCS):
            for _ in range(group):
                index += 1
                storage.add(COMMAND, index, 1)
            storage.sync()
        return time.perf_counter() - begin


def bare(folder: Path, size: int, *, fsync: bool) -> float:
    """Seconds for SYNCS writes of `size` bytes at the end of a file."""
    folder.mkdir(parents=True)
    data = b"x" * size
    fd = os.open(folder / "bare", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        begin = time.perf_counter()
        for _ in range(SYNCS):
            os.write(fd, data)
            if fsync:
                os.fdatasync(fd)
        return time.perf_counter() - begin
    finally:
        os.close(fd)


def median(measure: Callable[[], float], folder: Path) -> float:
    """Of REPEATS measurements, each in an empty folder."""
    seconds = []
    for _ in range(REPEATS):
        shutil.rmtree(folder, ignore_errors=True)
        seconds.append(measure())
    return statistics.median(seconds)


def main(parent: Path | None) -> None:
    """Print the table."""
    top = Path(tempfile.mkdtemp(prefix="fedkeeper-journal-", dir=parent))
    folder = top / "k1"
    try:
        print("| group | fsync | entries/s | syncs/s | bare syncs/s | journal / bare |")
        print("|---|---|---|---|---|---|")
        for fsync in (True, False):
            for group in GROUPS:
                size = group * (len(COMMAND) + 21) + 29
                ours = median(partial(journal, folder, group, fsync=fsync), folder)
                theirs = median(partial(bare, folder, size, fsync=fsync), folder)
                per_s = SYNCS / ours
                print(
                    f"| {group} | {'yes' if fsync else 'no'} | {per_s * group:,.0f} | {per_s:,.0f}"
                    f" | {SYNCS / theirs:,.0f} | {theirs / ours:.2f} |"
                )
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
