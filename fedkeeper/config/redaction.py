"""Keeping secrets out of what is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from fedkeeper.config.base import HIDDEN

_SHORT = 6  # a shorter secret is only recognised when it is the whole text: else "1" would eat every "10"


class Scrubber:
    """Knows the secrets of one file, and what to show in their place."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Scrubber({len(self._shown)} values)"

    def hide(self, value: str, shown: str = HIDDEN) -> None:
        """Show `shown` for `value` from now on. What is hidden as a secret stays one."""
        if value and self._shown.get(value) != HIDDEN:
            self._shown[value] = shown

    def text(self, text: str) -> str:
        """`text` without any known secret."""
        if text in self._shown:
            return self._shown[text]
        for value in sorted(self._shown, key=len, reverse=True):
            if len(value) >= _SHORT:
                text = text.replace(value, self._shown[value])
        return text

    def tree(self, value: Any) -> Any:
        """A copy of plain JSON types without any known secret; addresses lose what follows their `?`."""
        if isinstance(value, dict):
            return {key: self.tree(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item) for item in value]
        return self.text(without_query(value)) if isinstance(value, str) else value


def without_query(url: str) -> str:
    """An address without its query, which may hold a signature. Other texts as they are."""
    address, mark, _ = url.partition("?")
    return f"{address}?{HIDDEN}" if mark and "://" in address else url


def secrets_of(value: Any) -> Iterator[SecretStr]:
    """Every secret in a config."""
    if isinstance(value, SecretStr):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_of(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from secrets_of(inner)
