from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkeeper.errors import UpdateRefused
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.updates import check_update, shapes

values = arrays(np.float32, (3, 2), elements=st.floats(-1e6, 1e6, width=32))
parts = st.lists(st.tuples(values, st.integers(1, 10_000)), min_size=1, max_size=8)


def averaged(updates: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Through the accumulator."""
    like = shapes({"w": updates[0][0]})
    average = Average(like, samples_total=sum(n for _, n in updates))
    for value, n in updates:
        average.add({"w": value}, n)
    return average.result()["w"]


@given(parts)
def test_it_is_numpys_weighted_mean(updates: list[tuple[np.ndarray, int]]) -> None:
    """To the last bit or two of float32, whatever the values and counts."""
    found = averaged(updates)
    weights = [n for _, n in updates]
    wanted = np.average([v.astype(np.float64) for v, _ in updates], axis=0, weights=weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-3 * np.finfo(np.float32).eps * 1e6)


@given(parts)
def test_it_lies_between_the_updates(updates: list[tuple[np.ndarray, int]]) -> None:
    """A mean cannot leave the range of its parts, but for rounding."""
    found = averaged(updates).astype(np.float64)
    stack = np.stack([v for v, _ in updates]).astype(np.float64)
    room = 1e-6 * np.abs(stack).max() + 1e-30
    assert (found >= stack.min(axis=0) - room).all()
    assert (found <= stack.max(axis=0) + room).all()


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
    average = Average(shapes(first), samples_total=4)
    average.add(first, 1)
    average.add(second, 3)
    result = average.result()
    assert result["steps"] == 18
    assert result["steps"].dtype == np.int64
    assert result["steps"].shape == ()
    assert result["small"].tolist() == [254]
    assert result["on"].tolist() == [False, True]


def test_a_mean_without_all_its_parts_is_none() -> None:
    """A forgotten update must not shrink the weights silently."""
    average = Average(shapes({"w": np.zeros(2, np.float32)}), samples_total=10)
    average.add({"w": np.ones(2, np.float32)}, 9)
    with pytest.raises(ValueError, match="9 of 10"):
        average.result()


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
