"""The course of a run, from its rounds.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.curve import draw, first_at, orchestration, read, rows
from benchmarks.drawing import can_draw

HEADER = (
    "round,loss,accuracy,train_loss,invoke_s,train_s,aggregate_s,evaluate_s,total_s,bytes,updates,failures\n"
)
TWO = HEADER + "1,1.5,0.7,,0.5,90,1,2,95,10,100,0\n2,0.1,0.981,0.2,0.5,100,1,2,105,10,99,1\n"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two rounds, of the first of which the loss in training is not known."""
    path = tmp_path / "rounds.csv"
    path.write_text(TWO)
    return path


def test_what_is_not_training_is_orchestration(two: Path):
    """10 s of 200 s; the round that reaches an accuracy is the first of them."""
    rounds = read(two)
    assert orchestration(rounds) == pytest.approx(0.05)
    assert (first_at(rounds, 0.98), first_at(rounds, 0.5), first_at(rounds, 0.99)) == (2, 1, None)
    assert [(row["beside it s"], row["updates"], row["failed attempts"]) for row in rows(rounds)] == [
        (5.0, 100, 0),
        (5.0, 99, 1),
    ]


def test_a_file_without_a_round_is_refused(tmp_path: Path):
    """By name."""
    path = tmp_path / "rounds.csv"
    path.write_text(HEADER)
    with pytest.raises(ValueError, match=r"rounds\.csv: no round in it"):
        read(path)


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed (`make bench`)")
def test_it_is_drawn(two: Path, tmp_path: Path):
    """A picture of some size."""
    draw(read(two), tmp_path / "curve.png")
    content = (tmp_path / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) > 1000
