"""A real mongod for this area's tests, one for all of them; each test has collections of its own."""

from __future__ import annotations

import asyncio
import gc
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.embedded import OpenMongo, open_embedded_mongo


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pymongo's monitors leave sockets to servers that died to the garbage collector: not our leaks."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="package", autouse=True)
def collected() -> Iterator[None]:
    """What pymongo has left lying is collected here, and not in a test that has nothing to do with it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


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
