"""Flower beside us."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.cases import Case
from benchmarks.flower import Environment, beside, chosen_clients, row
from benchmarks.lab import LabError

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
PYTHON = os.environ.get("FLOWER_PYTHON", sys.executable if HAS_FLOWER else "")

JOURNAL = [
    {"round": 1, "updates": 10, "started": 100.0, "trained": 109.0, "aggregated": 110.0},
    {"round": 2, "updates": 10, "started": 110.0, "trained": 113.0, "aggregated": 114.0},
    {"round": 3, "updates": 10, "started": 114.0, "trained": 117.5, "aggregated": 118.0},
    {"round": 4, "updates": 10, "started": 118.0, "trained": 119.75, "aggregated": 120.0},
]


def test_the_first_round_is_not_counted_in_the_wall():
    """It has the start of the processes in it; a round ends with its aggregate."""
    shown = row(
        Case.read("10x10KB"),
        "Flower",
        JOURNAL,
        {"server": 1.0, "clients": 4.0},
        {"server": 90.4, "clients": 80},
    )
    assert (shown["first s"], shown["wall s"], shown["cpu s"]) == (10.0, 4.0, 5.0)
    assert shown["last round s"] == {"updates": 1.75, "aggregate": 0.25}
    assert shown["largest MB"] == {"server": 90, "clients": 80}


def test_ratios_are_to_our_row_of_the_same_case():
    """How many times ours Flower takes: wall and CPU."""
    shown = beside({"wall s": 0.5, "cpu s": 2.0}, {"case": "10x10KB", "wall s": 10.0, "cpu s": 5.0})
    assert shown == {"case": "10x10KB", "wall s": 10.0, "cpu s": 5.0, "wall / ours": 20.0, "cpu / ours": 2.5}


def test_clients_share_a_process_where_theirs_would_not_fit():
    """A SuperNode and what it starts take some 300 MB; half of the free memory is theirs."""
    assert chosen_clients("auto", 10, free_mb=6_000) == "nodes"
    assert chosen_clients("auto", 10, free_mb=5_999) == "light"
    assert chosen_clients("nodes", 100, free_mb=1) == "nodes"
    assert chosen_clients("light", 1, free_mb=10**6) == "light"


def test_a_python_without_flwr_is_refused_with_the_way_out(tmp_path):
    """Named, with how to make an environment that has it."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')  # no site-packages
    python.chmod(0o755)
    with pytest.raises(LabError, match=r"flwr is not installed: .*/python has none; make .* --flower-python"):
        Environment.of(python)


def test_what_is_no_python_is_refused(tmp_path):
    """A path that was mistyped."""
    with pytest.raises(LabError, match="is no Python that starts"):
        Environment.of(tmp_path / "nothing")


def test_the_comparison_without_flwr_ends_before_it_measures():
    """One line, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rounds", "--flower", "--flower-python", "/nonexistent/python"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.startswith("/nonexistent/python is no Python that starts")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not PYTHON, reason="flwr is not installed, and FLOWER_PYTHON names no Python that has it")
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.parametrize("clients", ["nodes", "light"])
def test_flower_runs_the_same_rounds(tmp_path, clients):
    """A real SuperLink and its clients: every update arrives in every round, nothing is left running."""
    file = tmp_path / "rows.json"
    command = ["--cases", "2x10KB", "--rounds", "2", "--flower-clients", clients, "--json", str(file)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.flower", *command, "--flower-python", PYTHON],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    (shown,) = json.loads(file.read_text())
    assert shown["clients"] == 2
    assert shown["system"].startswith("Flower ")
    assert shown["cpu s by part"].keys() == {"server", "clients"} == shown["largest MB"].keys()
    assert min(shown["cpu s by part"].values()) > 0
    left = [one for one in psutil.process_iter(["cwd"]) if (one.info["cwd"] or "").startswith(str(tmp_path))]
    assert left == []
