from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkeeper.errors import ObjectDamaged, TaskError
from fedkeeper.runtime.aggregation import aggregate
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import (
    AggregateResult,
    AggregateTask,
    Begun,
    DataSpec,
    Outcome,
    Ref,
    TrainResult,
    UpdateRef,
    encode,
    round_prefix,
    weights_name,
)
from tests.functions.experiment import BYTES_MAX, CLIENTS, RUN, aggregate_task, train_task


def hand_in(
    store: MemoryObjects, base: Ref, client: str, samples: int, *, seed: int = 0, **change: object
) -> UpdateRef:
    """Store an update near the base; `change` puts other tensors in, or takes them out with None."""
    chance = np.random.Generator(np.random.PCG64(seed))
    tensors = {
        name: (value + chance.normal(size=value.shape)).astype(value.dtype)
        for name, value in store.get(base.name).items()
    }
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = np.asarray(value)
    ref = store.put(f"{RUN}/r1/{client}/a0", tensors, run=RUN, round_no=1)
    return UpdateRef(client=client, update=ref, samples=samples)


def test_a_round_of_training_makes_better_weights(
    client: ModuleType, aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Three rounds of three clients: the weights get the rounds' names and test accuracy rises."""
    base, accuracies = initial, []
    for round_no in (1, 2, 3):
        trained = [
            (name, client.run(train_task(data, base, client=name, round_no=round_no), store))
            for name in CLIENTS
        ]
        updates = tuple(
            UpdateRef(client=name, update=one.update, samples=one.samples) for name, one in trained
        )
        result = aggregator.run(aggregate_task(data, base, updates, round_no=round_no), store)
        assert result.refused == ()
        assert result.weights.name == weights_name(RUN, round_no)
        base = result.weights
        accuracies.append(result.accuracy)
    assert accuracies[-1] > 0.9
    assert accuracies[-1] > accuracies[0]
    assert set(result.seconds) == {"aggregate", "evaluate"}


def test_the_average_is_weighted_by_samples(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Against numpy; and the same task again gives the same bytes."""
    counts = (10, 30, 160)
    updates = tuple(hand_in(store, initial, name, n, seed=n) for name, n in zip(CLIENTS, counts, strict=True))
    task = aggregate_task(data, initial, updates)
    first = aggregator.run(task, store).weights
    mean = store.get(first.name)
    for name, value in mean.items():
        parts = [store.get(one.update.name)[name].astype(np.float64) * one.samples / 200 for one in updates]
        np.testing.assert_allclose(value, sum(parts), rtol=1e-6, atol=1e-7)
    assert aggregator.run(task, store).weights == first


def test_every_bad_update_is_named_and_nothing_is_written(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """NaN, infinity, shape, dtype, missing, unknown: each is refused with its reason, good ones are not."""
    bias = "01:dense1/bias"
    good = hand_in(store, initial, "good", 5)
    missing = UpdateRef(client="x", update=Ref(name=f"{RUN}/r1/x/a0", sha256="", nbytes=1), samples=5)
    other_hash = hand_in(store, initial, "hash", 5)
    other_hash = replace(other_hash, update=replace(other_hash.update, sha256="0" * 64))
    updates = (
        hand_in(store, initial, "nan", 5, **{bias: np.full(16, np.nan, np.float32)}),
        hand_in(store, initial, "inf", 5, **{bias: np.full(16, np.inf, np.float32)}),
        hand_in(store, initial, "shape", 5, **{bias: np.zeros(15, np.float32)}),
        hand_in(store, initial, "dtype", 5, **{bias: np.zeros(16, np.float64)}),
        hand_in(store, initial, "less", 5, **{bias: None}),
        hand_in(store, initial, "more", 5, extra=np.zeros(1, np.float32)),
        hand_in(store, initial, "empty", 0),
        good,
        missing,
        other_hash,
    )
    result = aggregator.run(aggregate_task(data, initial, updates), store)
    reasons = {one.key.split("/")[2]: one.reason for one in result.refused}
    assert list(reasons) == ["nan", "inf", "shape", "dtype", "less", "more", "empty", "x", "hash"]
    assert "NaN or infinite" in reasons["nan"]
    assert "NaN or infinite" in reasons["inf"]
    assert reasons["shape"] == "tensor '01:dense1/bias' is float32[15], not float32[16]"
    assert reasons["dtype"] == "tensor '01:dense1/bias' is float64[16], not float32[16]"
    assert "is missing" in reasons["less"]
    assert "unknown to the model" in reasons["more"]
    assert "0 rows" in reasons["empty"]
    assert "no object" in reasons["x"]
    assert "sha256" in reasons["hash"]
    assert (result.weights, result.loss, result.accuracy) == (None, None, None)
    assert weights_name(RUN, 1) not in store.shelf.objects


def test_an_oversized_update_is_refused(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Above max_model_bytes, even if it would fit the model."""
    update = hand_in(store, initial, "big", 5)
    task = replace(aggregate_task(data, initial, (update,)), max_model_bytes=100)
    assert "at most 100" in aggregator.run(task, store).refused[0].reason
    assert not aggregator.run(replace(task, max_model_bytes=BYTES_MAX), store).refused


def test_an_update_named_twice_is_refused(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """It must not count twice."""
    update = hand_in(store, initial, "c", 5)
    result = aggregator.run(aggregate_task(data, initial, (update, update)), store)
    assert [one.reason for one in result.refused] == ["named more than once"] * 2


def test_no_updates_are_an_error(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The keeper does not ask for that; if it did, the old weights must not get a new name."""
    with pytest.raises(TaskError, match="no updates"):
        aggregator.run(aggregate_task(data, initial, ()), store)


def test_a_damaged_base_is_an_error_of_the_task(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """It is nobody's update's fault, so nothing is refused."""
    update = hand_in(store, initial, "c", 5)
    with pytest.raises(ObjectDamaged):
        aggregator.run(aggregate_task(data, replace(initial, sha256="0" * 64), (update,)), store)


def published(store: MemoryObjects, update: UpdateRef) -> str:
    """As its client's function does at its end; how a task names it that only counts its updates."""
    trained = TrainResult(
        update=update.update, samples=update.samples, loss=None, accuracy=None, seconds={"train": 1.0}
    )
    key = update.update.name
    store.publish(
        Outcome(key=key, run=RUN, ok=True, result=encode(trained), reason="", activation_id="a", at_ms=1)
    )
    return key.removeprefix(round_prefix(RUN, 1))


def test_updates_that_are_only_counted_are_those_of_their_outcomes(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """The same bytes as when the task points at each of them, whole and of a shard."""
    counts = (10, 30, 160)
    updates = tuple(hand_in(store, initial, name, n, seed=n) for name, n in zip(CLIENTS, counts, strict=True))
    listed = aggregate_task(data, initial, updates)
    keys = tuple(published(store, update) for update in updates)
    counted = replace(listed, updates=(), counted=keys, wire=3)
    assert aggregator.run(counted, store).weights == aggregator.run(listed, store).weights
    shard = {"shard": 1, "shards": 2, "key": f"{RUN}/r1/aggregate/s1/a0"}
    one, other = (aggregator.run(replace(task, **shard), store) for task in (counted, listed))
    assert one.weights == other.weights


def test_counted_updates_of_which_the_store_knows_nothing_are_refused(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """Without an outcome, or with one that is no client's: named, and nothing is written."""
    good = published(store, hand_in(store, initial, "good", 5))
    odd = Outcome(
        key=f"{RUN}/r1/odd/a0", run=RUN, ok=False, result={}, reason="failed", activation_id="a", at_ms=1
    )
    store.publish(odd)
    task = replace(aggregate_task(data, initial, ()), counted=(good, "gone/a0", "odd/a0"), wire=3)
    result = aggregator.run(task, store)
    assert [one.key for one in result.refused] == [f"{RUN}/r1/gone/a0", f"{RUN}/r1/odd/a0"]
    assert "does not know what became of it" in result.refused[0].reason
    assert weights_name(RUN, 1) not in store.shelf.objects


def sharded(
    aggregator: ModuleType, task: AggregateTask, store: MemoryObjects, shards: int
) -> tuple[list[AggregateResult], AggregateTask]:
    """Every shard's result, and the task that puts them together."""
    results = [
        aggregator.run(
            replace(task, shard=shard, shards=shards, key=f"{RUN}/r1/aggregate/s{shard}/a0"), store
        )
        for shard in range(shards)
    ]
    parts = tuple(result.weights for result in results if result.weights)
    join = replace(task, updates=(), parts=parts, shards=shards, key=f"{RUN}/r1/aggregate/join/a0")
    return results, join


@pytest.mark.parametrize("shards", [2, 3, 7, 256])
def test_shards_make_the_same_weights_as_one_aggregator(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref, shards: int
) -> None:
    """The same bytes under the same name, evaluated once: where they are put together."""
    counts = (10, 30, 160)
    updates = tuple(hand_in(store, initial, name, n, seed=n) for name, n in zip(CLIENTS, counts, strict=True))
    task = aggregate_task(data, initial, updates)
    whole = aggregator.run(task, store)
    del store.shelf.objects[whole.weights.name]
    results, join = sharded(aggregator, task, store, shards)
    assert {(result.loss, result.accuracy) for result in results} == {(None, None)}
    assert weights_name(RUN, 1) not in store.shelf.objects
    together = aggregator.run(join, store)
    assert (together.weights, together.loss, together.accuracy) == (whole.weights, whole.loss, whole.accuracy)


def test_a_shard_names_the_updates_that_it_refuses(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """What can be seen of an update without its numbers, every shard sees; a NaN, the one that has it."""
    good = hand_in(store, initial, "good", 5)
    nan = hand_in(store, initial, "nan", 5, **{"01:dense1/bias": np.full(16, np.nan, np.float32)})
    more = hand_in(store, initial, "more", 5, extra=np.zeros(1, np.float32))
    results, _ = sharded(aggregator, aggregate_task(data, initial, (good, nan, more)), store, 4)
    refused = [[one.key.split("/")[2] for one in result.refused] for result in results]
    assert all(names[-1] == "more" for names in refused)
    assert 1 <= sum("nan" in names for names in refused) < 4
    assert not any("good" in names for names in refused)


@pytest.mark.parametrize("change", ["lost", "damaged"])
def test_a_shard_that_cannot_be_read_is_named_and_nothing_is_written(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref, change: str
) -> None:
    """So that it alone is made again."""
    task = aggregate_task(data, initial, (hand_in(store, initial, "c", 5),))
    _, join = sharded(aggregator, task, store, 3)
    name = join.parts[1].name
    if change == "lost":
        del store.shelf.objects[name]
    else:
        store.shelf.objects[name].data = bytes(join.parts[1].nbytes)
    result = aggregator.run(join, store)
    assert (result.weights, [one.key for one in result.refused]) == (None, [name])
    assert weights_name(RUN, 1) not in store.shelf.objects


def test_shards_of_another_model_are_not_put_together(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """One too few, say."""
    task = aggregate_task(data, initial, (hand_in(store, initial, "c", 5),))
    _, join = sharded(aggregator, task, store, 3)
    with pytest.raises(TaskError, match="shards do not have"):
        aggregator.run(replace(join, parts=join.parts[:2]), store)


def folded(
    aggregator: ModuleType, task: AggregateTask, store: MemoryObjects, cuts: list[int], number: int = 0
) -> AggregateTask:
    """The task for what is left, after the updates up to each of `cuts` have been added up."""
    done, begun = 0, task.begun
    for fold, cut in enumerate(cuts):
        key = f"{task.key.rpartition('/')[0]}/fold/a{number + fold}"
        part = replace(task, key=key, updates=task.updates[done:cut], begun=begun, folds=True)
        result = aggregator.run(part, store)
        assert (result.refused, result.loss, result.accuracy) == ((), None, None)
        begun = Begun(sums=result.weights, samples=sum(one.samples for one in task.updates[:cut]))
        done = cut
    return replace(task, updates=task.updates[done:], begun=begun)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5), unique=True).map(sorted), st.integers(1, 4))
def test_what_is_added_up_early_changes_no_bit(
    aggregator: ModuleType, data: DataSpec, cuts: list[int], shards: int
) -> None:
    """However many updates had come when, and however many shards there are."""
    store = MemoryObjects()
    chance = np.random.default_rng(1)
    model = {"w": chance.normal(size=301).astype(np.float32), "n": np.array([7], np.int64)}
    base = store.put(f"{RUN}/w0", model, run=RUN, round_no=0)
    updates = tuple(hand_in(store, base, f"c{n}", 10 + n, seed=n) for n in range(5))
    whole = aggregate(aggregate_task(data, base, updates), store).ref
    parts = []
    for shard in range(shards):
        task = aggregate_task(data, base, updates, shard=shard, shards=shards)
        parts.append(aggregate(folded(aggregator, task, store, cuts), store).ref)
    if shards > 1:
        join = replace(aggregate_task(data, base, (), shards=shards), parts=tuple(parts))
        parts = [aggregate(join, store).ref]
    assert parts == [whole]


def test_sums_that_are_lost_or_damaged_are_named(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """So that the shard is made without them."""
    updates = tuple(hand_in(store, initial, name, 5, seed=n) for n, name in enumerate(CLIENTS))
    task = folded(aggregator, aggregate_task(data, initial, updates), store, [2])
    held = store.shelf.objects[task.begun.sums.name]
    short = store.put_bytes("short", [], lambda: iter([bytes(8)]), run=RUN, round_no=1)
    cut_off = replace(task, begun=replace(task.begun, sums=short))
    assert [one.key for one in aggregator.run(cut_off, store).refused] == ["short"]
    held.data = bytes(len(held.data))
    assert [one.key for one in aggregator.run(task, store).refused] == [task.begun.sums.name]
    del store.shelf.objects[task.begun.sums.name]
    assert [one.key for one in aggregator.run(task, store).refused] == [task.begun.sums.name]
    assert weights_name(RUN, 1) not in store.shelf.objects


def test_a_fold_names_the_updates_that_it_refuses_and_stores_nothing(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects, initial: Ref
) -> None:
    """As the aggregation itself would."""
    bad = hand_in(store, initial, "nan", 5, **{"01:dense1/bias": np.full(16, np.nan, np.float32)})
    task = replace(aggregate_task(data, initial, (bad,)), folds=True, key=f"{RUN}/r1/aggregate/s0/fold/a0")
    assert [one.key for one in aggregator.run(task, store).refused] == [bad.update.name]
    assert task.key not in store.shelf.objects


def test_an_aggregator_needs_memory_for_twice_its_shard(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects
) -> None:
    """And some blocks; for the whole it is the same. (What is stored is beside it, in this test.)"""
    numbers = 4_000_000
    base = store.put(f"{RUN}/w0", {"w": np.zeros(numbers, np.float32)}, run=RUN, round_no=0)
    updates = tuple(hand_in(store, base, f"c{i}", 1, seed=i) for i in range(3))

    def peak(shards: int) -> int:
        task = aggregate_task(data, base, updates, shards=shards)
        tracemalloc.start()
        try:
            aggregator.run(task, store)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for shards in (2, 8):
        shard_bytes = 4 * numbers // shards
        written = 2 * shard_bytes  # its pieces, and what they are joined to, in the memory store
        assert peak(shards) < 2 * shard_bytes + written + 4_000_000


def test_memory_does_not_grow_with_the_number_of_clients(
    aggregator: ModuleType, data: DataSpec, store: MemoryObjects
) -> None:
    """One update at a time: 24 take no more than 4 do. (The last is refused, so nothing is evaluated.)"""
    base = store.put(f"{RUN}/w0", {"w": np.zeros(500_000, np.float32)}, run=RUN, round_no=0)

    def peak(clients: int) -> int:
        updates = [hand_in(store, base, f"c{i}", 1, seed=i) for i in range(clients)]
        updates.append(hand_in(store, base, "bad", 1, w=np.full(500_000, np.nan, np.float32)))
        tracemalloc.start()
        try:
            aggregator.run(aggregate_task(data, base, tuple(updates)), store)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(24) < peak(4) + base.nbytes
