"""The simulation notices when a rule of the code is taken away."""

from __future__ import annotations

import pytest

from tests.raft_sim.mutations import MUTATIONS
from tests.raft_sim.run import Failure, one, report

SEEDS = 60  # of short worlds; most are caught by the first few
SECONDS = 3.0
# What needs a rarer meeting of events has worlds in which nothing else goes wrong.
ONLY = {
    "wiped keeper counts": ("wipe_and_behead",),
    "many changes at once": ("change_members",),
    "votes counted twice": ("transfer", "kill", "partition"),
}


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_a_mutation_is_caught(mutation):
    """Within a few seeds; the same seeds find nothing in the code as it is."""
    only = ONLY.get(mutation, ())
    caught = (one(seed, seconds=SECONDS, mutation=mutation, only=only) for seed in range(SEEDS))
    failure = next((outcome for outcome in caught if isinstance(outcome, Failure)), None)
    assert failure is not None, f"{mutation}: nothing noticed in {SEEDS} seeds"
    unharmed = one(failure.seed, seconds=SECONDS, only=only)
    assert not isinstance(unharmed, Failure), report(unharmed, seconds=SECONDS)
