"""Finding every fault of a file in one pass: the path to the key, the problem, what to write instead.

pydantic validates a whole model at once and says nothing of a section's own rules while one of its keys
is wrong. So each key is looked at alone, and rules between keys (`rules`) run on whatever was right:
one that needs a value that is itself at fault is left out.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedkeeper.config.base import Section, near
from fedkeeper.config.scenario import Learning, Scenario, scenario_class

_MISSING = object()
_LEAF = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)


class Unfilled:
    """Stands in plain YAML types for a value that has been reported already: it gets no second fault."""


UNFILLED = Unfilled()


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong; never holds the value of a secret."""

    path: str  # "scenarios.federated_learning.clients_info.total_num_clients"
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class AtFaultItself(Exception):
    """A rule asked for a value that has a fault of its own."""


class Known:
    """The right part of a section, to be read like the section itself."""

    def __init__(self, section_class: type[Section], values: Mapping[str, Any]) -> None:
        self.section_class = section_class
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise AtFaultItself(name)
        return self._values[name]


Rule = Callable[[Any], Iterable[Fault]]


def inspect(
    model: type[Section], raw: Any, rules: Iterable[Rule], context: Mapping[str, Any]
) -> tuple[Fault, ...]:
    """Every fault of `raw` (plain YAML types) as a `model`, in the file's order where it has one."""
    faults: list[Fault] = []
    known = _section(model, raw, "", faults, context)
    if known is _MISSING:
        return tuple(faults)
    known.folder = context["folder"]
    for rule in rules:
        with contextlib.suppress(AtFaultItself):
            for fault in rule(known):
                faults.append(fault)  # one by one: those before a rule ended count
    return tuple(dict.fromkeys(faults))


def _section(model: type[Section], raw: Any, at: str, faults: list[Fault], context: Mapping[str, Any]) -> Any:
    if model.text_key and isinstance(raw, str):
        raw = {model.text_key: raw}
        names = {model.text_key: at}  # the fault is where the text is
    else:
        names = {}
    if not isinstance(raw, Mapping):
        faults.append(Fault(at, "must be a section: lines of `key: value` below it, further to the right"))
        return _MISSING
    keys = {field.alias or name: name for name, field in model.model_fields.items()}
    mistyped = set()
    for key in raw:
        if key not in keys:
            faults.append(Fault(_join(at, key), f"unknown key; {near(key, keys)}"))
            mistyped.update(difflib.get_close_matches(str(key), keys, n=1))

    values: dict[str, Any] = {}
    seen: list[str] = []
    for key, name in keys.items():
        field = model.model_fields[name]
        path = names.get(key) or _join(at, key)
        if key in mistyped - set(raw):
            found = _MISSING  # neither missing nor the default: it is there under a wrong name
        elif key in raw:
            found = _value(field, raw[key], path, faults, context)
        elif field.is_required():
            faults.append(Fault(path, f"is missing; write {field.description}"))
            found = _MISSING
        elif shape(field.annotation) is not None and field.default_factory is not None:
            found = _value(field, {}, path, faults, context)
        elif field.default_factory_takes_validated_data and len(values) < len(seen):
            found = _MISSING  # it may depend on the value that is at fault
        else:
            # Defaults are validated in the model itself; rules only need their values.
            found = field.get_default(call_default_factory=True, validated_data=values)
        seen.append(name)
        if found is not _MISSING:
            values[name] = found
    return Known(model, values)


def _value(field: FieldInfo, raw: Any, at: str, faults: list[Fault], context: Mapping[str, Any]) -> Any:
    if raw is UNFILLED:
        return _MISSING
    kind = shape(field.annotation)
    if kind is not None and raw is None and (_allows_none(field) or not field.is_required()):
        raw = {}
    if isinstance(kind, type):
        return _section(kind, raw, at, faults, context)
    if kind is not None:
        return _sections(field, kind[0], raw, at, faults, context)
    try:
        return TypeAdapter(cast(Any, field.rebuild_annotation()), config=_LEAF).validate_python(
            raw, context=dict(context)
        )
    except ValidationError as exc:
        faults.extend(_leaf_faults(exc, at, field))
        return _MISSING


def _sections(
    field: FieldInfo, item: Any, raw: Any, at: str, faults: list[Fault], context: Mapping[str, Any]
) -> Any:
    """A section of named sections: clusters, scenarios, functions."""
    if not isinstance(raw, Mapping):
        faults.append(Fault(at, "must be a section: a name, and the keys of what has that name below it"))
        return _MISSING
    if not raw and any(getattr(rule, "min_length", 0) for rule in field.metadata):
        faults.append(Fault(at, f"is empty; write {field.description}"))
    found = {}
    for name, value in raw.items():
        model = scenario_class(value) if item is Scenario else item
        kept = _section(model, {} if value is None else value, _join(at, name), faults, context)
        if kept is not _MISSING:
            found[str(name)] = kept
    return found


def shape(annotation: Any) -> Any:
    """The Section class of a field, or a tuple of the one of its items; None for a plain value."""
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Scenario if annotation is Learning else annotation
    if origin is Annotated:
        return shape(args[0])
    if origin in {Union, types.UnionType}:
        shapes = {shape(arg) for arg in args} - {None}
        return shapes.pop() if shapes else None
    if isinstance(origin, type) and issubclass(origin, Mapping) and shape(args[1]):
        return (shape(args[1]),)
    return None


def _allows_none(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _leaf_faults(exc: ValidationError, at: str, field: FieldInfo) -> Iterator[Fault]:
    for error in exc.errors(include_url=False, include_input=False):
        inner = [str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained"))]
        yield Fault(_join(at, *inner), _problem(error, field))


def _problem(error: ErrorDetails, field: FieldInfo) -> str:
    """pydantic's finding in this file's words; it never has the value."""
    meaning = (field.description or "").removesuffix(".")
    limits = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return re.sub("^Value error, ", "", error["msg"])
        case "literal_error":
            return f"must be one of {limits['expected']}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
            bounds = [f"{word} {limits[key]:g}" for key, word in words.items() if key in limits]
            return f"must be {' and '.join(bounds)}; this key is: {meaning}"
        case kind if kind.startswith("int_"):
            return f"must be a whole number; this key is: {meaning}"
        case kind if kind.startswith(("float_", "finite_")):
            return f"must be a number; this key is: {meaning}"
        case kind if kind.startswith("bool_"):
            return "must be true or false"
        case kind if kind.startswith("string_"):
            return (
                "must be a text; put it in quotes"
                if kind == "string_type"
                else f"is not right; write {meaning}"
            )
        case kind if kind.startswith(("tuple_", "list_", "too_")):
            return f"must be a list, `- item` lines; this key is: {meaning}"
        case _:
            return f"is not right; write {meaning}"


def _join(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if str(part))
