"""One embedded fabric and one mongod for all end-to-end tests, kept alive by this process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkeeper.fabric.launch import open_fabric
from fedkeeper.weights.embedded import open_embedded_mongo
from tests.e2e.lab import Lab, small_data


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the services and the data; both services run as long as this lives."""
    folder = tmp_path_factory.mktemp("e2e")
    small_data(folder / "small.npz")

    async def open_both():
        mongo = await open_embedded_mongo(
            folder / "embedded" / "mongo", database="e2e", collection="w", linger_s=5
        )
        fabric = await open_fabric(
            folder / "embedded" / "fabric", namespaces=["ow"], projects=["fedkeeper"], linger_s=5
        )
        return mongo, fabric

    async def close_both():
        await fabric.close()
        await mongo.close()

    mongo, fabric = asyncio.run(open_both())
    yield folder
    asyncio.run(close_both())


@pytest.fixture
def lab(shared: Path, tmp_path: Path) -> Lab:
    """An experiment of its own folder, logs and keeper's log, on the shared services."""
    return Lab(folder=tmp_path, shared=shared)


@pytest.fixture(scope="session")
def calm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights after three undisturbed rounds: what every disturbed run must end with."""
    lab = Lab(folder=tmp_path_factory.mktemp("calm"), shared=shared)
    lab.write("calm", learning={"stopping": {"rounds_max": 3}})
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    return lab.weights_hash("calm-1")
