"""fl_client: train the global weights on this client's rows."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkeeper.runtime.assignment import assigned_rows
from fedkeeper.runtime.base import ObjectStore, Tensors
from fedkeeper.runtime.data import training_rows
from fedkeeper.runtime.forwarding import pack_update, unpack_task
from fedkeeper.runtime.readiness import prepare_training
from fedkeeper.runtime.training import train
from fedkeeper.runtime.updates import Trained, check_update, shapes
from fedkeeper.runtime.wire import TrainResult, TrainTask

prepare_training()  # while the function loads, not in its first round


def run(task: TrainTask, store: ObjectStore) -> TrainResult:
    """The direct route: weights and rows come from the store, the update goes there under the task's key."""
    begun = perf_counter()
    weights = store.get(task.weights.name, sha256=task.weights.sha256)
    rows = assigned_rows(task, store)
    fetched = perf_counter()
    update, trained = _train(task, weights, rows)
    done = perf_counter()
    ref = store.hand_in(task.key, update, run=task.run, round_no=task.round, whole=task.whole)
    load_s = trained.seconds["load"] + fetched - begun
    return TrainResult(
        update=ref,
        samples=trained.samples,
        loss=trained.loss,
        accuracy=trained.accuracy,
        seconds={**trained.seconds, "load": load_s, "store": perf_counter() - done},
    )


def run_forwarded(body: bytes) -> bytes:
    """The invoker route: weights and rows come in the body, the update goes back the same way."""
    task, weights, rows = unpack_task(body)
    update, trained = _train(task, weights, rows)
    return pack_update(update, trained)


def _train(
    task: TrainTask, weights: Tensors, rows: NDArray[Any]
) -> tuple[dict[str, NDArray[np.generic]], Trained]:
    begun = perf_counter()
    examples = training_rows(task.data, rows, tuple(task.model.input_shape))
    loaded = perf_counter()
    update, loss, accuracy = train(task, weights, examples)
    check_update(update, shapes(weights), bytes_max=task.max_model_bytes)
    seconds = {"load": loaded - begun, "train": perf_counter() - loaded}
    return update, Trained(samples=len(examples), loss=loss, accuracy=accuracy, seconds=seconds)
