"""The machine in a bad world."""

from __future__ import annotations

from collections import Counter

import pytest

from fedkeeper.core.model import AttemptStatus, Phase
from tests.sim.simulation import Simulation

SEEDS = 800


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_run_ends_and_no_rule_is_broken(seed):
    """Rounds commit once, updates count once, replays agree (see core/invariants.py). One seed: -k "[17]"."""
    Simulation(seed).run()


def test_the_seeds_reach_what_they_are_for():
    """A simulation in which nothing happens would prove nothing."""
    phases, rejected, epochs, commits = Counter(), Counter(), Counter(), 0
    statuses: set[AttemptStatus] = set()
    for seed in range(0, SEEDS, 4):
        sim = Simulation(seed)
        sim.run()
        phases.update(run.phase for run in sim.state.runs.values())
        rejected.update(sim.rejected)
        epochs[min(sim.state.epoch, 5)] += 1
        commits += len(sim.commits)
        statuses |= {one.status for run in sim.state.runs.values() for one in run.ended}
    assert min(phases[phase] for phase in (Phase.FINISHED, Phase.FAILED, Phase.STOPPED)) > 5
    assert min(rejected[kind] for kind in ("UpdateStored", "InvocationSent", "RoundAggregated")) > 5
    assert epochs[5] > 10
    assert commits > 50
    assert {"SILENT", "ABANDONED"} <= {status.name for status in statuses}
