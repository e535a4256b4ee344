"""Real Raft nodes in bad worlds. More of them: `python -m tests.raft_sim.run --seeds 10000 --workers 2`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.raft_sim.run import Failure, one, report
from tests.raft_sim.simulation import Simulation

SEEDS = 300
CHUNKS = 8
SECONDS = 3.0  # simulated, of faults, with timing "steady"; then peace

WHAT = (
    "accepted",
    "rejected",
    "operations",
    "kills",
    "power cuts",
    "deaths within a disk operation",
    "keepers that stopped: removed",
    "keepers that stopped: disk",
    "wiped keepers that caught up",
    "snapshots installed",
    "changes of the members",
    "transfers",
    "partitions",
    "pauses",
    "terms with a leader",
)
SEEN: Counter[str] = Counter()  # over all seeds


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_rule_is_broken(chunk):
    """One entry at an index, one leader in a term, nothing acknowledged lost, linearizable, live again."""
    for seed in range(chunk, SEEDS, CHUNKS):
        outcome = one(seed, seconds=SECONDS)
        assert not isinstance(outcome, Failure), report(outcome, seconds=SECONDS)
        SEEN.update(outcome.seen)
        SEEN["operations"] += outcome.operations


def fingerprint(seed: int) -> str:
    """Everything that happened in a short world."""
    simulation = Simulation(seed, seconds=SECONDS)
    simulation.run()
    told = "\n".join(simulation.world.story)
    log = repr(sorted(simulation.checks.log.items()))
    return hashlib.sha256(f"{simulation.world.events}{told}{log}".encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_replays_exactly_in_another_process(hash_seed):
    """Whatever order its sets have."""
    code = "from tests.raft_sim.test_raft_sim import fingerprint; print(fingerprint(17), fingerprint(18))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    again = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    assert again.stdout.split()[-2:] == [fingerprint(17), fingerprint(18)]


def test_the_seeds_reach_what_they_are_for():
    """A simulation in which nothing happens would prove nothing."""
    if not SEEN:
        pytest.skip("runs after the seeds, in the same process")
    for what in WHAT:
        assert SEEN[what] >= 10, f"{what}: {SEEN}"
