"""The course of one run, from its rounds.csv: a table, what part of its time was not training, and a drawing.

    python -m benchmarks.curve logs/paper-1/rounds.csv --draw docs/paper.svg

Orchestration is, as in the paper (benchmarks/paper.yaml), what a round takes beside the clients' training: to
invoke them, to aggregate, to evaluate, and what lies between. The drawing needs matplotlib (`make bench`).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path
from typing import Final

from benchmarks.drawing import NO_MATPLOTLIB, can_draw
from benchmarks.figures import table

Rounds = list[dict[str, float]]
DRAWN_FROM: Final = 0.5  # accuracy; a first round below that is cut off


def read(path: Path) -> Rounds:
    """A mapping per round, of numbers; what is not known is left out. ValueError if there is no round."""
    with path.open(newline="") as file:
        rounds = [
            {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
        ]
    if not rounds:
        raise ValueError(f"{path}: no round in it")
    return rounds


def orchestration(rounds: Rounds) -> float:
    """The part of the wall that was not spent training, 0 to 1."""
    return 1 - sum(one["train_s"] for one in rounds) / sum(one["total_s"] for one in rounds)


def first_at(rounds: Rounds, accuracy: float) -> int | None:
    """The first round that reached it; None if none did."""
    return next((int(one["round"]) for one in rounds if one.get("accuracy", 0.0) >= accuracy), None)


def rows(rounds: Rounds) -> list[dict[str, object]]:
    """For people."""
    return [
        {
            "round": int(one["round"]),
            "accuracy": f"{one['accuracy']:.4f}",
            "loss": f"{one['loss']:.4f}",
            "wall s": round(one["total_s"], 1),
            "training s": round(one["train_s"], 1),
            "beside it s": round(one["total_s"] - one["train_s"], 1),
            "updates": int(one["updates"]),
            "failed attempts": int(one["failures"]),
        }
        for one in rounds
    ]


def draw(rounds: Rounds, path: Path) -> None:
    """Accuracy over the rounds, and beside it where their time went."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - not among what the product needs
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    numbers = [int(one["round"]) for one in rounds]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(numbers, [one["accuracy"] for one in rounds], "o-", markersize=3, label="accuracy")
    left.axhline(0.98, linestyle="--", color="0.5", linewidth=1, label="0.98")
    left.set(xlabel="round", title="accuracy on the test images", ylim=(DRAWN_FROM, 1.0))
    left.legend(loc="lower right", frameon=False)
    right.bar(numbers, [one["train_s"] for one in rounds], label="clients train")
    beside = [one["total_s"] - one["train_s"] for one in rounds]
    right.bar(numbers, beside, bottom=[one["train_s"] for one in rounds], color="C3", label="everything else")
    right.set(xlabel="round", title="seconds of a round")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.35, axis="y")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> int:
    """Print, and draw if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", type=Path)
    parser.add_argument("--draw", type=Path, metavar="FILE")
    parser.add_argument("--accuracy", type=float, default=0.98)
    chosen = parser.parse_args()
    try:
        rounds = read(chosen.rounds)
    except (OSError, ValueError) as exc:
        raise SystemExit(f"{exc}") from None
    print(table(rows(rounds)))
    reached = first_at(rounds, chosen.accuracy)
    print(f"accuracy {chosen.accuracy:g}: {f'round {reached}' if reached else 'not reached'}")
    median_s = statistics.median(one["total_s"] for one in rounds)
    print(f"orchestration: {orchestration(rounds):.2%} of the wall; a round took {median_s:.0f} s (median)")
    if chosen.draw is not None:
        if not can_draw():
            raise SystemExit(NO_MATPLOTLIB)
        draw(rounds, chosen.draw)
        print(chosen.draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
