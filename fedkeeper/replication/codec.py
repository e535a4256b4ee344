"""Commands and states as lines of JSON with kind and version: for the logs, their snapshots, and the network.

Generic over the dataclasses of `core.model`; `versions` says since when there is what. A line carries the
lowest version that can read it, an older program refuses what it does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar

import msgspec

from fedkeeper.core.model import Command, State
from fedkeeper.core.persistent import thawed
from fedkeeper.errors import JournalDamaged, JournalError
from fedkeeper.replication.strict import FAULTS, INT_MAX, Reader, read_command, read_state
from fedkeeper.replication.versions import COMMANDS, FORMS, VERSION

__all__ = [
    "VERSION",
    "cluster_version",
    "decode",
    "decode_batch",
    "decode_state",
    "encode",
    "encode_back",
    "encode_batch",
    "encode_state",
]
UPGRADE: Final = "it was written by a newer FedKeeper: install that version, or a later one"
T = TypeVar("T")

# `kind` and `v` stand beside the fields, so no field of a command may be called that.
assert not any({"kind", "v"} & {field.name for field in fields(kind)} for kind in FORMS)


def encode(command: Command, *, version: int = VERSION) -> bytes:
    """One line of ASCII JSON without its newline.

    Raises JournalError if decoding would not give the same command back (NaN, a wrong type, a number beyond
    2**53): in a log such a line would stop every keeper, for good. And if keepers of `version` could not read
    it.
    """
    return encode_back(command, version=version)[0]


def encode_back(command: Command, *, version: int = VERSION) -> tuple[bytes, Command]:
    """As `encode`, with what `decode` makes of the line: it was read to see whether it is the same."""
    line, needed, back = _encode(command, type(command), read_command, int_max=INT_MAX)
    if needed > version:
        raise JournalError(
            f"{type(command).__name__} needs keepers of version {needed}",
            hint=f"the cluster still has keepers of version {version}: upgrade them first",
        )
    return line, decode(line) if back is None else back


def decode(line: bytes, *, place: str = "") -> Command:
    """The command in `line`. Raises JournalDamaged, which names `place` ("file, line 3") and the fault."""
    command: Command
    try:
        command = read_command(line)
    except FAULTS:
        kind, plain = _parse(line, place, int_max=INT_MAX)
        if kind not in COMMANDS:
            raise JournalDamaged(f"{place}: unknown kind of command {kind!r}", hint=UPGRADE) from None
        command = _convert(plain, COMMANDS[kind], place)
    return command


def encode_batch(lines: Sequence[bytes]) -> bytes:
    """Encoded commands as one piece: an entry of the Raft log."""
    return b"\n".join(lines)


def decode_batch(batch: bytes) -> list[bytes]:
    """The encoded commands in it, in their order."""
    return batch.split(b"\n") if batch else []


def cluster_version(state: State) -> int:
    """What every known keeper can read, the lost ones included: they may come back."""
    return min((info.version for info in state.keepers.values()), default=VERSION)


def encode_state(state: State) -> bytes:
    """As `encode`. The order of mappings is kept: iterating a restored state gives the same order."""
    return _encode(state, State, read_state)[0]


def decode_state(line: bytes, *, place: str = "") -> State:
    """As `decode`."""
    try:
        state: State = read_state(line)
    except FAULTS:
        kind, plain = _parse(line, place)
        if kind != State.__name__:
            raise JournalDamaged(f"{place}: expected a State, found {kind!r}", hint=UPGRADE) from None
        state = _convert(plain, State, place)
    return state


_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


_encoder = msgspec.json.Encoder(enc_hook=thawed)


def _encode(
    value: Any, kind: type[Any], read: Reader, *, int_max: int | None = None
) -> tuple[bytes, int, Any]:
    """The line, the version that its reader must have, and what `read` makes of it; None: it cannot."""
    if kind not in FORMS:
        raise JournalError(f"a {kind.__name__} cannot be written to the journal: it is no command")
    plain, needed = FORMS[kind](value)
    plain = {"kind": kind.__name__, "v": needed, **plain}
    try:
        line = _encoder.encode(plain)
        if not line.isascii():
            line = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], line.decode()).encode("ascii")
        back = read(line)
        if back == value:
            return line, needed, back
    except FAULTS:
        pass
    return _encode_slowly(value, kind, plain, int_max=int_max), needed, None


def _encode_slowly(value: Any, kind: type[Any], plain: dict[str, Any], *, int_max: int | None) -> bytes:
    """What msgspec does not write, or does not read back the same; mostly that says what is wrong with it."""
    try:
        text = json.dumps(_plain(plain), separators=(",", ":"), allow_nan=False)
        back = _convert(_parse(text, "", int_max=int_max)[1], kind, "")
    except (JournalDamaged, TypeError, ValueError) as exc:
        raise JournalError(f"{kind.__name__} cannot be written to the journal: {exc}") from exc
    if back != value:
        raise JournalError(f"{kind.__name__} cannot be written to the journal: it would be read as {back!r}")
    return text.encode("ascii")


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value, enc_hook=thawed)
    return plain


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
