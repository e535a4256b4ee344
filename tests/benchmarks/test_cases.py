"""What is measured, and the tables that show it."""

from __future__ import annotations

import pytest

from benchmarks.cases import Case
from benchmarks.figures import median_of, table


def test_a_case_is_clients_times_bytes():
    """KB, MB and GB are powers of ten, as in the tables."""
    assert Case.read("100x6.65MB") == Case(clients=100, nbytes=6_650_000, label="100x6.65MB")
    assert Case.read("4x5GB").nbytes == 5 * 10**9


@pytest.mark.parametrize("text", ["10", "x10KB", "10x10", "0x10KB", "10xKB", "10x1B", "10x0.001KB"])
def test_what_is_no_case_is_refused_with_how_it_is_written(text):
    """No number, unit or client left out, and a model of at least one number."""
    with pytest.raises(ValueError, match=r"no case: it is written as 100x6\.65MB"):
        Case.read(text)


def test_the_median_of_runs_is_taken_figure_by_figure():
    """In parts as well; names stay as they are."""
    runs = [
        {"case": "a", "wall s": wall, "cpu s by part": {"server": wall + 1}, "load": 1.0}
        for wall in (3.0, 1.0, 2.0)
    ]
    assert median_of(runs) == {
        "case": "a",
        "wall s": 2.0,
        "cpu s by part": {"server": 3.0},
        "load": 1.0,
        "runs": 3,
    }


def test_a_table_has_a_column_for_every_figure_of_any_row():
    """Ours and Flower's have not the same ones."""
    shown = table([{"case": "a", "cpu s": 1}, {"case": "a", "cpu / ours": 4.5, "largest MB": {"server": 9}}])
    assert shown.splitlines() == [
        "| case | cpu s | cpu / ours | largest MB |",
        "| --- | --- | --- | --- |",
        "| a | 1 |  |  |",
        "| a |  | 4.5 | server 9 |",
    ]
