"""Any value of the core's model, built from its annotations, so that a new field is covered by itself."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, get_args, get_origin

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedkeeper.core.model import Command, State

# A busy machine is slow now and then: time must not decide a test.
settings.register_profile("fedkeeper", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedkeeper")

# Lone surrogates too: a platform's message may hold one.
texts = st.text(st.characters(exclude_categories=()), max_size=12)
_LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: texts,
    bool: st.booleans(),
    type(None): st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the model's annotations spell it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _LEAVES:
        return _LEAVES[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(arg) for arg in args])
    if origin in (tuple, Sequence):
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    assert dataclasses.is_dataclass(hint), f"tests/strategies.py has no rule for {hint}"
    return st.deferred(lambda: _built(hint))


def _built(kind: Any) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})


commands: st.SearchStrategy[Command] = st.one_of([values(kind) for kind in get_args(Command)])
states: st.SearchStrategy[State] = values(State)
