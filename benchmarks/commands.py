"""Replicated commands per second: 1, 64 and 256 callers, 100 and 1,000 bytes, with and without fsync.

    python -m benchmarks.commands --seconds 3

Three logs in three processes, real network and disk; the callers are in the leader's process, and each
waits for its answer. Beside it, in the same run: what the disk alone gives (a write and fdatasync at a time),
the processor time that a command costs its leader and a follower, and that of a small piece of Python, which
tells how fast the cores are at the moment.
Reference: rafty, 100 requests/s with 1 client, 2,000 with 3 servers and 64 clients, 1,500 with 256.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.nodes import Json, cluster, settled
from benchmarks.reference import piece_us, syncs_per_s


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
                        before = [node.cpu_s() for node in nodes]
                        got = leader.ask(do="load", callers=callers, size=size, seconds=chosen.seconds)
                        count = got["per_s"] * chosen.seconds
                        cpu_us = {
                            node.name: round((node.cpu_s() - was) / count * 1e6)
                            for node, was in zip(nodes, before, strict=True)
                        }
                        row = {"fsync": fsync, "callers": callers, "bytes": size}
                        row |= {name: round(value, 2) for name, value in got.items()}
                        row["per disk sync"] = round(got["per_s"] / syncs_per_s(folder, size), 2)
                        row["leader us"] = cpu_us.pop(leader.name)
                        row["follower us"] = round(sum(cpu_us.values()) / len(cpu_us))
                        row |= {"piece us": round(piece_us(), 1), "load": round(os.getloadavg()[0], 1)}
                        rows.append(row)
                        print(row, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
