"""The figures of docs/speed.md, one measurement after the other, for a machine with nothing else to do.

    python -m benchmarks.figures figures.md --minutes 10

Needs root, for network namespaces. What does not fit into the time is left out, the last ones first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One benchmark as it is called, and how long that takes on an idle machine."""

    title: str
    arguments: tuple[str, ...]
    seconds: float


MEASUREMENTS: Final = (
    Measurement("Commands", ("commands", "--seconds", "2"), 50),
    Measurement("HTTP API", ("api", "--seconds", "1.5"), 45),
    Measurement("Idle", ("idle", "--keepers", "3", "--seconds", "25"), 40),
    Measurement(
        "Leader of five killed", ("failover", "--nodes", "5", "--times", "100", "--faults", "kill"), 130
    ),
    Measurement(
        "Leader of three killed", ("failover", "--nodes", "3", "--times", "100", "--faults", "kill"), 90
    ),
    Measurement(
        "Leader frozen, cut off",
        ("failover", "--nodes", "3,5", "--times", "20", "--faults", "freeze,partition"),
        65,
    ),
)


def table(rows: Sequence[Row]) -> str:
    """In Markdown; a column for each key of any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(row.get(name, "")) for name in names] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def median_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The medians of several runs of one case, figure by figure."""

    def middle(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: middle([one[name] for one in values]) for name in values[0]}
        return values[0] if isinstance(values[0], str) else round(statistics.median(values), 5)

    return {**{name: middle([row[name] for row in rows]) for name in rows[0]}, "runs": len(rows)}


def run(one: Measurement, say: Callable[[str], None]) -> tuple[list[Row], int]:
    """Measure, and say what came of it: the rows, those before a failure too, and the exit code."""
    with TemporaryDirectory(prefix="figures") as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{one.arguments[0]}", *one.arguments[1:]]
        ended = subprocess.run([*command, "--json", str(file)], check=False)
        rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    say(f"## {one.title}\n`python -m benchmarks.{' '.join(one.arguments)}`\n\n")
    say(table(rows) if rows else "")
    say(f"failed with code {ended.returncode}\n\n" if ended.returncode else "\n")
    return rows, ended.returncode


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    chosen = parser.parse_args()
    end = time.monotonic() + chosen.minutes * 60
    with chosen.file.open("w") as file:

        def say(text: str) -> None:
            file.write(text)
            file.flush()

        for one in MEASUREMENTS:
            if time.monotonic() + one.seconds > end:
                say(f"## {one.title}\nleft out: the time was up\n\n")
            else:
                run(one, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
