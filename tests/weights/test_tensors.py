"""fedkeeper.runtime.tensors: what is packed comes back, what is damaged does not."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkeeper.errors import ObjectDamaged
from fedkeeper.runtime.tensors import pack, unpack

arrays = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?", ">f4", ">i8"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"), arrays, max_size=5)
)
def test_tensors_come_back_bit_for_bit_and_in_their_order(tensors):
    """Order, shapes, native dtypes and bits survive, whatever the byte order, empty and scalar ones too."""
    back, metadata = unpack(pack(tensors))
    assert list(back) == list(tensors)
    assert metadata == {}
    for name, array in tensors.items():
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert back[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


def test_metadata_travels_with_the_tensors():
    """The invoker route puts the task there."""
    data = pack({"w": np.ones(3, np.float32)}, {"task": '{"a": 1}', "other": "ü"})
    assert unpack(data)[1] == {"task": '{"a": 1}', "other": "ü"}


def test_the_same_tensors_are_the_same_bytes():
    """So that equal weights have equal hashes."""
    tensors = {name: np.arange(7, dtype=np.float32) for name in "zyxa"}
    assert pack(tensors) == pack({name: array.copy() for name, array in tensors.items()})


def test_arrays_that_are_not_contiguous_are_packed_as_they_look():
    """A transposed view is stored by its values and not by its memory."""
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    np.testing.assert_array_equal(unpack(pack({"t": array}))[0]["t"], array)


def test_objects_and_strings_are_never_packed():
    """What would need a pickle is refused."""
    with pytest.raises(ValueError, match="dtype object"):
        pack({"o": np.array([object()])})


def test_more_bytes_than_allowed_are_refused_unread():
    """The bound holds before anything is parsed."""
    data = pack({"w": np.ones(100)})
    assert unpack(data, bytes_max=len(data))
    with pytest.raises(ObjectDamaged, match="at most"):
        unpack(data, bytes_max=len(data) - 1)


@given(st.binary(max_size=64))
def test_garbage_is_damage_and_nothing_else(data):
    """Whatever the bytes are, the error is ours."""
    with pytest.raises(ObjectDamaged):
        unpack(data)


@given(st.data())
def test_cut_or_altered_headers_never_raise_anything_else(data):
    """A flipped byte gives tensors or ObjectDamaged, never another exception."""
    sound = pack({"a": np.arange(4, dtype=np.int64), "b": np.ones((2, 2), np.float32)}, {"k": "v"})
    at = data.draw(st.integers(0, len(sound) - 1))
    altered = sound[:at] + bytes([data.draw(st.integers(0, 255))]) + sound[at + 1 :]
    with contextlib.suppress(ObjectDamaged):
        unpack(altered)
    with pytest.raises(ObjectDamaged):
        unpack(sound[:at])
