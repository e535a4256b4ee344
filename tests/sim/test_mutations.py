"""A simulation that finds nothing proves nothing, unless it would find something."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS
from tests.sim.simulation import Simulation

SEEDS = 300  # as many as test_simulation.py runs


def first_caught(seeds: range) -> int | None:
    """The first seed that fails, of the code as it is now."""
    for seed in seeds:
        try:
            Simulation(seed).run()
        except Exception:  # noqa: BLE001 - a mutated machine may break in any way
            return seed
    return None


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name, monkeypatch):
    """By one of the seeds that run in every check."""
    MUTATIONS[name](monkeypatch)
    assert first_caught(range(SEEDS)) is not None
