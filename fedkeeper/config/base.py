"""What all sections share, and the small types: memory, time, names, paths."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

HIDDEN = "***"


class Section(BaseModel):
    """A section of the file: frozen, no unknown keys, values kept out of pydantic's own messages."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
        allow_inf_nan=False,
    )
    # The one key that a plain text in the section's place stands for, e.g. `url` of a data source.
    text_key: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        # `google:` with nothing below it is None to YAML.
        return {} if value is None else value


def empty() -> Any:
    """Default of a section: nothing, which the section then fills with its own defaults, in its place."""
    return {}


def _not_a_switch(value: Any) -> Any:
    # YAML reads yes, no, on and off as booleans, and pydantic would count them as 1 and 0.
    if isinstance(value, bool):
        raise ValueError("is yes/no (true/false) to YAML; write a number")
    return value


def number(value: Any) -> Any:
    """Refuse what YAML made a boolean of. Numbers may be written as text ("5"), as the ancestor did."""
    return _not_a_switch(value)


Number = BeforeValidator(number)

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_MEMORY_MB = {"": 1, "m": 1, "mb": 1, "mi": 1, "mib": 1, "g": 1024, "gb": 1024, "gi": 1024, "gib": 1024}
_BYTES = {"": 1, "b": 1, "k": 1024, "kb": 1024, "ki": 1024, "kib": 1024} | {
    unit: mb * 1024 * 1024 for unit, mb in _MEMORY_MB.items() if unit
}


def _amount(value: Any, units: Mapping[str, int], example: str) -> int:
    _not_a_switch(value)
    found = _MEMORY.fullmatch(str(value))
    if found is None or found[2].lower() not in units:
        raise ValueError(f"is not an amount of memory; write for example {example}")
    return round(float(found[1]) * units[found[2].lower()])


def memory_mb(value: Any) -> int:
    """MB of `2048`, `"2048"`, `2048MB`, `2Gi`. A bare number is MB; 1 G is 1024 MB, as platforms count."""
    return _amount(value, _MEMORY_MB, "512 (MB), 2048MB or 2Gi")


def size_bytes(value: Any) -> int:
    """Bytes of `1048576`, `256MB`, `1Gi`. A bare number is bytes; 1 M is 1024 * 1024 bytes."""
    return _amount(value, _BYTES, "268435456 (bytes), 256MB or 1Gi")


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(value: Any, *, bare: str) -> float:
    """Seconds of `300s`, `5m`, `300000ms`; `bare` is the unit of a number without one."""
    _not_a_switch(value)
    found = _DURATION.fullmatch(str(value))
    unit = (found[2] or bare) if found else ""
    if found is None or unit not in _SECONDS:
        raise ValueError("is not a time; write for example 300s or 5m")
    return float(found[1]) * _SECONDS[unit]


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", Path.cwd()))


def _beside_config(path: Path, info: ValidationInfo) -> Path:
    return Path(os.path.normpath(_folder(info) / path.expanduser()))


def _existing(path: Path, info: ValidationInfo) -> Path:
    found = _beside_config(path, info)
    if not found.exists():
        raise ValueError(f"no such file: {found}")
    return found


ConfigPath = Annotated[Path, AfterValidator(_beside_config)]  # relative paths are relative to the config file
ExistingPath = Annotated[Path, AfterValidator(_existing)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            "names files and database objects: use letters, digits, '_', '-' and '.', at most 100 of them"
        )
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text), StringConstraints(strip_whitespace=True)]
Name = Annotated[str, BeforeValidator(_text), AfterValidator(_name)]

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # "package.module:function"


def near(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` if one of `known` is near `word`, else the list of them."""
    names = [str(name) for name in known]
    found = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "there is none"
