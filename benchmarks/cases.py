"""What is measured: so many clients, so large a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]
UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Case:
    """So many clients, or updates, with so large a model (bytes)."""

    clients: int
    nbytes: int
    label: str

    @classmethod
    def read(cls, text: str) -> Case:
        """From "100x6.65MB"; ValueError says how it is written."""
        clients, found, size = text.partition("x")
        unit = UNITS.get(size[-2:])
        try:
            if not found or unit is None:
                raise ValueError
            case = cls(clients=int(clients), nbytes=int(float(size[:-2]) * unit), label=text)
            if case.clients < 1 or case.nbytes < 4:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{text!r} is no case: it is written as 100x6.65MB, clients x bytes, in {', '.join(UNITS)}"
            ) from None
        return case
