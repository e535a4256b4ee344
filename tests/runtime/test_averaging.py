from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkeeper.errors import ObjectDamaged, UpdateRefused
from fedkeeper.runtime import tensors as codec
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.updates import check_update, shapes

values = arrays(np.float32, (3, 2), elements=st.floats(-1e6, 1e6, width=32))
parts = st.lists(st.tuples(values, st.integers(1, 10_000)), min_size=1, max_size=8)


Tensors = dict[str, np.ndarray]


def layout_of(data: bytes) -> Layout:
    """Of what `pack` made."""
    return Layout.of(codec.describe(data), len(data))


def averaged_bytes(
    updates: list[tuple[Tensors, int]], shard: int = 0, shards: int = 1, block: int = 24
) -> bytes:
    """One shard of the mean, from blocks of some bytes."""
    packed = [(codec.pack(tensors), n) for tensors, n in updates]
    layout = layout_of(packed[0][0])
    begin, end = layout.shard(shard, shards)
    average = Average(layout, begin, end)
    for data, n in packed:
        for at in range(begin, end, block):
            first = layout.header_bytes + at
            piece = data[first : min(first + block, layout.header_bytes + end)]
            average.add(at, piece, n)
            average.check(at, piece)
        average.count(n)
    assert average.finite()
    average.finish()
    return b"".join(average.pieces())


def averaged_tensors(updates: list[tuple[Tensors, int]]) -> Tensors:
    """The whole mean."""
    data = codec.pack(updates[0][0])
    header = data[: layout_of(data).header_bytes]
    return codec.unpack(header + averaged_bytes(updates))[0]


def averaged(updates: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Of a model with one tensor."""
    return averaged_tensors([({"w": value}, n) for value, n in updates])["w"]


@settings(deadline=None)
@given(parts)
def test_it_is_numpys_weighted_mean(updates: list[tuple[np.ndarray, int]]) -> None:
    """To the last bit or two of float32, whatever the values and counts."""
    found = averaged(updates)
    weights = [n for _, n in updates]
    wanted = np.average([v.astype(np.float64) for v, _ in updates], axis=0, weights=weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-3 * np.finfo(np.float32).eps * 1e6)


@settings(deadline=None)
@given(parts)
def test_it_lies_between_the_updates(updates: list[tuple[np.ndarray, int]]) -> None:
    """A mean cannot leave the range of its parts, but for rounding."""
    found = averaged(updates).astype(np.float64)
    stack = np.stack([v for v, _ in updates]).astype(np.float64)
    room = 1e-6 * np.abs(stack).max() + 1e-30
    assert (found >= stack.min(axis=0) - room).all()
    assert (found <= stack.max(axis=0) + room).all()


@settings(deadline=None)
@given(values, st.integers(1, 5))
def test_equal_updates_average_to_themselves(value: np.ndarray, count: int) -> None:
    """Bit for bit, though 1/3 has no end in binary: float64 has room to spare."""
    assert np.array_equal(averaged([(value, 7)] * count), value)


def test_whole_numbers_are_rounded_and_booleans_vote() -> None:
    """A layer's counter stays a counter, and its dtype stays what it was."""
    first = {
        "steps": np.array(10, np.int64),
        "small": np.array([255], np.uint8),
        "on": np.array([True, True]),
    }
    second = {
        "steps": np.array(21, np.int64),
        "small": np.array([254], np.uint8),
        "on": np.array([False, True]),
    }
    result = averaged_tensors([(first, 1), (second, 3)])
    assert result["steps"] == 18
    assert result["steps"].dtype == np.int64
    assert result["steps"].shape == ()
    assert result["small"].tolist() == [254]
    assert result["on"].tolist() == [False, True]


dtypes = st.sampled_from(("float64", "float32", "float16", "int64", "int32", "uint8", "bool"))
models = st.lists(
    st.tuples(dtypes, st.lists(st.integers(0, 5), max_size=3).map(tuple)), min_size=1, max_size=6
)


@settings(deadline=None)
@given(
    models,
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.data(),
)
def test_the_bits_do_not_depend_on_the_shards_nor_on_the_blocks(
    model: list[tuple[str, tuple[int, ...]]], counts: list[int], shards: int, blocks: int, data: st.DataObject
) -> None:
    """Any dtypes, shapes and number of shards: put together they are what one aggregator makes."""
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    updates = [
        (
            {
                f"t{number}": (100 * chance.normal(size=dims)).astype(dtype)
                for number, (dtype, dims) in enumerate(model)
            },
            count,
        )
        for count in counts
    ]
    parts = [averaged_bytes(updates, shard, shards, block=8 * blocks) for shard in range(shards)]
    assert b"".join(parts) == averaged_bytes(updates, block=1 << 20)


def test_a_mean_of_nothing_is_none() -> None:
    """Weights must not become zeros silently."""
    layout = layout_of(codec.pack({"w": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match="0 samples"):
        Average(layout, 0, 8).finish()


def test_what_is_not_a_number_is_refused_by_its_tensors_name() -> None:
    """Wherever its shard begins."""
    tensors = {name: np.zeros(30, np.float32) for name in ("a", "b", "c")}
    tensors["b"][29] = np.inf
    for shards in (1, 2, 7):
        said = []
        for shard in range(shards):
            try:
                averaged_bytes([(tensors, 1)], shard, shards)
            except UpdateRefused as exc:
                said.append(str(exc))
        assert said == ["tensor 'b' has values that are NaN or infinite"]


def test_what_is_not_a_number_stays_in_the_sum() -> None:
    """Whatever is added: one look at the end is enough."""
    layout = layout_of(codec.pack({"w": np.zeros(2, np.float32)}))
    for bad in ([np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]):
        average = Average(layout, 0, 8)
        for value in (1.0, *bad, 2.0):
            average.add(0, np.full(2, value, np.float32).tobytes(), 3)
        assert not average.finite()


def test_bytes_that_are_not_as_described_are_damage() -> None:
    """Gaps, other lengths, and dtypes that cannot be averaged."""
    [good] = codec.describe(codec.pack({"w": np.zeros(4, np.float32)}))
    nbytes = good["end"]
    for change in ({"end": nbytes + 4}, {"shape": [5]}, {"dtype": "C64"}, {"begin": good["begin"] + 4}):
        with pytest.raises(ObjectDamaged):
            Layout.of([good | change], nbytes)
    with pytest.raises(ObjectDamaged, match="gaps"):
        Layout.of([good], nbytes + 8)


@settings(deadline=None)
@given(
    value=arrays(np.float32, (4,), elements=st.floats(width=32)),
)
def test_only_finite_numbers_pass(value: np.ndarray) -> None:
    """One NaN or infinity anywhere is enough to refuse."""
    update = {"w": value}
    if np.isfinite(value).all():
        check_update(update, shapes(update), bytes_max=16)
    else:
        with pytest.raises(UpdateRefused, match="NaN or infinite"):
            check_update(update, shapes(update), bytes_max=16)
