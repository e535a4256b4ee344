"""What keepers cost when there is nothing to do, and whether a busy machine makes them elect a new leader.

    python -m benchmarks.idle --keepers 3 --seconds 60
    python -m benchmarks.idle --keepers 5 --seconds 600 --hogs 4

Prints each keeper's processor time (percent of one core), its memory, and the elections (terms) meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.lab import Lab, in_own_network, wait_for
from benchmarks.reference import piece_us


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keepers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hogs", type=int, default=0, help="processes that only count, beside the keepers")
    parser.add_argument("--timing", default="steady")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    with TemporaryDirectory(prefix="idle") as scratch:
        lab = Lab(Path(scratch), keepers_count=chosen.keepers, keepers_changes={"timing": chosen.timing})
        with lab.opened():
            time.sleep(5)  # what a start does is not idleness
            status = wait_for(lab.status, "a status")
            term = status["term"]
            watched = {
                one.name: psutil.Process(one.process.pid) for one in lab.keepers if one.process is not None
            }
            hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(chosen.hogs)]
            try:
                before = {name: sum(one.cpu_times()[:2]) for name, one in watched.items()}
                begun = time.monotonic()
                time.sleep(chosen.seconds)
                took_s = time.monotonic() - begun
                rows = []
                for name, one in watched.items():
                    cpu = (sum(one.cpu_times()[:2]) - before[name]) / took_s
                    memory = one.memory_full_info().uss / 2**20
                    leads = "leader" if name == status["leader"] else "follower"
                    rows.append({"keeper": name, "is": leads, "of a core": f"{cpu:.2%}", "MB": round(memory)})
                    print(rows[-1], flush=True)
            finally:
                for hog in hogs:
                    hog.kill()
            after = wait_for(lab.status, "a status")
            rows.append(
                {
                    "elections": after["term"] - term,
                    "in s": round(took_s),
                    "hogs": chosen.hogs,
                    "piece us": round(piece_us(), 1),
                    "load": round(psutil.getloadavg()[0], 1),
                }
            )
            print(rows[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
