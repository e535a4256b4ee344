"""fl_server_aggregator: average the clients' updates into the next weights and evaluate them.

Or one shard of it, or the sums of the first updates, which are not evaluated; or put all shards together: see
runtime.wire.AggregateTask.
"""

from __future__ import annotations

from time import perf_counter

from fedkeeper.runtime.aggregation import aggregate
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.data import testing_rows
from fedkeeper.runtime.evaluation import evaluate
from fedkeeper.runtime.wire import AggregateResult, AggregateTask


def run(task: AggregateTask, store: ObjectStore) -> AggregateResult:
    """See runtime.aggregation; the new weights are tested on the experiment's test rows."""
    begun = perf_counter()
    done = aggregate(task, store)
    averaged = perf_counter()
    loss = accuracy = None
    whole = bool(task.parts) or (task.shards == 1 and not task.folds)
    if done.ref is not None and whole:
        weights = done.weights or store.get(done.ref.name, sha256=done.ref.sha256)
        rows = testing_rows(task.data, tuple(task.model.input_shape))
        loss, accuracy = evaluate(task.model, weights, rows)
    return AggregateResult(
        weights=done.ref,
        loss=loss,
        accuracy=accuracy,
        refused=done.refused,
        seconds={"aggregate": averaged - begun, "evaluate": perf_counter() - averaged},
    )
