"""A client's local work: some epochs of mini-batches on its own rows."""

from __future__ import annotations

import collections
import difflib
import math
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import TaskError
from fedkeeper.runtime import models
from fedkeeper.runtime.backend import keras, tf
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.chance import generator, seed_of
from fedkeeper.runtime.data import Examples
from fedkeeper.runtime.wire import ModelSpec, TrainingSpec, TrainTask, finite_or_none

_OPTIMIZERS: Final = {
    "adam": keras.optimizers.Adam,
    "nadam": keras.optimizers.Nadam,
    "ndam": keras.optimizers.Nadam,  # so the ancestor spelt it
    "sgd": keras.optimizers.SGD,
}
_KEPT_MAX = 2  # compiled models in one warm worker
_WAIT_S = 600.0  # for another activation in this process, which a platform gave up and left running

_kept: collections.OrderedDict[object, _Trainer] = collections.OrderedDict()
_one_at_a_time = threading.Lock()


def train(
    task: TrainTask, weights: Tensors, examples: Examples
) -> tuple[dict[str, NDArray[np.generic]], float | None, float | None]:
    """Train `weights` on `examples` as the task says: (update, loss, accuracy).

    Loss and accuracy are means over the rows in the last local epoch, as they were met; accuracy is None
    where the labels are not class numbers or the model does not give one score per class.

    With one thread the update depends on the task, the weights and the examples only, bit for bit: the
    model and its traced step are kept for the next activation, but weights, optimizer and random state
    are set anew. Rows are shuffled by SHA-256 of (seed, round, client, epoch). (A stateful `tf.random`
    operation inside a user's own layer is out of reach; keras.random.SeedGenerator is not.)

    Raises TaskError: weights or data that do not fit the model, unknown optimizer, a setting out of range.

    Source: McMahan et al., arXiv:1602.05629v4, Algorithm 1, ClientUpdate; with proximal_mu > 0 the
    gradient of mu/2 * ||w - w_global||^2 is added, Li et al., arXiv:1812.06127, eq. 2.
    """
    _check(task.training)
    if not _one_at_a_time.acquire(timeout=_WAIT_S):
        raise TaskError(f"another activation has been training in this process for {_WAIT_S:.0f} s")
    try:
        trainer = _trainer(task.model, task.training, examples)
        loss, accuracy = trainer.run(task, weights, examples)
        return models.weights_of(trainer.model), finite_or_none(loss), finite_or_none(accuracy)
    finally:
        _one_at_a_time.release()


def prepare(model: ModelSpec, *, optimizer: str, proximal_mu: float, batch_size: int) -> None:
    """Build and trace ahead what `train` will need for rows labelled with classes; its results stay the same.

    Raises TaskError as `train` does.
    """
    training = TrainingSpec(
        optimizer=optimizer,
        learning_rate=0.0,
        local_epochs=1,
        batch_size=batch_size,
        proximal_mu=proximal_mu,
    )
    _check(training)
    blank = Examples(
        images=np.zeros((batch_size, *model.input_shape), np.float32),
        labels=np.zeros(batch_size, np.int64),
        input_shape=tuple(model.input_shape),
    )
    with _one_at_a_time:
        _trainer(model, training, blank).rehearse(blank)


def forget() -> None:
    """Drop the models that are kept warm, as if the process had just started."""
    _kept.clear()


class _Trainer:
    """A model with an optimizer and the traced step; `run` leaves nothing behind that the next run sees."""

    def __init__(self, model_spec: ModelSpec, training: TrainingSpec, labels: NDArray[Any]) -> None:
        self.model = models.build(model_spec, seed=0)  # weights arrive with every task
        self._optimizer = _optimizer(training.optimizer)
        self._optimizer.build(self.model.trainable_variables)
        self._fresh = [(v, _compact(models.numpy_of(v))) for v in self._optimizer.variables]
        self._seeds = [v for v in self.model.variables if "seed_generator" in v.path]
        self._anchors = (
            [tf.Variable(models.numpy_of(v), trainable=False) for v in self.model.trainable_variables]
            if training.proximal_mu
            else []
        )
        self._mu = training.proximal_mu
        # The batch axis stays open, so the smaller last batch needs neither padding nor a second trace.
        self._step = tf.function(
            self._one_step,
            input_signature=[
                tf.TensorSpec((None, *model_spec.input_shape), tf.float32),
                tf.TensorSpec((None, *labels.shape[1:]), tf.as_dtype(labels.dtype)),
            ],
            autograph=False,  # no Python control flow over tensors here; Keras' own fit does without it too
        )

    def run(self, task: TrainTask, weights: Tensors, examples: Examples) -> tuple[float, float]:
        """Mean loss and accuracy of the last epoch; the weights are then in `model`."""
        self._reset(task, weights)
        size = task.training.batch_size
        loss = accuracy = float("nan")
        for epoch in range(task.training.local_epochs):
            order = generator("rows", task.seed, task.round, task.client, epoch).permutation(len(examples))
            sums = np.zeros(2)
            for start in range(0, len(order), size):
                inputs, labels = examples.batch(order[start : start + size])
                batch_loss, hits = self._step(inputs, labels)
                sums += float(batch_loss) * len(labels), float(hits)
            loss, accuracy = sums / len(order)
        return float(loss), float(accuracy)

    def rehearse(self, examples: Examples) -> None:
        """Trace, and take one step, which makes TensorFlow optimise the graph; every run starts from anew."""
        self._step(*examples.batch(np.arange(len(examples))))

    def _reset(self, task: TrainTask, weights: Tensors) -> None:
        keras.utils.set_random_seed(seed_of("training", task.seed, task.round, task.client, bits=32))
        models.set_weights(self.model, weights)
        for anchor, variable in zip(self._anchors, self.model.trainable_variables, strict=False):
            anchor.assign(variable)
        for variable, value in self._fresh:
            variable.assign(value)
        self._optimizer.learning_rate.assign(task.training.learning_rate)
        for index, variable in enumerate(self._seeds):
            draw = generator("dropout", task.seed, task.round, task.client, index)
            variable.assign(draw.integers(0, 2**31, size=variable.shape))

    def _one_step(self, inputs: Any, labels: Any) -> tuple[Any, Any]:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            scores = self.model(inputs, training=True)
            loss = self.model.compute_loss(inputs, labels, scores, training=True)
        gradients = tape.gradient(loss, [v.value for v in variables])
        if self._anchors:
            gradients = [
                None if g is None else g + self._mu * (v.value - anchor)
                for g, v, anchor in zip(gradients, variables, self._anchors, strict=True)
            ]
        self._optimizer.apply(gradients, variables)
        return loss, hits(scores, labels)


def hits(scores: Any, labels: Any) -> Any:
    """How many rows have their highest score at their label; NaN where there are no classes."""
    if scores.shape.rank == 2 and scores.shape[1] > 1 and labels.shape.rank == 1 and labels.dtype.is_integer:
        right = tf.equal(tf.argmax(scores, axis=1), tf.cast(labels, tf.int64))
        return tf.reduce_sum(tf.cast(right, tf.float32))
    return tf.constant(float("nan"))


def _trainer(model: ModelSpec, training: TrainingSpec, examples: Examples) -> _Trainer:
    _, labels = examples.batch(np.arange(1))
    key = (model, training.optimizer, training.proximal_mu, str(labels.dtype), labels.shape[1:])
    if key not in _kept:
        while len(_kept) >= _KEPT_MAX:
            _kept.popitem(last=False)
        _kept[key] = _Trainer(model, training, labels)
    _kept.move_to_end(key)
    return _kept[key]


def _check(training: TrainingSpec) -> None:
    for name in ("local_epochs", "batch_size"):
        if getattr(training, name) < 1:
            raise TaskError(f"{name} is {getattr(training, name)}, and must be 1 or more")
    for name in ("learning_rate", "proximal_mu"):
        value = getattr(training, name)
        if not (math.isfinite(value) and value >= 0):
            raise TaskError(f"{name} is {value}, and must be 0 or more")


def _optimizer(name: str) -> Any:
    if name.lower() not in _OPTIMIZERS:
        near = difflib.get_close_matches(name, _OPTIMIZERS, n=1)
        raise TaskError(
            f"unknown optimizer {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_OPTIMIZERS)}",
        )
    return _OPTIMIZERS[name.lower()](learning_rate=0.0)


def _compact(value: NDArray[Any]) -> NDArray[Any]:
    """The same values; an array of equal values (a moment, at the start) in the memory of one."""
    if value.size and (value == value.flat[0]).all():
        return np.broadcast_to(value.flat[0], value.shape)
    return value
