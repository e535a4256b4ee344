"""The users' dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkeeper.core.kv import ANSWERS_MAX, NAME_CHARS_MAX, VALUE_BYTES_MAX
from fedkeeper.core.machine import apply
from fedkeeper.core.model import DeleteValue, PutValue, State
from fedkeeper.replication import codec
from tests.sim.users import Reference


def put(name: str, value: str = "1", **others: object) -> PutValue:
    """Shorter."""
    return PutValue(name=name, value=value, at_ms=5, **others)


def after(*commands: PutValue | DeleteValue) -> State:
    """The state after them."""
    state = State()
    for command in commands:
        state = apply(state, command).state
    return state


TWO = after(put("a"), put("b", '"é"'))


@pytest.mark.parametrize(
    ("command", "rejected"),
    [
        (put("c"), ""),
        (put("a", expected=1), ""),
        (put("c", expected=0), ""),
        (put("a", expected=2), "'a': expected version 2, found version 1"),
        (put("a", expected=0), "'a': expected nothing, found version 1"),
        (put("c", expected=1), "'c': expected version 1, found nothing"),
        (DeleteValue(name="a", at_ms=1), ""),
        (DeleteValue(name="a", expected=1, at_ms=1), ""),
        (DeleteValue(name="a", expected=2, at_ms=1), "'a': expected version 2, found version 1"),
        (DeleteValue(name="c", at_ms=1), "'c' is not there"),
        (DeleteValue(name="c", expected=0, at_ms=1), "'c' is not there"),
        (put("a", fence="b", fence_version=2), ""),
        (put("a", fence="b", fence_version=1), "'b' is not held any more: found version 2"),
        (
            DeleteValue(name="a", fence="c", fence_version=3, at_ms=1),
            "'c' is not held any more: found nothing",
        ),
        (put("a", fence="c", fence_version=0), ""),
        (put(""), "a name of 0 characters"),
        (put("n" * NAME_CHARS_MAX), ""),
        (put("n" * (NAME_CHARS_MAX + 1)), "a name of 513 characters"),
        (put("a", request="r" * 513), "the request's id has 513 characters"),
        (put("a", "é" * (VALUE_BYTES_MAX // 2)), ""),
        (put("a", "é" * (VALUE_BYTES_MAX // 2) + "x"), "'a': a value of 1048577 bytes"),
        (put("c", "12345", total_bytes_max=13), ""),
        (put("c", "12345", total_bytes_max=12), "'c': the dictionary would have 13 bytes; 12 are possible"),
        (put("a", "2", total_bytes_max=0), ""),  # no larger than it was: also when the limit was lowered
    ],
)
def test_a_write_counts_if_what_it_expects_is_so(command, rejected):
    """Otherwise it says what was found; nothing has changed then, not even a version."""
    assert TWO.kv_bytes == 7
    applied = apply(TWO, command)
    if rejected:
        assert rejected in applied.rejected
        assert applied.state == TWO
    else:
        assert not applied.rejected
        assert applied.state.kv_version == 3
        entry = applied.state.kv.get(command.name)
        assert (entry is None) is isinstance(command, DeleteValue)
        assert entry is None or (entry.value, entry.version) == (command.value, 3)
    assert applied.state.now_ms == 0


def test_a_repeated_request_is_answered_as_the_first_time():
    """Whatever has been written since, and although it would now be decided otherwise."""
    first = apply(TWO, put("a", "7", expected=1, request="r1"))
    refused = apply(first.state, put("a", "8", expected=1, request="r2"))
    later = apply(refused.state, DeleteValue(name="a", at_ms=1)).state
    again = apply(later, put("a", "7", expected=1, request="r1"))
    assert (again.rejected, again.state) == ("", later)
    assert later.answered["r1"].version == 3
    once_more = apply(later, put("a", "8", expected=1, request="r2"))
    assert (once_more.rejected, once_more.state) == (refused.rejected, later)
    assert refused.rejected
    assert later.answered["r2"].version == 0


def test_answers_are_remembered_for_some_time_only():
    """The latest 4096, give or take a chunk: a request that is older writes again."""
    state = State()
    for number in range(ANSWERS_MAX + 200):
        state = apply(state, put("a", str(number), request=f"r{number}")).state
    assert ANSWERS_MAX - 128 <= len(state.answered) <= ANSWERS_MAX
    assert "r0" not in state.answered
    assert apply(state, put("a", "x", request=f"r{ANSWERS_MAX}")).state == state
    assert apply(state, put("a", "x", request="r0")).state != state


_names = st.sampled_from(("a", "b", "é", "\ud800"))
_common = {
    "name": _names,
    "expected": st.one_of(st.none(), st.integers(0, 6)),
    "request": st.sampled_from(("", "", "r1", "r2", "r3")),
    "fence": st.sampled_from(("", "", "a")),
    "fence_version": st.integers(0, 4),
    "at_ms": st.integers(0, 9),
}
_writes = st.one_of(
    st.builds(PutValue, value=st.sampled_from(("1", '"é"', "[]")), **_common),
    st.builds(DeleteValue, **_common),
)


@settings(max_examples=200)
@given(history=st.lists(_writes, max_size=25), cut=st.integers(0, 25))
def test_it_does_what_a_plain_dictionary_would(history, cut):
    """Also when it was written down and read again on the way; the same order of names included."""
    reference, state, restored = Reference(), State(), None
    for number, command in enumerate(history):
        if number == cut:
            restored = codec.decode_state(codec.encode_state(state))
        applied = apply(state, command)
        reference.check(command, applied)
        state = applied.state
        if restored is not None:
            restored = apply(restored, command).state
    if restored is not None:
        assert restored == state
        assert list(restored.kv) == list(state.kv)
