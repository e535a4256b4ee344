"""Draws how the cost of a round grows with clients, bytes and keepers, from what benchmarks.rounds wrote.

    python -m benchmarks.drawing rounds.json --folder drawings

Needs matplotlib (the dependency group `bench`). One file for each of the three, if there are two cases or
more that differ in nothing else: wall and CPU seconds, and the floors, on logarithmic axes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
AXES: Final = {"clients": "clients", "bytes": "bytes of the model", "keepers": "keepers"}
CURVES: Final = {
    "wall s": ("o-", "wall"),
    "cpu s": ("s-", "CPU, all processes"),
    "store floor s": ("o--", "floor of the store, wall"),
    "store floor cpu s": ("s--", "floor of the store, CPU"),
    "average floor s": ("^:", "floor of the average"),
}


def comparable(rows: list[Json], axis: str) -> list[Json]:
    """The largest set of cases that differ in nothing but `axis`, in its order."""
    others = [name for name in AXES if name != axis]
    alike = Counter(tuple(row[name] for name in others) for row in rows)
    chosen = max(alike, key=lambda values: len({row[axis] for row in _of(rows, others, values)}))
    return sorted(_of(rows, others, chosen), key=lambda row: row[axis])


def _of(rows: list[Json], names: list[str], values: tuple[Any, ...]) -> list[Json]:
    return [row for row in rows if tuple(row[name] for name in names) == values]


def draw(rows: list[Json], folder: Path) -> list[Path]:
    """The files that were made."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - not among what the product needs

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for axis, label in AXES.items():
        line = comparable(rows, axis)
        if len({row[axis] for row in line}) < 2:
            continue
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, (style, legend) in CURVES.items():
            axes.plot([row[axis] for row in line], [row[name] for row in line], style, label=legend)
        fixed = ", ".join(f"{line[0][name]:,} {AXES[name]}" for name in AXES if name != axis)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds of a round", title=fixed)
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        made.append(folder / f"rounds-{axis}.svg")
        figure.savefig(made[-1])
    return made


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("--folder", type=Path, default=Path())
    chosen = parser.parse_args()
    for path in draw(json.loads(chosen.rows.read_text()), chosen.folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
