"""fl_server_aggregator without its evaluation: there is no test set of a synthetic model."""

from __future__ import annotations

from time import perf_counter

from fedkeeper.runtime.aggregation import aggregate
from fedkeeper.runtime.wire import AggregateResult


def run(task, store):
    """The product's own aggregation."""
    begun = perf_counter()
    done = aggregate(task, store)
    return AggregateResult(
        weights=done.ref,
        loss=0.5,
        accuracy=0.5,
        refused=done.refused,
        seconds={"aggregate": perf_counter() - begun, "evaluate": 0.0},
    )
