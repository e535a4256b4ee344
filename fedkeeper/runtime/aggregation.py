"""The server's part of a round: the clients' updates become the next weights, or a shard of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from fedkeeper.errors import ObjectDamaged, ObjectMissing, TaskError, UpdateRefused
from fedkeeper.runtime.ahead import ahead
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.base import ObjectStore, StoredObject, Tensors
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.tensors import describe
from fedkeeper.runtime.updates import check_shapes
from fedkeeper.runtime.wire import (
    AggregateTask,
    Begun,
    Ref,
    Refused,
    TrainResult,
    UpdateRef,
    decode,
    round_prefix,
    weights_name,
)

BLOCKS_AHEAD = 8  # fetched while one is being added; the store's blocks have 1 MiB at most

Pieces = Callable[[], Iterator[bytes]]
_Unfit = (UpdateRefused, ObjectMissing, ObjectDamaged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """What came of it: new weights or a shard of them, or the updates (or shards) that stand in their way."""

    ref: Ref | None  # None if any was refused: then nothing is written
    refused: tuple[Refused, ...] = ()
    weights: Tensors = field(default_factory=dict)  # if they are at hand: there is one shard


def aggregate(task: AggregateTask, store: ObjectStore) -> Aggregated:
    """Average the updates in the order of the task, block by block, and store the weights.

    Of a task for one shard, only its bytes are read and stored. With `parts`, the shards are put together.
    A task may be for the sums of a round's first updates, and another go on from them.
    The weights have the same bytes however many shards there are. Memory: 8 bytes for each number of the
    shard, and some blocks.

    An update that is missing, damaged or unfit is refused, and then nothing is written: the result names
    all that were refused. A store that is away is no fault of an update: StoreUnavailable.
    """
    task, unknown = _listed(task, store)
    if unknown:
        return Aggregated(ref=None, refused=unknown)
    base = store.open(task.base.name, sha256=task.base.sha256)
    layout = base.layout
    if task.parts:
        return _join(task, store, base)
    if not task.updates and task.begun is None:
        raise TaskError(f"round {task.round} of {task.run!r}: no updates to average")
    if not 0 <= task.shard < task.shards:
        raise TaskError(
            f"round {task.round} of {task.run!r}: there is no shard {task.shard} of {task.shards}"
        )
    begin, end = layout.shard(task.shard, task.shards)
    average = Average(layout, begin, end)
    if task.begun is not None and (lost := _resume(task.begun, store, average)):
        return Aggregated(ref=None, refused=(lost,))
    if refused := _fold(task, store, layout, average, begin, end):
        return Aggregated(ref=None, refused=refused)
    if task.folds:
        return Aggregated(ref=store.put_bytes(task.key, [], average.sums, run=task.run, round_no=task.round))
    average.finish()
    if task.shards > 1:
        return Aggregated(
            ref=store.put_bytes(task.key, [], average.pieces, run=task.run, round_no=task.round)
        )
    header = _header(base)

    def pieces() -> Iterator[bytes]:
        yield header
        yield from average.pieces()

    return Aggregated(ref=_put(task, store, header, pieces), weights=average.tensors())


def _listed(task: AggregateTask, store: ObjectStore) -> tuple[AggregateTask, tuple[Refused, ...]]:
    """With the updates that are only counted in it; those of which the store knows nothing are refused."""
    begins = round_prefix(task.run, task.round)
    keys = [f"{begins}{rest}" for rest in task.counted]
    outcomes = store.outcomes(keys) if keys else {}
    updates, lost = [], []
    for key in keys:
        try:
            trained = decode(TrainResult, outcomes[key].result)
        except KeyError:
            lost.append(Refused(key=key, reason="the store does not know what became of it"))
        except TaskError as exc:
            lost.append(Refused(key=key, reason=str(exc)))
        else:
            updates.append(UpdateRef(client=key, update=trained.update, samples=trained.samples))
    return (replace(task, updates=tuple(updates)) if keys else task), tuple(lost)


def _resume(begun: Begun, store: ObjectStore, average: Average) -> Refused | None:
    """Go on from sums; what is wrong with them."""
    try:
        stored = store.open(begun.sums.name, sha256=begun.sums.sha256)
        average.resume(stored.read(0, begun.sums.nbytes), begun.samples)
    except (ObjectMissing, ObjectDamaged, ValueError) as exc:
        return Refused(key=begun.sums.name, reason=str(exc))
    return None


def _fold(
    task: AggregateTask, store: ObjectStore, layout: Layout, average: Average, begin: int, end: int
) -> tuple[Refused, ...]:
    """Add all updates; name those that are unfit. They are looked for one by one only if there are any."""

    def add(number: int, position: int, block: bytes) -> None:
        if block:
            average.add(position, block, task.updates[number].samples)
        else:
            average.count(task.updates[number].samples)

    def check(number: int, position: int, block: bytes) -> None:
        average.check(position, block)

    if not _each(task, store, layout, (begin, end), add) and average.finite():
        return ()
    refused = _each(task, store, layout, (begin, end), check)
    if not refused:  # nor were the sums that it began with, or they would not have been stored
        raise TaskError(f"{task.key}: the updates are finite, but their sum is not")
    return tuple(
        Refused(key=task.updates[number].update.name, reason=reason)
        for number, reason in sorted(refused.items())
    )


def _each(
    task: AggregateTask,
    store: ObjectStore,
    layout: Layout,
    part: tuple[int, int],
    use: Callable[[int, int, bytes], None],
) -> dict[int, str]:
    """Use every block of every update, in order; what was wrong with some of them."""
    refused: dict[int, str] = {}
    with contextlib.closing(ahead(_blocks(task, store, layout, part), BLOCKS_AHEAD)) as blocks:
        for number, position, block in blocks:
            if isinstance(block, Exception):
                refused.setdefault(number, str(block))
            elif number not in refused:
                try:
                    use(number, position, block)
                except UpdateRefused as exc:
                    refused[number] = str(exc)
    return refused


def _blocks(
    task: AggregateTask, store: ObjectStore, layout: Layout, part: tuple[int, int]
) -> Iterator[tuple[int, int, bytes | Exception]]:
    """(number of the update, position, block or what is wrong with it); after its last one, an empty one."""
    begin, end = part
    uses = Counter(one.update.name for one in task.updates)
    stored = store.open_each([one.update for one in task.updates])
    for number, (one, update) in enumerate(zip(task.updates, stored, strict=True)):
        position = begin
        try:
            if isinstance(update, Exception):
                raise update
            _check(one, update, layout, task.max_model_bytes, uses[one.update.name])
            header_bytes = update.layout.header_bytes
            for block in update.read(header_bytes + begin, header_bytes + end):
                yield number, position, block
                position += len(block)
            yield number, end, b""
        except _Unfit as exc:
            yield number, position, exc


def _check(one: UpdateRef, update: StoredObject, like: Layout, bytes_max: int, uses: int) -> None:
    """UpdateRefused for what can be seen without its numbers."""
    if one.samples < 1:
        raise UpdateRefused(f"trained on {one.samples} rows")
    if uses > 1:
        raise UpdateRefused("named more than once")
    found = update.layout
    check_shapes(found.shapes, like.shapes, nbytes=found.data_bytes, bytes_max=bytes_max)
    if found.places != like.places:
        raise UpdateRefused("its tensors are not where the model's are")


def _join(task: AggregateTask, store: ObjectStore, base: StoredObject) -> Aggregated:
    wanted = base.layout.data_bytes
    if sum(part.nbytes for part in task.parts) != wanted:
        raise TaskError(f"{task.key}: the shards do not have the {wanted} bytes of the weights")
    header = _header(base)
    reading = [task.parts[0]]

    def pieces() -> Iterator[bytes]:
        yield header
        for part in task.parts:
            reading[0] = part
            yield from store.open(part.name, sha256=part.sha256).read(0, part.nbytes)

    try:
        return Aggregated(ref=_put(task, store, header, pieces))
    except (ObjectMissing, ObjectDamaged) as exc:
        return Aggregated(ref=None, refused=(Refused(key=reading[0].name, reason=str(exc)),))


def _header(base: StoredObject) -> bytes:
    """That of the weights before: the next ones have the same tensors."""
    return b"".join(base.read(0, base.layout.header_bytes))


def _put(task: AggregateTask, store: ObjectStore, header: bytes, pieces: Pieces) -> Ref:
    name = weights_name(task.run, task.round)
    return store.put_bytes(name, describe(header), pieces, run=task.run, round_no=task.round)
