"""A real mongod for this area's tests, one for all of them; each test has collections of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.embedded import OpenMongo, open_embedded_mongo


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenMongo]:
    """The embedded mongod, as the product starts it."""
    folder = tmp_path_factory.mktemp("mongod")
    opened = asyncio.run(open_embedded_mongo(folder, database="fedkeeper", collection="tests"))
    yield opened
    asyncio.run(opened.close())
    assert not opened.running.alive()


@pytest.fixture
def address(mongo: OpenMongo) -> StoreAddress:
    """A store that nobody else uses."""
    return replace(mongo.address, collection=f"t{uuid.uuid4().hex[:8]}")
