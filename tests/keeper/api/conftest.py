"""A keeper alone, and three of a cluster."""

from collections.abc import AsyncIterator

import pytest

from tests.keeper.lab import Lab, open_lab


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """k1 alone."""
    async with open_lab() as lab:
        yield lab


@pytest.fixture
async def three() -> AsyncIterator[Lab]:
    """k1 leads k2 and k3."""
    async with open_lab("k1", "k2", "k3") as lab:
        yield lab
