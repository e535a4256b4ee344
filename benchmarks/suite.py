"""All that docs/benchmarks.md shows, one measurement after the other: tables, JSON and drawings in a folder.

    python -m benchmarks.suite results            # some minutes
    python -m benchmarks.suite results --full     # large models, a thousand clients: half an hour or more
    python -m benchmarks.suite results --flower-python flower/bin/python

Needs root, for network namespaces, and a machine that has nothing else to do. Flower runs beside it where
there is flwr (benchmarks.flower says how), drawings are made where there is matplotlib (`make bench`); what
was left out, and why, stands in tables.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.drawing import NO_MATPLOTLIB, can_draw, draw
from benchmarks.figures import Measurement, Row, run
from benchmarks.flower import Environment, add_arguments
from benchmarks.lab import LabError

CLIENTS: Final = ("10x10KB", "30x10KB", "100x10KB")
BYTES: Final = ("10x100KB", "10x1MB", "10x6.65MB")
MORE: Final = ("300x10KB", "1000x10KB", "10x25MB", "100x6.65MB", "10x100MB")
FLOWER: Final = ("10x10KB", "100x10KB", "10x1MB", "10x6.65MB")


def measurements(runs: int, *, full: bool, flower: tuple[str, ...] = ()) -> list[tuple[str, Measurement]]:
    """The name of each one's JSON file, and what is measured. `flower`: the arguments for Flower, or none."""
    cases = [*CLIENTS, *BYTES, *(MORE if full else ())]
    many = ("--runs", str(runs))
    rounds = [
        ("rounds", Measurement("Rounds", ("rounds", "--cases", ",".join(cases), *many, *flower), 0)),
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
        ("training", Measurement("Training", ("training", "--rounds", "6"), 0)),
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
    add_arguments(parser)
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    rounds: list[Row] = []
    failed = False
    with (folder / "tables.md").open("w") as file:

        def say(text: str) -> None:
            file.write(text)
            file.flush()

        flower = _flower_arguments(chosen, say)
        for name, one in measurements(chosen.runs, full=chosen.full, flower=flower):
            rows, code = run(one, say)
            failed |= code != 0 or not rows
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
            if name.startswith("rounds"):
                rounds += rows
        if can_draw():
            draw([dict(row) for row in rounds], folder)
        else:
            say(f"{NO_MATPLOTLIB}\n")
    return 1 if failed else 0


def _flower_arguments(chosen: argparse.Namespace, say: Callable[[str], None]) -> tuple[str, ...]:
    """For benchmarks.rounds; none where there is no flwr, unless its Python was named: then SystemExit."""
    try:
        python = Environment.of(chosen.flower_python).python
    except LabError as exc:
        if chosen.flower_python is not None:
            raise SystemExit(str(exc)) from None
        say(f"Flower is left out: {exc}\n\n")
        return ()
    cases = ("--flower", "--flower-cases", ",".join(FLOWER))
    return (*cases, "--flower-python", str(python), "--flower-clients", chosen.flower_clients)


if __name__ == "__main__":
    sys.exit(main())
