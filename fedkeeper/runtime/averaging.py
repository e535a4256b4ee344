"""The server's part of federated averaging, one update in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.updates import Shape

_BLOCK = 32_768  # numbers at once: what is multiplied is still in the processor's cache when it is added


class Average:
    """The weighted mean of updates: sum over clients k of (n_k / n) * w_k.

    Holds one float64 accumulator of the model's size, however many clients there are. Every step is an
    elementwise IEEE multiplication or addition in the order of the calls, so the same updates in the same
    order give the same bits on every machine. Whole numbers (counters of a layer, say) are averaged
    likewise and rounded to the nearest; booleans are a weighted majority, ties are False.

    Source: McMahan et al., arXiv:1602.05629v4, Algorithm 1 (FederatedAveraging), server's update.
    """

    def __init__(self, like: Mapping[str, Shape], *, samples_total: int) -> None:
        """`samples_total`: n, the rows behind all updates that will be added, > 0."""
        if samples_total < 1:
            raise ValueError(f"samples_total is {samples_total}")
        self._like = like
        self._total = samples_total
        self._added = 0
        self._scratch = np.empty(_BLOCK, np.float64)
        self._sums = {name: np.zeros(shape.dims, np.float64) for name, shape in like.items()}

    def add(self, update: Tensors, samples: int) -> None:
        """Add an update that `check_update` has let pass, trained on `samples` rows."""
        share = np.float64(samples) / np.float64(self._total)
        for name in self._like:
            values, sums = update[name].reshape(-1), self._sums[name].reshape(-1)
            for begin in range(0, len(sums), _BLOCK):
                part, total = values[begin : begin + _BLOCK], sums[begin : begin + _BLOCK]
                weighted = self._scratch[: len(part)]
                np.multiply(part, share, out=weighted, dtype=np.float64)
                np.add(total, weighted, out=total)
        self._added += samples

    def result(self) -> dict[str, NDArray[np.generic]]:
        """The mean, shapes and dtypes as given. ValueError unless exactly `samples_total` rows were added."""
        if self._added != self._total:
            raise ValueError(f"{self._added} of {self._total} samples were added")
        return {name: _as(total, self._like[name].dtype) for name, total in self._sums.items()}


def _as(total: NDArray[np.float64], dtype: str) -> NDArray[np.generic]:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return total > 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.clip(np.rint(total), limits.min, limits.max).astype(kind)
    return total.astype(kind)
