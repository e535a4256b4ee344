"""fl_client without training: everything that a round costs beside it, by the product's own code."""

from __future__ import annotations

import zlib

import numpy as np

from fedkeeper.runtime.assignment import assigned_rows
from fedkeeper.runtime.updates import check_update, shapes
from fedkeeper.runtime.wire import TrainResult


def run(task, store):
    """Read weights and rows, move the weights a little, check and store them."""
    weights = store.get(task.weights.name, sha256=task.weights.sha256)
    rows = assigned_rows(task, store)
    step = np.float32(zlib.crc32(task.client.encode()) % 1000 / 1e6)
    update = {name: tensor + step for name, tensor in weights.items()}
    check_update(update, shapes(weights), bytes_max=task.max_model_bytes)
    ref = store.hand_in(task.key, update, run=task.run, round_no=task.round, whole=task.whole)
    return TrainResult(update=ref, samples=len(rows), loss=0.5, accuracy=0.5, seconds={})
