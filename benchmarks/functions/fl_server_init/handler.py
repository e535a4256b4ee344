"""fl_server_init of a synthetic model: `hidden_size` float32 numbers in tensors of 2**18 at most."""

from __future__ import annotations

import numpy as np

from fedkeeper.runtime.wire import InitResult, assignment_name, weights_name

TENSOR = 2**18


def run(task, store):
    """Deal ten rows to everybody, draw the weights, store both."""
    chance = np.random.default_rng(task.seed)
    sizes = [min(TENSOR, task.model.hidden_size - at) for at in range(0, task.model.hidden_size, TENSOR)]
    weights = {f"{n:05d}:w": chance.standard_normal(size, np.float32) for n, size in enumerate(sizes)}
    for number, client in enumerate(task.clients):
        rows = np.arange(10 * number, 10 * number + 10, dtype=np.int64)
        store.put(assignment_name(task.run, client), {"rows": rows}, run=task.run, round_no=0)
    ref = store.put(weights_name(task.run, 0), weights, run=task.run, round_no=0)
    return InitResult(weights=ref, samples=dict.fromkeys(task.clients, 10), seconds={})
