"""What a client hands in, and the check every update must pass before it is stored or averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import UpdateRefused
from fedkeeper.runtime.base import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a client says of its local work; `seconds` by part."""

    samples: int  # rows trained on, > 0
    loss: float | None  # mean over the rows in the last local epoch; None: not finite
    accuracy: float | None  # None where the labels are not classes
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is known of a tensor without its values."""

    dims: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.dims)}"


def shapes(tensors: Tensors) -> dict[str, Shape]:
    """Shape and dtype by name."""
    return {name: Shape(dims=value.shape, dtype=str(value.dtype)) for name, value in tensors.items()}


def nbytes(tensors: Tensors) -> int:
    """Bytes of all values, without names and header."""
    return sum(value.nbytes for value in tensors.values())


def check_update(update: Tensors, like: Mapping[str, Shape], *, bytes_max: int) -> None:
    """Return if `update` may be averaged into a model of the shapes `like`.

    Raises UpdateRefused naming the first tensor at fault: missing, unknown, other shape, other dtype,
    NaN or infinite; or the size if it is above `bytes_max`.
    """
    size = nbytes(update)
    if size > bytes_max:
        raise UpdateRefused(f"update has {size} bytes, at most {bytes_max} are taken")
    for name, wanted in like.items():
        if name not in update:
            raise UpdateRefused(f"tensor {name!r} is missing")
        found = Shape(dims=update[name].shape, dtype=str(update[name].dtype))
        if found != wanted:
            raise UpdateRefused(f"tensor {name!r} is {found}, not {wanted}")
    unknown = sorted(set(update) - set(like))
    if unknown:
        raise UpdateRefused(f"tensor {unknown[0]!r} is unknown to the model")
    for name, value in update.items():
        bad = _not_finite(value)
        if bad:
            raise UpdateRefused(f"tensor {name!r} has {bad} values that are NaN or infinite")


def _not_finite(value: NDArray[np.generic]) -> int:
    if value.dtype.kind in "iub":
        return 0
    return int(value.size - np.count_nonzero(np.isfinite(value)))
