"""Draws how the cost of a round grows with clients, bytes and keepers, from what benchmarks.rounds wrote.

    python -m benchmarks.drawing rounds.json rounds-keepers.json --folder drawings --format svg

Needs matplotlib (`make bench`). One file for each of the three, if there are two cases or
more that differ in nothing else: wall on the left, CPU seconds on the right, on logarithmic axes, beside the
floors; and Flower's, where the same cases were run with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.cases import UNITS, Json

OURS: Final = "FedKeeper"
AXES: Final = {"clients": "clients", "bytes": "model", "keepers": "keepers"}
PANELS: Final = {
    "wall": {"store floor s": "floor: bare pymongo", "average floor s": "floor: numpy's average"},
    "CPU": {"store floor cpu s": "floor: bare pymongo"},
}
FIGURES: Final = {"wall": "wall s", "CPU": "cpu s"}
TITLES: Final = {"wall": "wall", "CPU": "CPU, all processes together"}
NO_MATPLOTLIB: Final = (
    "no drawings: matplotlib is not installed; `make bench` installs it, and `python -m benchmarks.drawing` "
    "draws from the JSON files"
)


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def comparable(rows: list[Json], axis: str) -> list[Json]:
    """The largest set of our cases that differ in nothing but `axis`, in its order."""
    ours = [row for row in rows if row.get("system", OURS) == OURS]
    others = [name for name in AXES if name != axis]
    alike = Counter(tuple(row[name] for name in others) for row in ours)
    if not alike:
        return []
    chosen = max(alike, key=lambda values: len({row[axis] for row in _of(ours, others, values)}))
    return sorted(_of(ours, others, chosen), key=lambda row: row[axis])


def flowers(rows: list[Json], line: list[Json], axis: str) -> dict[str, list[Json]]:
    """By system, Flower's rows of the same cases, two or more, in the order of `axis`; it has no keepers."""
    cases = {(row["clients"], row["bytes"]) for row in line}
    found: dict[str, list[Json]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        if row.get("system", OURS) != OURS and (row["clients"], row["bytes"]) in cases:
            found.setdefault(row["system"], []).append(row)
    return {name: those for name, those in found.items() if len({row[axis] for row in those}) > 1}


def size_label(nbytes: float) -> str:
    """As 6.65 MB."""
    unit = max((name for name in UNITS if UNITS[name] <= nbytes), key=UNITS.__getitem__, default="KB")
    return f"{nbytes / UNITS[unit]:.3g} {unit}"


def _label(axis: str, value: float) -> str:
    if axis == "bytes":
        return f"model of {size_label(value)}"
    return f"{value:,} {AXES[axis]}".removesuffix("s" if value == 1 else " ")


def _of(rows: list[Json], names: list[str], values: tuple[Any, ...]) -> list[Json]:
    return [row for row in rows if tuple(row[name] for name in names) == values]


def draw(rows: list[Json], folder: Path, form: str = "png") -> list[Path]:
    """The files that were made, one for each axis along which there is something to see."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - not among what the product needs

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for axis in AXES:
        line = comparable(rows, axis)
        if len({row[axis] for row in line}) < 2:
            continue
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for panel, axes in zip(PANELS, panels, strict=True):
            _panel(axes, panel, axis, line, flowers(rows, line, axis))
        fixed = ", ".join(_label(name, line[0][name]) for name in AXES if name != axis)
        figure.suptitle(f"A round without training: {fixed}")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        made.append(folder / f"rounds-{axis}.{form}")
        figure.savefig(made[-1], dpi=130)
    return made


def _panel(axes: Any, panel: str, axis: str, line: list[Json], others: dict[str, list[Json]]) -> None:
    """One half of a drawing."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator  # noqa: PLC0415

    def plot(those: list[Json], figure: str, style: str, colour: str, label: str) -> None:
        have = [row for row in those if figure in row]
        axes.plot(
            [row[axis] for row in have], [row[figure] for row in have], style, color=colour, label=label
        )

    plot(line, FIGURES[panel], "o-", "C0", OURS)
    for number, (name, those) in enumerate(others.items()):
        plot(those, FIGURES[panel], "s-", f"C{number + 1}", name)
    for number, (name, label) in enumerate(PANELS[panel].items()):
        plot(line, name, "^--", ("0.35", "0.65")[number], label)
    ticks = sorted({row[axis] for row in line})
    axes.set(xscale="log", yscale="log", title=TITLES[panel])
    axes.set_xlabel("bytes of the model" if axis == "bytes" else AXES[axis])
    axes.set_xticks(
        ticks, [size_label(one) if axis == "bytes" else f"{one:,}" for one in ticks], fontsize="small"
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.35)


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    chosen = parser.parse_args()
    if not can_draw():
        raise SystemExit(NO_MATPLOTLIB)
    rows = [row for file in chosen.rows for row in json.loads(file.read_text())]
    made = draw(rows, chosen.folder, chosen.format)
    if not made:
        raise SystemExit("no drawings: no two cases differ in clients, bytes or keepers alone")
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
