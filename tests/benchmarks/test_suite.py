"""All benchmarks by one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Measurement, run
from benchmarks.suite import measurements


@pytest.mark.parametrize("full", [False, True])
def test_every_measurement_is_a_benchmark_that_takes_its_arguments(full):
    """Each is there, and knows the options that it is given."""
    for _, one in measurements(2, full=full, flower=("--flower", "--flower-python", sys.executable)):
        options = {part for part in one.arguments if part.startswith("--")} | {"--json"}
        said = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{one.arguments[0]}", "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        assert [option for option in options if f"{option} " not in said and f"{option}\n" not in said] == []


def test_each_has_a_file_of_its_own():
    """Under its name; growth is measured along clients, bytes and keepers."""
    names = [name for name, _ in measurements(1, full=True)]
    assert len(names) == len(set(names))
    assert {"rounds", "rounds-keepers"} <= set(names)


def test_a_benchmark_that_fails_is_said_to_have_failed(capfd):
    """With its exit code: 2 is for options that it does not know."""
    said: list[str] = []
    rows, code = run(Measurement("Nothing", ("drawing", "--no-such-option"), 0), said.append)
    assert (rows, code) == ([], 2)
    assert "failed with code 2" in "".join(said)
    assert "--no-such-option" in capfd.readouterr().err


def test_flower_that_was_asked_for_and_is_not_there_ends_the_suite(tmp_path):
    """Before anything is measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite", str(tmp_path), "--flower-python", "/nonexistent/python"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "/nonexistent/python is no Python that starts" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tables.md"]
