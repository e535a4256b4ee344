"""What a client hands in, and the check every update must pass before it is stored or averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import UpdateRefused
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.layout import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a client says of its local work; `seconds` by part."""

    samples: int  # rows trained on, > 0
    loss: float | None  # mean over the rows in the last local epoch; None: not finite
    accuracy: float | None  # None where the labels are not classes
    seconds: Mapping[str, float]


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
    check_shapes(shapes(update), like, nbytes=nbytes(update), bytes_max=bytes_max)
    for name, value in update.items():
        bad = _not_finite(value)
        if bad:
            raise UpdateRefused(f"tensor {name!r} has {bad} values that are NaN or infinite")


def check_shapes(
    found: Mapping[str, Shape], like: Mapping[str, Shape], *, nbytes: int, bytes_max: int
) -> None:
    """The part of `check_update` that needs no values; `nbytes`: of all of them."""
    if nbytes > bytes_max:
        raise UpdateRefused(f"update has {nbytes} bytes, at most {bytes_max} are taken")
    for name, wanted in like.items():
        if name not in found:
            raise UpdateRefused(f"tensor {name!r} is missing")
        if found[name] != wanted:
            raise UpdateRefused(f"tensor {name!r} is {found[name]}, not {wanted}")
    unknown = sorted(set(found) - set(like))
    if unknown:
        raise UpdateRefused(f"tensor {unknown[0]!r} is unknown to the model")


def _not_finite(value: NDArray[np.generic]) -> int:
    if value.dtype.kind in "iub":
        return 0
    return int(value.size - np.count_nonzero(np.isfinite(value)))
