from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from fedkeeper.errors import ObjectDamaged, TaskError, UpdateRefused
from fedkeeper.runtime import data as data_module
from fedkeeper.runtime.environment import AHEAD_VARIABLE, Ahead
from fedkeeper.runtime.forwarding import pack_task, unpack_update
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import DataSpec, ModelSpec, Ref, TrainingSpec, assignment_name
from tests.functions.conftest import imported
from tests.functions.experiment import CLIENTS, RUN, SMALL, TRAINING, init_task, train_task

OPTIMIZERS = ("adam", "nadam", "sgd")


def forget() -> None:
    """Make the next training a cold one."""
    imported("fedkeeper.runtime.training").forget()
    data_module.forget()


def test_a_client_learns_and_stores_its_update(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The update lies under the task's key, fits the weights, and loss falls from round to round."""
    first = client.run(train_task(data, initial), store)
    assert first.update.name == f"{RUN}/r1/client_0/a0"
    assert first.samples == len(store.get(assignment_name(RUN, CLIENTS[0]))["rows"])
    update, weights = store.get(first.update.name), store.get(initial.name)
    assert {n: (v.shape, v.dtype) for n, v in update.items()} == {
        n: (v.shape, v.dtype) for n, v in weights.items()
    }
    second = client.run(train_task(data, first.update, round_no=2), store)
    assert second.loss < first.loss
    assert second.accuracy > 0.5
    assert set(second.seconds) == {"load", "train", "store"}


@pytest.mark.parametrize("mu", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_warm_worker_gives_the_same_bits_as_a_cold_one(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref, optimizer: str, mu: float
) -> None:
    """Nothing of an earlier activation remains: no moments of the optimizer, no step count, no order."""
    training = replace(TRAINING, optimizer=optimizer, proximal_mu=mu)
    task = train_task(data, initial, training=training)
    forget()
    cold = client.run(task, store).update
    client.run(train_task(data, initial, client=CLIENTS[1], round_no=2, training=training), store)
    assert client.run(task, store).update == cold
    forget()
    assert client.run(task, store).update == cold


@pytest.mark.parametrize("mu", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_was_made_ready_ahead_changes_no_bit(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref, optimizer: str, mu: float
) -> None:
    """The step that was taken on blank rows leaves nothing; the first task traces nothing."""
    training = imported("fedkeeper.runtime.training")
    task = train_task(data, initial, training=replace(TRAINING, optimizer=optimizer, proximal_mu=mu))
    forget()
    cold = client.run(task, store).update
    forget()
    training.prepare(task.model, optimizer=optimizer, proximal_mu=mu, batch_size=task.training.batch_size)
    (trainer,) = training._kept.values()
    assert client.run(task, store).update == cold
    assert list(training._kept.values()) == [trainer]
    assert trainer._step.experimental_get_tracing_count() == 1


def test_a_function_makes_ready_what_it_was_told_of_when_it_was_deployed(
    client: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """While it loads; without a word in its environment nothing, and of a model that fails only a log."""
    forget()
    training = imported("fedkeeper.runtime.training")
    readiness = imported("fedkeeper.runtime.readiness")
    readiness.prepare_training()
    assert not training._kept
    told = Ahead(model=SMALL, optimizer="adam", proximal_mu=0.0, batch_size=4)
    monkeypatch.setenv(AHEAD_VARIABLE, msgspec.json.encode(told).decode())
    importlib.reload(client)
    assert [key[0] for key in training._kept] == [SMALL]
    forget()
    unknown = replace(told, model=replace(SMALL, name="nomodel"))
    monkeypatch.setenv(AHEAD_VARIABLE, msgspec.json.encode(unknown).decode())
    importlib.reload(client)
    assert not training._kept
    assert "unknown model 'nomodel'" in capfd.readouterr().err


def test_dropout_is_drawn_by_seed_round_and_client(
    client: ModuleType, init: ModuleType, data: DataSpec, store: MemoryObjects, models_folder: Path
) -> None:
    """Random layers repeat themselves too, warm or cold, and differ between clients."""
    (models_folder / "dropout_net.py").write_text(
        "import keras\n"
        "def make(input_shape, output_size):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(),\n"
        "        keras.layers.Dropout(0.5), keras.layers.Dense(output_size)])\n"
    )
    model = ModelSpec(name="dropout_net:make", input_shape=(8, 8, 1), output_size=4)
    weights = init.run(init_task(data, model=model), store).weights
    task = train_task(data, weights, model=model)
    forget()
    cold = client.run(task, store)
    assert client.run(task, store).update == cold.update
    store.put(assignment_name(RUN, "twin"), store.get(assignment_name(RUN, CLIENTS[0])), run=RUN, round_no=0)
    twin = client.run(train_task(data, weights, client="twin", model=model), store)
    assert twin.loss != cold.loss


def test_a_learning_rate_of_nothing_changes_nothing(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The rate comes from the task, also in a warm worker that has trained with another."""
    client.run(train_task(data, initial), store)
    still = replace(TRAINING, learning_rate=0.0)
    assert client.run(train_task(data, initial, training=still), store).update.sha256 == initial.sha256


def test_sgd_step_is_the_textbooks(
    client: ModuleType, init: ModuleType, data: DataSpec, store: MemoryObjects, models_folder: Path
) -> None:
    """One batch of softmax regression: w - lr * mean of x (p - y), reckoned in numpy; last batch counts."""
    (models_folder / "linear_net.py").write_text(
        "import keras\n"
        "def make(input_shape, output_size):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(output_size, kernel_initializer='zeros')])\n"
    )
    model = ModelSpec(name="linear_net:make", input_shape=(8, 8, 1), output_size=4)
    weights = init.run(init_task(data, model=model), store).weights
    training = TrainingSpec(optimizer="sgd", learning_rate=0.5, local_epochs=1, batch_size=1000)
    update = store.get(
        client.run(train_task(data, weights, model=model, training=training), store).update.name
    )
    rows = store.get(assignment_name(RUN, CLIENTS[0]))["rows"]
    x = data_module.read(data.train_images)[rows].reshape(len(rows), 64) / 255
    y = np.eye(4)[data_module.read(data.train_labels)[rows]]
    gradient = x.T @ (np.full_like(y, 0.25) - y) / len(rows)
    kernel = next(value for name, value in update.items() if name.endswith("kernel"))
    np.testing.assert_allclose(kernel, -0.5 * gradient, atol=1e-6)


def test_the_proximal_term_holds_weights_near_the_global_ones(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The larger mu, the shorter the way; mu = 0 is plain FedAvg."""
    start = store.get(initial.name)
    way = []
    for mu in (0.0, 1.0, 10.0):
        training = replace(TRAINING, optimizer="sgd", learning_rate=0.05, proximal_mu=mu)
        update = store.get(client.run(train_task(data, initial, training=training), store).update.name)
        way.append(sum(float(np.sum((update[n] - start[n]) ** 2)) for n in start))
    assert way[0] > way[1] > way[2] > 0


def test_diverged_training_is_refused_by_the_client_itself(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Weights that are NaN or infinite never reach the store."""
    wild = replace(TRAINING, optimizer="sgd", learning_rate=1e30, local_epochs=3)
    with pytest.raises(UpdateRefused, match="NaN or infinite"):
        client.run(train_task(data, initial, training=wild), store)
    assert f"{RUN}/r1/client_0/a0" not in store.shelf.objects


def test_weights_of_another_hash_are_not_trained(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The task says which bytes it means."""
    with pytest.raises(ObjectDamaged):
        client.run(train_task(data, replace(initial, sha256="0" * 64)), store)


def test_weights_of_another_model_are_named(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The first tensor that does not fit is in the message, with both shapes."""
    wider = ModelSpec(name="mnistnn", input_shape=(8, 8, 1), hidden_size=17, output_size=4)
    with pytest.raises(TaskError, match=r"'00:dense1/kernel' is float32\[64, 16\].*float32\[64, 17\]"):
        client.run(train_task(data, initial, model=wider), store)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"optimizer": "adma"}, "unknown optimizer 'adma'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"local_epochs": 0}, "local_epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_settings_out_of_range_are_named(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref, change: dict, problem: str
) -> None:
    """Before anything is trained."""
    with pytest.raises(TaskError, match=problem):
        client.run(train_task(data, initial, training=replace(TRAINING, **change)), store)


def test_the_ancestors_spelling_of_nadam_is_taken(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """`ndam` and `nadam` are the same optimizer."""
    updates = {
        client.run(train_task(data, initial, training=replace(TRAINING, optimizer=name)), store).update.sha256
        for name in ("ndam", "nadam")
    }
    assert len(updates) == 1


def test_a_users_compiled_model_keeps_its_loss(
    client: ModuleType, init: ModuleType, data: DataSpec, store: MemoryObjects, models_folder: Path
) -> None:
    """A model compiled with the mean squared error is trained on that; without classes, no accuracy."""
    (models_folder / "own_net.py").write_text(
        "import keras\n"
        "def make():\n"
        "    net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])\n"
        "    net.compile(loss='mse')\n"
        "    return net\n"
    )
    model = ModelSpec(name="own_net:make", input_shape=(8, 8, 1))
    weights = init.run(init_task(data, model=model), store).weights
    result = client.run(train_task(data, weights, model=model), store)
    assert result.accuracy is None
    assert 0 < result.loss < 25


def test_the_forwarded_client_answers_what_the_direct_one_stores(
    client: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Both routes give the same bits; the forwarded one has no store at all."""
    task = train_task(data, initial)
    direct = client.run(task, store)
    rows = store.get(assignment_name(RUN, CLIENTS[0]))["rows"]
    answer = client.run_forwarded(pack_task(task, store.get(initial.name), rows))
    update, trained = unpack_update(answer)
    other = MemoryObjects().put(task.key, update, run=RUN, round_no=1)
    assert other == direct.update
    assert (trained.samples, trained.loss) == (direct.samples, direct.loss)


def test_a_forwarded_body_that_is_none_is_refused(client: ModuleType) -> None:
    """Bytes that are not safetensors name the problem."""
    with pytest.raises(TaskError, match="damaged"):
        client.run_forwarded(b"hello")
