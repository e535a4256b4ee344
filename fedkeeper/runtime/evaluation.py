"""Loss and accuracy of weights on a test set."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fedkeeper.runtime import models
from fedkeeper.runtime.backend import tf
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.data import Examples
from fedkeeper.runtime.training import hits
from fedkeeper.runtime.wire import ModelSpec, finite_or_none

_BATCH = 250  # rows at once; the model's activations are what takes memory

_kept: dict[object, tuple[Any, Any]] = {}  # one model and its traced forward pass
_one_at_a_time = threading.Lock()


def evaluate(spec: ModelSpec, weights: Tensors, examples: Examples) -> tuple[float | None, float | None]:
    """(mean loss, accuracy) of `weights`; None for what is not finite, or accuracy without classes.

    The loss includes the model's regularisation, as in training. Raises TaskError if the weights or the
    data do not fit the model.
    """
    with _one_at_a_time:
        _, labels = examples.batch(np.arange(1))
        key = (spec, str(labels.dtype), labels.shape[1:])
        if key not in _kept:
            _kept.clear()
            _kept[key] = _prepare(spec, labels)
        model, forward = _kept[key]
        models.set_weights(model, weights)
        sums = np.zeros(2)
        for start in range(0, len(examples), _BATCH):
            inputs, labels = examples.batch(np.arange(start, min(start + _BATCH, len(examples))))
            loss, right = forward(inputs, labels)
            sums += float(loss) * len(labels), float(right)
    loss, accuracy = sums / len(examples)
    return finite_or_none(loss), finite_or_none(accuracy)


def _prepare(spec: ModelSpec, labels: Any) -> tuple[Any, Any]:
    model = models.build(spec, seed=0)

    def forward(inputs: Any, labels: Any) -> tuple[Any, Any]:
        scores = model(inputs, training=False)
        return model.compute_loss(inputs, labels, scores, training=False), hits(scores, labels)

    signature = [
        tf.TensorSpec((None, *spec.input_shape), tf.float32),
        tf.TensorSpec((None, *labels.shape[1:]), tf.as_dtype(labels.dtype)),
    ]
    return model, tf.function(forward, input_signature=signature, autograph=False)
