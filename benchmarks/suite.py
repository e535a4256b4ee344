"""All that docs/benchmarks.md shows, one measurement after the other: tables, JSON and drawings in a folder.

    python -m benchmarks.suite results            # some minutes
    python -m benchmarks.suite results --full     # large models, a thousand clients: half an hour or more

Needs root, for network namespaces, and a machine that has nothing else to do; drawings need matplotlib (the
dependency group `bench`), and are left out without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Final

from benchmarks.drawing import draw
from benchmarks.figures import Measurement, Row, run

CLIENTS: Final = ("10x10KB", "30x10KB", "100x10KB")
BYTES: Final = ("10x100KB", "10x1MB", "10x6.65MB")
MORE: Final = ("300x10KB", "1000x10KB", "10x25MB", "100x6.65MB", "10x100MB")


def measurements(runs: int, *, full: bool) -> list[tuple[str, Measurement]]:
    """The name of each one's JSON file, and what is measured."""
    cases = [*CLIENTS, *BYTES, *(MORE if full else ())]
    many = ("--runs", str(runs))
    rounds = [
        ("rounds", Measurement("Rounds", ("rounds", "--cases", ",".join(cases), *many), 0)),
        (
            "rounds-keepers",
            Measurement(
                "Rounds by keepers", ("rounds", "--cases", "100x10KB", "--keepers", "1,5,7", *many), 0
            ),
        ),
    ]
    shards = "100x6.65MB,10x100MB" if full else "10x6.65MB"
    return [
        *rounds,
        ("aggregation", Measurement("Aggregation", ("aggregation", "--cases", shards), 0)),
        ("fabric", Measurement("Fabric", ("fabric",), 0)),
    ]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    rounds: list[Row] = []
    failed = False
    with (folder / "tables.md").open("w") as file:

        def say(text: str) -> None:
            file.write(text)
            file.flush()

        for name, one in measurements(chosen.runs, full=chosen.full):
            rows = run(one, say)
            failed |= not rows
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
            if name.startswith("rounds"):
                rounds += rows
    if rounds and importlib.util.find_spec("matplotlib") is not None:
        draw([dict(row) for row in rounds], folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
