"""Commands and states as lines."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given

from fedkeeper.core.model import ClaimConductor, Entry, RoundAggregated, State, StopRun, Tick, UpdatesRefused
from fedkeeper.errors import JournalDamaged, JournalError
from fedkeeper.replication import codec
from tests.strategies import commands, states, values

STOP = StopRun(run="mnist-1", reason="asked to", at_ms=7)


@given(commands)
def test_a_command_comes_back_as_it_was(command):
    """And is one line of ASCII, whatever its texts hold."""
    line = codec.encode(command)
    assert b"\n" not in line
    assert line.isascii()
    assert codec.decode(line) == command
    assert codec.encode(codec.decode(line)) == line


@given(states)
def test_a_state_comes_back_as_it_was(state):
    """The order of its mappings included, since iterating them decides the order of intents."""
    back = codec.decode_state(codec.encode_state(state))
    assert back == state
    assert list(back.runs) == list(state.runs)
    assert [list(run.outbox) for run in back.runs.values()] == [
        list(run.outbox) for run in state.runs.values()
    ]


def test_a_line_says_its_kind_and_version():
    """Journals are read by people, too: the form is fixed."""
    assert codec.encode(STOP) == b'{"kind":"StopRun","v":1,"run":"mnist-1","reason":"asked to","at_ms":7}'


def test_a_read_only_mapping_is_written_as_well():
    """The machine may hand out views of its dictionaries."""
    state = State(kv=MappingProxyType({"a": Entry(value="b", version=1)}))
    assert codec.decode_state(codec.encode_state(state)) == state


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not our JSON"),
        (b"[1]", "a JSON list"),
        (b'{"v":1}', "no kind"),
        (b'{"kind":"Tick","epoch":1,"at_ms":1}', "no version"),
        (b'{"kind":"Tick","v":true,"epoch":1,"at_ms":1}', "no version"),
        (b'{"kind":"Tock","v":1}', "unknown kind of command 'Tock'"),
        (b'{"kind":"State","v":1}', "unknown kind of command 'State'"),
        (b'{"kind":"Tick","v":1,"epoch":"1","at_ms":1}', "`int`"),
        (b'{"kind":"Tick","v":1,"epoch":1.5,"at_ms":1}', "`int`"),
        (b'{"kind":"Tick","v":1,"epoch":1}', "`at_ms`"),
        (b'{"kind":"Tick","v":1,"epoch":1,"at_ms":NaN}', "NaN"),
        (b'{"kind":"Tick","v":1,"epoch":1,"at_ms":90071992547409930}', "17 digits"),
        (b'{"kind":"Tick","v":1,"epoch":' + b"[" * 100_000, "not our JSON"),
    ],
)
def test_what_is_not_a_command_is_refused_with_the_place(line, problem):
    """The fault and where it stands are in one message."""
    with pytest.raises(JournalDamaged, match=r"^file, line 3: ") as caught:
        codec.decode(line, place="file, line 3")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"Tick","v":%d,"epoch":1,"at_ms":1}' % (codec.VERSION + 1),
        b'{"kind":"Tick","v":1,"epoch":1,"at_ms":1,"colour":"red"}',
        b'{"kind":"Tock","v":1}',
    ],
)
def test_what_a_newer_version_wrote_asks_for_that_version(line):
    """A field that this version would pass over may change what must be decided."""
    with pytest.raises(JournalDamaged) as caught:
        codec.decode(line, place="here")
    assert "newer FedKeeper" in caught.value.hint


@given(values(RoundAggregated))
def test_an_unknown_field_deep_inside_is_found(command):
    """And named with its path."""
    plain = json.loads(codec.encode(command))
    plain["weights"]["shape"] = [1]
    with pytest.raises(JournalDamaged, match=r"unknown field RoundAggregated\.weights\.shape"):
        codec.decode(json.dumps(plain).encode(), place="here")


def test_an_unknown_field_in_a_list_is_found():
    """Also below mappings and tuples."""
    known = json.loads(codec.encode_state(State(kv={"a": Entry(value="b", version=1)})))
    known["runs"] = {"m": {"colour": 1}}
    with pytest.raises(JournalDamaged):
        codec.decode_state(json.dumps(known).encode(), place="here")
    assert codec._unknown_field([{"a": 1}, {"b": 2}], [{"a": 1}, {}], "x") == "x[1].b"


@pytest.mark.parametrize(
    "command",
    [
        replace(STOP, at_ms=1.5),
        replace(STOP, at_ms=True),
        replace(STOP, at_ms=2**53 + 1),
        replace(STOP, reason=b"bytes"),
        replace(STOP, reason=object()),
        UpdatesRefused(key="k", refused={1: "x"}, epoch=1, at_ms=1),
        ClaimConductor(keeper=None, expected_epoch=0, at_ms=0),
        Tick(epoch=10**5000, at_ms=1),
    ],
)
def test_what_could_not_be_read_back_is_not_written(command):
    """The proposer learns of it at once, instead of every later start."""
    with pytest.raises(JournalError, match="cannot be written to the journal"):
        codec.encode(command)


def test_a_loss_that_is_not_a_number_is_not_written():
    """JSON has no NaN."""
    ref = {"name": "w", "sha256": "0", "nbytes": 1}
    plain = {"key": "k", "base": ref, "weights": ref, "updates": [], "accuracy": None, "epoch": 1, "at_ms": 1}
    line = json.dumps(
        {"kind": "RoundAggregated", "v": 1, **plain, "loss": 1, "aggregate_s": 1, "evaluate_s": 1}
    )
    good = codec.decode(line.encode())
    assert isinstance(good.loss, float)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(JournalError, match="cannot be written"):
            codec.encode(replace(good, aggregate_s=bad))


def test_a_command_is_not_a_state():
    """A journal put in the place of a snapshot is noticed."""
    with pytest.raises(JournalDamaged, match="expected a State, found 'StopRun'"):
        codec.decode_state(codec.encode(STOP), place="snapshot.json")
