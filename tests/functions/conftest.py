"""Handlers are imported by a fixture, so that collecting the tests does not import TensorFlow."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import DataSpec, Ref
from tests.functions.experiment import init_task, write_data


def imported(name: str) -> ModuleType:
    """A module that imports TensorFlow, whose own warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def init() -> ModuleType:
    """fl_server_init's handler."""
    return imported("functions.fl_server_init.handler")


@pytest.fixture(scope="session")
def client() -> ModuleType:
    """fl_client's handler."""
    return imported("functions.fl_client.handler")


@pytest.fixture(scope="session")
def aggregator() -> ModuleType:
    """fl_server_aggregator's handler."""
    return imported("functions.fl_server_aggregator.handler")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """The small experiment's arrays."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store() -> MemoryObjects:
    """An empty store."""
    return MemoryObjects()


@pytest.fixture
def initial(init: ModuleType, data: DataSpec, store: MemoryObjects) -> Ref:
    """The weights of round 0; every client has its rows."""
    weights: Ref = init.run(init_task(data), store).weights
    return weights


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which a function imports its user's own modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
