"""The real network between keepers: the contract, reconnects, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.replication.raft.network_contract import NetworkContract
from tests.replication.raft.real_world import RealWorld, credentials_of


class TestContract(NetworkContract):
    @pytest.fixture(params=["nothing", "secret", "tls"])
    async def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealWorld]:
        world = RealWorld(credentials_of(request.param, tmp_path))
        yield world
        await world.close()
