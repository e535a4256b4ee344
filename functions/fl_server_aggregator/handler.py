"""fl_server_aggregator: average the clients' updates into the next weights and evaluate them."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

from fedkeeper.errors import ObjectDamaged, ObjectMissing, TaskError, UpdateRefused
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.data import testing_rows
from fedkeeper.runtime.evaluation import evaluate
from fedkeeper.runtime.updates import check_update, shapes
from fedkeeper.runtime.wire import AggregateResult, AggregateTask, Refused, weights_name


def run(task: AggregateTask, store: ObjectStore) -> AggregateResult:
    """One update in memory at a time, in the order of the task; see runtime.averaging for the sum.

    An update that is missing, damaged or unfit is refused, and then nothing is written: the result names
    all that were refused. A store that is away is no fault of an update: StoreUnavailable.
    """
    begun = perf_counter()
    if not task.updates:
        raise TaskError(f"round {task.round} of {task.run!r}: no updates to average")
    like = shapes(store.get(task.base.name, sha256=task.base.sha256))
    average = Average(like, samples_total=max(1, sum(max(0, one.samples) for one in task.updates)))
    uses = Counter(one.update.name for one in task.updates)
    refused = []
    for one in task.updates:
        try:
            if one.samples < 1:
                raise UpdateRefused(f"trained on {one.samples} rows")
            if uses[one.update.name] > 1:
                raise UpdateRefused("named more than once")
            update = store.get(one.update.name, sha256=one.update.sha256)
            check_update(update, like, bytes_max=task.max_model_bytes)
        except (UpdateRefused, ObjectMissing, ObjectDamaged) as exc:
            refused.append(Refused(key=one.update.name, reason=str(exc)))
            continue
        average.add(update, one.samples)
    if refused:
        seconds = {"aggregate": perf_counter() - begun, "evaluate": 0.0}
        return AggregateResult(
            weights=None, loss=None, accuracy=None, refused=tuple(refused), seconds=seconds
        )
    weights = average.result()
    ref = store.put(weights_name(task.run, task.round), weights, run=task.run, round_no=task.round)
    averaged = perf_counter()
    loss, accuracy = evaluate(task.model, weights, testing_rows(task.data, tuple(task.model.input_shape)))
    return AggregateResult(
        weights=ref,
        loss=loss,
        accuracy=accuracy,
        refused=(),
        seconds={"aggregate": averaged - begun, "evaluate": perf_counter() - averaged},
    )
