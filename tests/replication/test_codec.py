"""Commands and states as lines."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkeeper.core.model import (
    ClaimConductor,
    Entry,
    KeeperInfo,
    Phase,
    PutValue,
    RoundAggregated,
    Run,
    State,
    StopRun,
    SubmitRun,
    Tick,
    UpdatesRefused,
)
from fedkeeper.core.persistent import thawed
from fedkeeper.errors import JournalDamaged, JournalError
from fedkeeper.replication import codec
from fedkeeper.replication.strict import FAULTS, INT_MAX, read_command
from fedkeeper.replication.versions import COMMANDS, SINCE, VERSION
from tests.core.test_transcripts import _spec
from tests.strategies import commands, states, values

FIELDS = json.loads((Path(__file__).parent / "fields.json").read_text("utf-8"))

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
        (b'{"kind":"Tick","v":1,"epoch":1,"at_ms":9007199254740993}', "16 digits"),
        (b'{"kind":"Tick","v":1,"epoch":-9007199254740993,"at_ms":1}', "17 digits"),
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


# --- quickly and slowly ---------------------------------------------------------------------------


def _slowly(line: bytes) -> object:
    try:
        kind, plain = codec._parse(line, "", int_max=INT_MAX)
        return codec._convert(plain, COMMANDS[kind], "")
    except (JournalDamaged, KeyError):
        return None


def _quickly(line: bytes) -> object:
    try:
        return read_command(line)
    except FAULTS:
        return None


# No large integers: as a float field's value the slow way alone refuses them, and nobody writes them there.
_odd = st.sampled_from((None, True, 1, -1, 0.5, "x", "é", [], {}, [1], {"a": 1}))


@settings(max_examples=60)
@given(command=commands, data=st.data())
def test_the_quick_way_takes_nothing_that_the_slow_one_refuses(command, data):
    """Whatever is wrong with a line: a field that is missing, of another type, or unknown."""
    plain = json.loads(codec.encode(command))
    where = data.draw(st.sampled_from(sorted(plain)))
    inner = plain[where]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        plain, where = inner, data.draw(st.sampled_from(sorted(inner)))
    match data.draw(st.sampled_from(("replace", "drop", "add", "leave"))):
        case "replace":
            plain[where] = data.draw(_odd)
        case "drop":
            del plain[where]
        case "add":
            plain[data.draw(st.sampled_from(("colour", "v", "", "at_ms")))] = data.draw(_odd)
    whole = plain if inner is not plain else {**json.loads(codec.encode(command)), where: inner}
    line = json.dumps(whole).encode()
    quickly, slowly = _quickly(line), _slowly(line)
    assert quickly in (None, slowly)


def test_usual_commands_go_the_quick_way():
    """With texts of any language; only lone surrogates do not."""
    line = codec.encode(replace(PUT, value='"Grüße 😀"'))
    assert line.isascii()
    assert _quickly(line) == _slowly(line) == codec.decode(line)
    odd = codec.encode(replace(PUT, value='"\ud800"'))
    assert _quickly(odd) is None
    assert codec.decode(odd) == _slowly(odd) == replace(PUT, value='"\ud800"')


# --- batches --------------------------------------------------------------------------------------


@given(st.lists(commands, max_size=4))
def test_a_batch_comes_apart_into_its_lines(batch):
    """In their order."""
    lines = [codec.encode(command) for command in batch]
    assert codec.decode_batch(codec.encode_batch(lines)) == lines


# --- versions -------------------------------------------------------------------------------------

PUT = PutValue(name="a", value="1", at_ms=7)
CLAIM = ClaimConductor(keeper="k1", expected_epoch=3, at_ms=7)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (CLAIM, b'{"kind":"ClaimConductor","v":1,"keeper":"k1","expected_epoch":3,"at_ms":7}'),
        (
            replace(CLAIM, why="it leads"),
            b'{"kind":"ClaimConductor","v":2,"keeper":"k1","expected_epoch":3,"at_ms":7,"why":"it leads"}',
        ),
        (PUT, b'{"kind":"PutValue","v":2,"name":"a","value":"1","at_ms":7}'),
        (
            replace(PUT, expected=0, request="r"),
            b'{"kind":"PutValue","v":2,"name":"a","value":"1","expected":0,"request":"r","at_ms":7}',
        ),
    ],
)
def test_a_line_has_the_lowest_version_that_can_read_it(command, line):
    """What is at its default is left out, so an older keeper reads it."""
    assert codec.encode(command) == line
    assert codec.decode(line) == command


def test_what_is_deep_inside_is_left_out_as_well():
    """A run without deployment is one that version 1 knows."""
    spec = _spec("m", {})
    old, new = SubmitRun(spec=spec, at_ms=1), SubmitRun(spec=replace(spec, book="{}"), at_ms=1)
    assert (json.loads(codec.encode(old))["v"], json.loads(codec.encode(new))["v"]) == (1, 2)
    assert "book" not in json.loads(codec.encode(old))["spec"]
    run = Run(spec=spec, phase=Phase.TRAINING, round=1, weights=None)
    state = json.loads(codec.encode_state(State(runs={"m": run})))
    assert state["v"] == 1
    assert not {"urls", "deployed"} & state["runs"]["m"].keys()
    changed = codec.encode_state(State(runs={"m": replace(run, deployed="13 created")}))
    assert json.loads(changed)["v"] == 2


@pytest.mark.parametrize("command", [PUT, replace(CLAIM, pinned=True)])
def test_what_older_keepers_cannot_read_is_not_written(command):
    """They would have to stop: whoever proposes it is told what to do instead."""
    with pytest.raises(JournalError) as caught:
        codec.encode(command, version=1)
    assert "needs keepers of version 2" in str(caught.value)
    assert caught.value.hint == "the cluster still has keepers of version 1: upgrade them first"
    assert codec.encode(CLAIM, version=1) == codec.encode(CLAIM)


def test_the_cluster_is_as_old_as_its_oldest_keeper():
    """Also if it is away: it would have to read everything when it comes back."""
    infos = [KeeperInfo(name=f"k{n}", api="", version=n, alive=n != 3) for n in (4, 3, 5)]
    assert codec.cluster_version(State(keepers={info.name: info for info in infos})) == 3
    assert codec.cluster_version(State()) == VERSION


def _model() -> dict[str, Any]:
    """Every field of what is written, "required" or its default, by "Kind.field"."""
    found: dict[str, Any] = {}

    def visit(hint: Any) -> None:
        for inner in get_args(hint):
            visit(inner)
        if is_dataclass(hint):
            hints = get_type_hints(hint)
            for field in fields(hint):
                default = field.default if field.default_factory is MISSING else field.default_factory()
                found[f"{hint.__name__}.{field.name}"] = "required" if default is MISSING else default
                visit(hints[field.name])

    for kind in (*COMMANDS.values(), State):
        visit(kind)
    return json.loads(json.dumps(found, default=thawed))


def _written_since(name: str) -> int:
    return SINCE.get(name, SINCE.get(name.partition(".")[0], 1))


def test_every_field_says_since_when_it_is_there():
    """A new one has a default, a new version, and its lines in fields.json; none goes, no default changes.

    What cannot be told from SINCE is in fields.json: what each version brought, and with which default.
    """
    assert _model() == {name: default for version in FIELDS.values() for name, default in version.items()}
    for version, names in FIELDS.items():
        for name, default in names.items():
            kind = name.partition(".")[0]
            assert kind not in COMMANDS or _written_since(name) == int(version), name
            new_field = any(
                other.startswith(f"{kind}.") for v in range(1, int(version)) for other in FIELDS[str(v)]
            )
            assert not new_field or default != "required", f"{name} came later and has no default"
            assert not new_field or _written_since(name) == int(version), name
    assert max(map(int, FIELDS)) == VERSION == max(SINCE.values())
