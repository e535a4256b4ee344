"""Keepers, core, codec and lease in a bad world."""

from __future__ import annotations

from collections import Counter

import pytest

from fedkeeper.core.model import AttemptStatus, Phase
from tests.sim.simulation import Simulation

SEEDS = 300  # thousands: python -m tests.sim.run


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_run_ends_and_no_rule_is_broken(seed):
    """Rounds commit once, updates count once, replays agree (see core/invariants.py). One seed: -k "[17]"."""
    Simulation(seed).run()


def test_the_seeds_reach_what_they_are_for():
    """A simulation in which nothing happens would prove nothing."""
    met, rejected, phases = Counter(), Counter(), Counter()
    statuses: set[AttemptStatus] = set()
    pinned = placements = 0
    for seed in range(0, SEEDS, 3):
        sim = Simulation(seed)
        sim.run()
        met.update(sim.met())
        rejected.update(sim.rejected)
        phases.update(run.phase for run in sim.state.runs.values())
        statuses |= {one.status for run in sim.state.runs.values() for one in run.ended}
        pinned += sim.state.pinned
        placements += "nearest" in sim.state.conductor_why or "follows" in sim.state.conductor_why
    assert min(phases[phase] for phase in (Phase.FINISHED, Phase.FAILED, Phase.STOPPED)) > 2
    kinds = (
        "UpdateStored",
        "InvocationSent",
        "UpdatesFolded",
        "ShardStored",
        "RoundAggregated",
        "FunctionsDeployed",
        "PutValue",
        "DeleteValue",
    )
    assert min(rejected[kind] for kind in kinds) > 0
    assert met["epochs"] > 150
    assert met["rounds committed"] > 50
    assert met["requests repeated"] > 20
    assert min(met[f"faults: {kind}"] for kind in ("kill", "freeze", "cut", "leader")) > 10
    assert min(pinned, placements) > 2
    assert {"SILENT", "ABANDONED"} <= {status.name for status in statuses}
