"""fl_server_init: the weights of round 0, and the rows of every client."""

from __future__ import annotations

from time import perf_counter

from fedkeeper.errors import TaskError
from fedkeeper.runtime import models
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.data import training_labels
from fedkeeper.runtime.partition import deal
from fedkeeper.runtime.updates import check_update, nbytes, shapes
from fedkeeper.runtime.wire import InitResult, InitTask, assignment_name, weights_name


def run(task: InitTask, store: ObjectStore) -> InitResult:
    """Deal the rows, draw the weights, store both. The same task gives the same objects, bit for bit."""
    begun = perf_counter()
    rows = deal(training_labels(task.data), task.clients, task.partition, seed=task.seed)
    dealt = perf_counter()
    weights = models.weights_of(models.build(task.model, seed=task.seed))
    if nbytes(weights) > task.max_model_bytes:
        raise TaskError(
            f"model {task.model.name!r} has {nbytes(weights)} bytes of weights,"
            f" the limit is {task.max_model_bytes}"
        )
    check_update(weights, shapes(weights), bytes_max=task.max_model_bytes)  # a user's model may start as NaN
    built = perf_counter()
    for client, numbers in rows.items():
        store.put(assignment_name(task.run, client), {"rows": numbers}, run=task.run, round_no=0)
    ref = store.put(weights_name(task.run, 0), weights, run=task.run, round_no=0)
    return InitResult(
        weights=ref,
        samples={client: len(numbers) for client, numbers in rows.items()},
        seconds={"partition": dealt - begun, "model": built - dealt, "store": perf_counter() - built},
    )
