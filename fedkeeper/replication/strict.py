"""The quick way to read a line: by msgspec, twice, in C.

First into a mirror of the model, made of structs, that refuses what msgspec's dataclasses pass over: unknown
fields, and numbers beyond what a command may hold. Then into the model itself. What either does not take,
`codec` looks at slowly, to take it after all (a lone surrogate) or to say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from fedkeeper.core.model import State
from fedkeeper.replication.versions import COMMANDS, VERSION

INT_MAX: Final = 2**53  # of numbers in commands, as of JSON's readers in general; sums of them may go beyond
FAULTS = (msgspec.MsgspecError, TypeError, ValueError, RecursionError)  # what msgspec says no with


class Reader:
    """Reads lines of some kinds of dataclasses; anything it raises is one of FAULTS."""

    def __init__(self, kinds: tuple[type, ...], *, int_max: int | None) -> None:
        mirrors: list[Any] = [_mirror(kind, int_max, tagged=True) for kind in kinds]
        self._check = msgspec.json.Decoder(reduce(or_, mirrors))
        # By the name of the mirror, which the tag has chosen.
        self._readers: dict[Any, msgspec.json.Decoder[Any]] = {
            mirror: msgspec.json.Decoder(kind) for mirror, kind in zip(mirrors, kinds, strict=True)
        }

    def __call__(self, line: bytes) -> Any:
        """The value in `line`, which says its kind and version."""
        return self._readers[type(self._check.decode(line))].decode(line)


def _mirror(kind: type[Any], int_max: int | None, *, tagged: bool) -> Any:
    hints = get_type_hints(kind)
    own: list[Any] = [("v", Annotated[int, msgspec.Meta(ge=1, le=VERSION)])] if tagged else []
    for field in fields(kind):
        hint = _mirrored(hints[field.name], int_max)
        if field.default_factory is not MISSING:
            own.append((field.name, hint, msgspec.field(default_factory=field.default_factory)))
        elif field.default is not MISSING:
            own.append((field.name, hint, field.default))
        else:
            own.append((field.name, hint))
    return msgspec.defstruct(
        kind.__name__,
        own,
        kw_only=True,
        forbid_unknown_fields=True,
        tag_field="kind" if tagged else None,
        tag=kind.__name__ if tagged else None,
    )


def _mirrored(hint: Any, int_max: int | None) -> Any:
    """The same type, strictly."""
    if is_dataclass(hint):
        kind: Any = hint
        return _mirror(kind, int_max, tagged=False)
    if hint is int and int_max is not None:
        return Annotated[int, msgspec.Meta(ge=-int_max, le=int_max)]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return reduce(or_, (_mirrored(arg, int_max) for arg in args))
    if origin is Sequence:
        return list[_mirrored(args[0], int_max)]  # type: ignore[misc]
    if origin is tuple:
        return tuple[_mirrored(args[0], int_max), ...]  # type: ignore[misc]
    if origin is Mapping:
        return dict[args[0], _mirrored(args[1], int_max)]  # type: ignore[misc,valid-type]
    return hint


read_command: Final = Reader(tuple(COMMANDS.values()), int_max=INT_MAX)
read_state: Final = Reader((State,), int_max=None)
