"""How long a cluster is without a leader: kill -9, freeze or cut off the leader, time the next commit.

    python -m benchmarks.failover --nodes 3,5 --times 100 --faults kill,freeze,partition

Every surviving node tries to commit a command from the moment of the fault on; the first success counts.
Reference: rafty, 5 nodes: a new leader in 87 % of the cases within 80 ms, in 98 % within 100 ms.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.lab import cut_off, heal, in_own_network
from benchmarks.nodes import Node, cluster, settled

FROZEN_S = 0.5  # at least, so that another is elected meanwhile


def once(nodes: list[Node], fault: str, number: int) -> float:
    """Milliseconds from the fault to a commit by another node."""
    leader = settled(nodes)
    others = [node for node in nodes if node is not leader]
    begun = time.monotonic()
    if fault == "kill":
        assert leader.process is not None
        leader.process.kill()
    elif fault == "freeze":
        leader.signal(signal.SIGSTOP)
    else:
        cut_off(leader.host, [node.host for node in others])
        begun = time.monotonic()
    for node in others:
        node.tell(do="probe", number=number)
    took_ms: float = (min(node.hear()["at_s"] for node in others) - begun) * 1000
    if fault == "kill":
        leader.signal(signal.SIGKILL)
        leader.start()
    else:
        time.sleep(max(0.0, begun + FROZEN_S - time.monotonic()))
        if fault == "freeze":
            leader.signal(signal.SIGCONT)
        else:
            heal()
    return took_ms


def quantile(values: list[float], part: float) -> float:
    """The value that `part` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(part * len(ordered)) - 1))]


def row(fault: str, nodes: int, timing: str, took_ms: list[float]) -> dict[str, object]:
    """One line of the table."""
    parts = {
        f"p{round(part * 100)}": round(quantile(took_ms, part), 1) for part in (0.5, 0.87, 0.95, 0.98, 0.99)
    }
    return {
        "fault": fault,
        "nodes": nodes,
        "timing": timing,
        "times": len(took_ms),
        **parts,
        "max": round(max(took_ms), 1),
        "under 80 ms": f"{sum(one < 80 for one in took_ms) / len(took_ms):.0%}",
        "under 100 ms": f"{sum(one < 100 for one in took_ms) / len(took_ms):.0%}",
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", default="3,5")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--faults", default="kill,freeze,partition")
    parser.add_argument("--timing", default="fast")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    rows = []
    for count in (int(one) for one in chosen.nodes.split(",")):
        for fault in chosen.faults.split(","):
            with (
                TemporaryDirectory(prefix="failover") as folder,
                cluster(count, Path(folder), {"timing": chosen.timing}) as nodes,
            ):
                took_ms = [once(nodes, fault, number) for number in range(chosen.times)]
            rows.append(row(fault, count, chosen.timing, took_ms))
            print(rows[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
