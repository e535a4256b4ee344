from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedkeeper.errors import TaskError
from fedkeeper.runtime.data import testing_rows as read_test_set  # pytest would take its name for a test
from fedkeeper.runtime.wire import DataSpec, ModelSpec
from tests.functions.conftest import imported
from tests.functions.experiment import SMALL


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """The module under test."""
    return imported("fedkeeper.runtime.models")


def own(folder: Path, name: str, body: str) -> ModelSpec:
    """A user's module with a function `make`."""
    (folder / f"{name}.py").write_text(f"import keras\n{body}")
    return ModelSpec(name=f"{name}:make", input_shape=(8, 8, 1), hidden_size=6, output_size=4)


def test_names_do_not_depend_on_what_was_built_before(models: ModuleType, models_folder: Path) -> None:
    """Keras numbers its layers through a process: the second model's would be conv2d_1 and so on."""
    spec = own(
        models_folder,
        "numbered_net",
        "def make(input_shape, output_size, hidden_size=3):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Conv2D(2, 3),\n"
        "        keras.layers.BatchNormalization(), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(hidden_size), keras.layers.Dense(output_size)])\n",
    )
    first, second = (models.weights_of(models.build(spec, seed=1)) for _ in range(2))
    assert list(first) == [
        *("00:conv2d/kernel", "01:conv2d/bias"),
        *("02:batch_normalization/gamma", "03:batch_normalization/beta"),
        *("04:batch_normalization/moving_mean", "05:batch_normalization/moving_variance"),
        *("06:dense/kernel", "07:dense/bias", "08:dense/kernel", "09:dense/bias"),
    ]
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["06:dense/kernel"].shape[1] == 6  # hidden_size of the spec went in


def test_weights_come_out_as_they_went_in(models: ModuleType) -> None:
    """And what came out is a copy, not the model's own memory."""
    model = models.build(SMALL, seed=1)
    other = models.weights_of(models.build(SMALL, seed=2))
    before = models.weights_of(model)
    models.set_weights(model, other)
    assert all(np.array_equal(other[name], value) for name, value in models.weights_of(model).items())
    assert not np.array_equal(before["00:dense1/kernel"], other["00:dense1/kernel"])


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ("def make():\n    return 3\n", "returned int, not a Keras model"),
        ("make = 3\n", "is a int, not a function"),
        ("x = 1\n", "cannot be imported"),
    ],
)
def test_what_is_no_model_is_named(
    models: ModuleType, models_folder: Path, last: str, problem: str, request: pytest.FixtureRequest
) -> None:
    """By the name that the config gave."""
    name = f"broken_{abs(hash(request.node.name))}"
    with pytest.raises(TaskError, match=problem):
        models.build(own(models_folder, name, last), seed=1)


@pytest.mark.parametrize("ending", ["activation='softmax'", ""])
def test_probabilities_and_logits_are_told_apart(
    models: ModuleType, models_folder: Path, data: DataSpec, ending: str
) -> None:
    """The reported loss is the cross-entropy of what the model means, reckoned in numpy."""
    spec = own(
        models_folder,
        f"ending_{bool(ending)}",
        "def make(input_shape, output_size):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(),\n"
        f"        keras.layers.Dense(output_size, {ending})])\n",
    )
    weights = models.weights_of(models.build(spec, seed=3))
    examples = read_test_set(data, (8, 8, 1))
    loss, accuracy = imported("fedkeeper.runtime.evaluation").evaluate(spec, weights, examples)
    inputs, labels = examples.batch(np.arange(len(examples)))
    kernel, bias = weights.values()
    scores = inputs.reshape(len(labels), -1) @ kernel + bias
    odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(float(-np.log(odds[np.arange(len(labels)), labels]).mean()), rel=1e-4)
    assert accuracy == pytest.approx(float((scores.argmax(axis=1) == labels).mean()))
