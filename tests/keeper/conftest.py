"""A world per test: the memory log, the memory store, a platform in memory."""

from collections.abc import AsyncIterator

import pytest

from fedkeeper.replication.memory import MemoryLog
from fedkeeper.runtime.memory import MemoryObjects
from tests.keeper.world import Platform, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A fresh world, whose platform's tasks end with the test."""
    objects = MemoryObjects()
    platform = Platform(objects)
    yield World(log=MemoryLog(), objects=objects, platform=platform)
    await platform.close()
