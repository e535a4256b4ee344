"""A world per test: memory logs, the memory store, a platform in memory."""

from collections.abc import AsyncIterator

import pytest

from fedkeeper.runtime.memory import MemoryObjects
from tests.keeper.world import Platform, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A fresh world of one keeper, whose tasks end with the test."""
    objects = MemoryObjects()
    world = World(objects, Platform(objects))
    yield world
    await world.close()


@pytest.fixture
async def trio() -> AsyncIterator[World]:
    """A fresh world of three keepers that know of each other; k1 leads."""
    objects = MemoryObjects()
    world = World(objects, Platform(objects), ("k1", "k2", "k3"))
    await world.announce()
    yield world
    await world.close()
