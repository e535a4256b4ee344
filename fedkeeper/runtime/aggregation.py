"""The server's part of a round: the clients' updates become the next weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest

from fedkeeper.errors import ObjectDamaged, ObjectMissing, TaskError, UpdateRefused
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.base import ObjectStore, Tensors
from fedkeeper.runtime.updates import Shape, check_update, shapes
from fedkeeper.runtime.wire import AggregateTask, Ref, Refused, UpdateRef, weights_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """What came of it: new weights, or the updates that stand in their way."""

    weights: Tensors
    ref: Ref | None  # None if any was refused: then nothing is written
    refused: tuple[Refused, ...] = ()


def aggregate(task: AggregateTask, store: ObjectStore) -> Aggregated:
    """Average the updates one by one, in the order of the task, and store the weights.

    While one is being added the next one is fetched and checked, so two are in memory at most.

    An update that is missing, damaged or unfit is refused, and then nothing is written: the result names
    all that were refused. A store that is away is no fault of an update: StoreUnavailable.
    """
    if not task.updates:
        raise TaskError(f"round {task.round} of {task.run!r}: no updates to average")
    like = shapes(store.get(task.base.name, sha256=task.base.sha256))
    average = Average(like, samples_total=max(1, sum(max(0, one.samples) for one in task.updates)))
    uses = Counter(one.update.name for one in task.updates)
    refused = []

    def fit(one: UpdateRef) -> Tensors:
        return _fit(one, store, like, task.max_model_bytes, uses[one.update.name])

    for one, ready in _ahead(fit, task.updates):
        try:
            average.add(ready.result(), one.samples)
        except (UpdateRefused, ObjectMissing, ObjectDamaged) as exc:
            refused.append(Refused(key=one.update.name, reason=str(exc)))
        del ready  # or its update would be in memory until the one after the next is
    if refused:
        return Aggregated(weights={}, ref=None, refused=tuple(refused))
    weights = average.result()
    ref = store.put(weights_name(task.run, task.round), weights, run=task.run, round_no=task.round)
    return Aggregated(weights=weights, ref=ref)


def _ahead(
    fetch: Callable[[UpdateRef], Tensors], updates: Sequence[UpdateRef]
) -> Iterator[tuple[UpdateRef, Future[Tensors]]]:
    """Each update with its tensors, which come while the one before is being worked on."""
    with ThreadPoolExecutor(1) as fetching:
        coming = fetching.submit(fetch, updates[0])
        for one, following in zip_longest(updates, updates[1:]):
            wait([coming])
            ready, coming = coming, fetching.submit(fetch, following) if following else coming
            yield one, ready


def _fit(one: UpdateRef, store: ObjectStore, like: dict[str, Shape], bytes_max: int, uses: int) -> Tensors:
    if one.samples < 1:
        raise UpdateRefused(f"trained on {one.samples} rows")
    if uses > 1:
        raise UpdateRefused("named more than once")
    update = store.get(one.update.name, sha256=one.update.sha256)
    check_update(update, like, bytes_max=bytes_max)
    return update
