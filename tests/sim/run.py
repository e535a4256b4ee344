"""Many seeds: `python -m tests.sim.run --seeds 10000 [--from N]`. Exit code 1 if one fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.sim.simulation import Simulation


def main() -> int:
    """Run them, say which failed and why, and what was met on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    options = parser.parse_args()
    began, failed, met = time.perf_counter(), [], Counter[str]()
    for seed in range(options.first, options.first + options.seeds):
        sim = Simulation(seed)
        try:
            sim.run()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the seed has failed, and others go on
            failed.append(seed)
            if len(failed) == 1:
                traceback.print_exc()
            print(f"seed {seed}: {type(exc).__name__}: {str(exc)[:200]}")  # noqa: T201
        met.update(sim.met())
    took_s = time.perf_counter() - began
    width = max(map(len, met))
    print("\n".join(f"{name:{width}} {count:>12,}" for name, count in met.items()))  # noqa: T201
    print(f"{options.seeds} seeds in {took_s:.0f} s, {len(failed)} failed {failed[:20] or ''}")  # noqa: T201
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
