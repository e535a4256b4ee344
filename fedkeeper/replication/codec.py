"""Commands and states as lines of JSON with kind and version: for the journal, its snapshots, and later Raft.

Generic over the dataclasses of `core.model`. A field that is added with a default needs no new version: old
lines get the default, and an older program refuses lines that hold a field it does not know. A change of
meaning does need one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar, get_args

import msgspec

from fedkeeper.core.model import Command, State
from fedkeeper.errors import JournalDamaged, JournalError

VERSION: Final = 1
COMMANDS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in get_args(Command)}
INT_MAX: Final = 2**53  # of numbers in commands, as of JSON's readers in general; sums of them may go beyond
UPGRADE: Final = "it was written by a newer FedKeeper: install that version, or a later one"
T = TypeVar("T")

# `kind` and `v` stand beside the fields, so no field of a command may be called that.
assert not any({"kind", "v"} & {field.name for field in fields(kind)} for kind in (*COMMANDS.values(), State))


def encode(command: Command) -> bytes:
    """One line of ASCII JSON without its newline.

    Raises JournalError if decoding would not give the same command back (NaN, a wrong type, a number beyond
    2**53): in a journal such a line would stop every later start.
    """
    return _encode(command, type(command), int_max=INT_MAX)


def decode(line: bytes, *, place: str = "") -> Command:
    """The command in `line`. Raises JournalDamaged, which names `place` ("file, line 3") and the fault."""
    kind, plain = _parse(line, place, int_max=INT_MAX)
    if kind not in COMMANDS:
        raise JournalDamaged(f"{place}: unknown kind of command {kind!r}", hint=UPGRADE)
    command: Command = _convert(plain, COMMANDS[kind], place)
    return command


def encode_batch(lines: Sequence[bytes]) -> bytes:
    """Lines of `encode` as one entry of a log."""
    return b"\n".join(lines)


def decode_batch(data: bytes) -> list[bytes]:
    """The lines in an entry of `encode_batch`."""
    return data.split(b"\n")


def encode_state(state: State) -> bytes:
    """As `encode`. The order of mappings is kept: iterating a restored state gives the same order."""
    return _encode(state, State)


def decode_state(line: bytes, *, place: str = "") -> State:
    """As `decode`."""
    kind, plain = _parse(line, place)
    if kind != State.__name__:
        raise JournalDamaged(f"{place}: expected a State, found {kind!r}", hint=UPGRADE)
    return _convert(plain, State, place)


def _encode(value: Any, kind: type[Any], *, int_max: int | None = None) -> bytes:
    try:
        plain = {"kind": kind.__name__, "v": VERSION, **_plain(value)}
        text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
        back = _convert(_parse(text, "", int_max=int_max)[1], kind, "")
    except (JournalDamaged, TypeError, ValueError) as exc:
        raise JournalError(f"{kind.__name__} cannot be written to the journal: {exc}") from exc
    if back != value:
        raise JournalError(f"{kind.__name__} cannot be written to the journal: it would be read as {back!r}")
    return text.encode("ascii")


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value, enc_hook=_mapping)
    return plain


def _mapping(value: object) -> object:
    if isinstance(value, Mapping):  # a read-only view of a dict, for instance
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no place in a command or state")


def _parse(line: bytes | str, place: str, *, int_max: int | None = None) -> tuple[str, dict[str, Any]]:
    def number(digits: str) -> int:
        value = int(digits)
        if int_max is not None and abs(value) > int_max:
            raise ValueError(f"a number of {len(digits)} digits")
        return value

    try:
        # The standard library's parser: it takes lone surrogates, which platforms' messages may hold.
        plain = json.loads(line, parse_constant=_no_constant, parse_int=number)
    except (RecursionError, ValueError) as exc:
        raise JournalDamaged(f"{place}: not our JSON: {exc}") from exc
    if not isinstance(plain, dict):
        raise JournalDamaged(f"{place}: a JSON {type(plain).__name__} where an object belongs")
    kind, version = plain.pop("kind", None), plain.pop("v", None)
    if type(kind) is not str or type(version) is not int or version < 1:
        raise JournalDamaged(f"{place}: no kind or no version")
    if version > VERSION:
        raise JournalDamaged(f"{place}: {kind} of version {version}, this is version {VERSION}", hint=UPGRADE)
    return kind, plain


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _convert(plain: dict[str, Any], kind: type[T], place: str) -> T:
    try:
        value = msgspec.convert(plain, kind)
    except msgspec.ValidationError as exc:
        raise JournalDamaged(f"{place}: {kind.__name__}: {exc}") from exc
    if unknown := _unknown_field(plain, _plain(value), kind.__name__):
        # msgspec passes over unknown fields of dataclasses, and a decision without them may be another one.
        raise JournalDamaged(f"{place}: unknown field {unknown}", hint=UPGRADE)
    return value


def _unknown_field(given: object, known: object, where: str) -> str:
    """Where `given` has a key that `known` has not, as "State.runs.mnist-1.colour"; empty if nowhere."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                return f"{where}.{name}"
            if found := _unknown_field(value, known[name], f"{where}.{name}"):
                return found
    elif isinstance(given, list) and isinstance(known, (list, tuple)):
        for index, (one, other) in enumerate(zip(given, known, strict=False)):
            if found := _unknown_field(one, other, f"{where}[{index}]"):
                return found
    return ""
