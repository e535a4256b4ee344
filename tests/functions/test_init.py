from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from fedkeeper.errors import TaskError
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import DataSpec, ModelSpec, assignment_name, weights_name
from tests.functions.experiment import CLIENTS, RUN, TRAIN_ROWS, init_task


def test_weights_and_assignments_are_stored(init: ModuleType, data: DataSpec, store: MemoryObjects) -> None:
    """Round 0 has weights under its name, and every client its rows, as many as the result says."""
    result = init.run(init_task(data), store)
    assert result.weights.name == weights_name(RUN, 0)
    assert store.get(result.weights.name, sha256=result.weights.sha256)
    rows = {client: store.get(assignment_name(RUN, client))["rows"] for client in CLIENTS}
    assert {client: len(numbers) for client, numbers in rows.items()} == result.samples
    assert sorted(np.concatenate(list(rows.values()))) == list(range(TRAIN_ROWS))
    assert all(numbers.dtype == np.int64 for numbers in rows.values())


def test_the_ancestors_cnn_has_582026_parameters(
    init: ModuleType, data: DataSpec, store: MemoryObjects
) -> None:
    """Convolutions 5x5x32 and 5x5x64 without padding, each pooled, dense 512, dense 10; names are stable."""
    cnn = ModelSpec(name="cnn", input_shape=(28, 28, 1))
    init.run(init_task(data, model=cnn), store)
    weights = store.get(weights_name(RUN, 0))
    assert sum(value.size for value in weights.values()) == 582_026
    assert list(weights) == [
        *("00:conv1/kernel", "01:conv1/bias", "02:conv2/kernel", "03:conv2/bias"),
        *("04:dense1/kernel", "05:dense1/bias", "06:dense2/kernel", "07:dense2/bias"),
    ]


def test_the_ancestors_mlp_is_dense_500_dense_10(
    init: ModuleType, data: DataSpec, store: MemoryObjects
) -> None:
    """784 x 500 + 500 + 500 x 10 + 10 parameters."""
    init.run(init_task(data, model=ModelSpec(name="mnistnn", input_shape=(784,))), store)
    assert sum(value.size for value in store.get(weights_name(RUN, 0)).values()) == 397_510


def test_the_same_seed_gives_the_same_objects(init: ModuleType, data: DataSpec) -> None:
    """Bit for bit, also in a process that has built other models; another seed gives others."""
    stores = [MemoryObjects() for _ in range(3)]
    first, again, other = (
        init.run(init_task(data, seed=seed), store) for seed, store in zip((5, 5, 6), stores, strict=True)
    )
    assert first.weights == again.weights
    assert first.weights.sha256 != other.weights.sha256
    names = [assignment_name(RUN, client) for client in CLIENTS]
    digests = [[store.shelf.objects[name].ref.sha256 for name in names] for store in stores]
    assert digests[0] == digests[1] != digests[2]


def test_a_model_above_the_limit_is_refused(init: ModuleType, data: DataSpec, store: MemoryObjects) -> None:
    """Both sizes are named, and nothing is stored."""
    with pytest.raises(TaskError, match=r"has 4432 bytes of weights, the limit is 4431"):
        init.run(replace(init_task(data), max_model_bytes=4431), store)
    assert not store.shelf.objects


def test_layers_that_do_not_fit_the_input_are_named(
    init: ModuleType, data: DataSpec, store: MemoryObjects
) -> None:
    """A CNN cannot take images without a channel axis: the message says which input was given."""
    with pytest.raises(TaskError, match=r"model 'cnn' for input \[28, 28\]"):
        init.run(init_task(data, model=ModelSpec(name="cnn", input_shape=(28, 28))), store)


def test_a_mistyped_model_gets_a_suggestion(init: ModuleType, data: DataSpec, store: MemoryObjects) -> None:
    """The near name is in the hint."""
    with pytest.raises(TaskError) as caught:
        init.run(init_task(data, model=ModelSpec(name="mnistn", input_shape=(8, 8, 1))), store)
    assert caught.value.hint == "did you mean 'mnistnn'?"
