"""Replicated commands per second: 1, 64 and 256 callers, 100 and 1,000 bytes, with and without fsync.

    python -m benchmarks.commands --seconds 3

Three logs in three processes, real network and disk; the callers are in the leader's process, and each
waits for its answer. Beside it, in the same run: what the disk alone gives (a write and fdatasync at a time).
Reference: rafty, 100 requests/s with 1 client, 2,000 with 3 servers and 64 clients, 1,500 with 256.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.nodes import Json, cluster, settled


def syncs_per_s(folder: Path, size: int, *, seconds: float = 1.0) -> float:
    """Appends of `size` bytes, each with its own fdatasync."""
    file = os.open(folder / "alone", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        os.write(file, b"x" * size)
        os.fdatasync(file)
        count += 1
    os.close(file)
    return count / seconds


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--callers", default="1,64,256")
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--fsync", default="on,off")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[Json] = []
    for fsync in chosen.fsync.split(","):
        with TemporaryDirectory(prefix="commands", dir=Path.cwd()) as scratch:
            folder = Path(scratch)
            with cluster(3, folder, {"timing": "steady", "fsync": fsync == "on"}) as nodes:
                for callers in (int(one) for one in chosen.callers.split(",")):
                    for size in (int(one) for one in chosen.sizes.split(",")):
                        leader = settled(nodes)
                        got = leader.ask(do="load", callers=callers, size=size, seconds=chosen.seconds)
                        row = {"fsync": fsync, "callers": callers, "bytes": size, "load": os.getloadavg()[0]}
                        row |= {name: round(value, 2) for name, value in got.items()}
                        row["per disk sync"] = round(got["per_s"] / syncs_per_s(folder, size), 2)
                        rows.append(row)
                        print(row, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
