"""The server's part of federated averaging: any part of the weights, one block of one update at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import UpdateRefused
from fedkeeper.runtime.layout import Layout

_BLOCK = 65_536  # numbers at once: what is multiplied is still in the processor's cache when it is added
_PIECE_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Run:
    """Neighbouring tensors of one dtype, as far as they are in the part."""

    dtype: np.dtype[np.generic]
    begin: int  # position of its first byte
    end: int
    sums: NDArray[np.float64]  # once finished, its memory holds the means


class Average:
    """The weighted mean of updates, (sum over clients k of n_k * w_k) / n, from one position to another.

    Holds a float64 accumulator of that part, however many clients there are. Every step is an elementwise
    IEEE operation, and each number's sum is made in the order of the updates: so the same updates in the same
    order give the same bits on every machine, in whatever blocks they come and into however many parts the
    weights are cut. Whole numbers (counters of a layer, say) are averaged likewise and rounded to the
    nearest; booleans are a weighted majority, ties are False.

    Source: McMahan et al., arXiv:1602.05629v4, Algorithm 1 (FederatedAveraging), server's update.
    """

    def __init__(self, layout: Layout, begin: int, end: int) -> None:
        """`begin`, `end`: positions as those of `Layout.shard`."""
        self._layout = layout
        self._begin, self._end = begin, end
        self._samples = 0
        self._scratch = np.empty(_BLOCK, np.float64)
        self._runs = []
        for dtype, places in groupby(layout.places, key=lambda place: place.shape.dtype):
            run = list(places)
            first, last = max(begin, run[0].begin), min(end, run[-1].end)
            if first < last:
                kind = np.dtype(dtype)
                sums = np.zeros((last - first) // kind.itemsize, np.float64)
                self._runs.append(_Run(kind, first, last, sums))

    def add(self, position: int, block: bytes, samples: int) -> None:
        """Add what an update trained on `samples` rows has from `position` on. See `finite`."""
        factor = np.float64(samples)
        with np.errstate(over="ignore", invalid="ignore"):  # it shows in the sum
            for run, at, values in self._cut(position, block):
                for begin in range(0, len(values), _BLOCK):
                    part = values[begin : begin + _BLOCK]
                    weighted = self._scratch[: len(part)]
                    np.copyto(weighted, part)
                    np.multiply(weighted, factor, out=weighted)
                    total = run.sums[at + begin : at + begin + len(part)]
                    np.add(total, weighted, out=total)

    def check(self, position: int, block: bytes) -> None:
        """UpdateRefused if a number is NaN or infinite."""
        for run, at, values in self._cut(position, block):
            if run.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
                place = run.begin + (at + int(np.argmin(finite))) * run.dtype.itemsize
                name = self._layout.tensor_at(place)
                raise UpdateRefused(f"tensor {name!r} has values that are NaN or infinite")

    def count(self, samples: int) -> None:
        """An update has been added from begin to end."""
        self._samples += samples

    def resume(self, pieces: Iterator[bytes], samples: int) -> None:
        """Begin with what `sums` gave, of updates trained on `samples` rows. ValueError for other bytes."""
        room = [run.sums.view(np.uint8) for run in self._runs]
        for piece in pieces:
            given = np.frombuffer(piece, np.uint8)
            while len(given):
                if not room:
                    raise ValueError("more sums than numbers")
                taken = min(len(given), len(room[0]))
                room[0][:taken] = given[:taken]
                given, room[0] = given[taken:], room[0][taken:]
                if not len(room[0]):
                    room.pop(0)
        if room:
            raise ValueError("fewer sums than numbers")
        self._samples = samples

    def sums(self) -> Iterator[bytes]:
        """The bytes of the sums so far, in order."""
        for run in self._runs:
            yield from _pieces(run.sums.view(np.uint8))

    def finite(self) -> bool:
        """Whether all sums are: a NaN or an infinity in an update stays in its sum, whatever is added."""
        return all(
            bool(np.isfinite(run.sums[begin : begin + _BLOCK]).all())
            for run in self._runs
            for begin in range(0, len(run.sums), _BLOCK)
        )

    def finish(self) -> None:
        """Make means of the sums. ValueError if nothing was added."""
        if self._samples < 1:
            raise ValueError(f"{self._samples} samples were added")
        total = np.float64(self._samples)
        for run in self._runs:
            means = run.sums.view(run.dtype)  # written behind where the sums are still to be read
            for begin in range(0, len(run.sums), _BLOCK):
                sums = run.sums[begin : begin + _BLOCK]
                mean = np.divide(sums, total, out=self._scratch[: len(sums)])
                means[begin : begin + len(sums)] = _as(mean, run.dtype)

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the finished part, in order."""
        for run in self._runs:
            yield from _pieces(run.sums.view(np.uint8)[: run.end - run.begin])

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The finished tensors, if the part is the whole; they share the average's memory."""
        found = {}
        for place in self._layout.places:
            run = next((one for one in self._runs if one.begin <= place.begin <= place.end <= one.end), None)
            if run is None:  # without numbers in it
                found[place.name] = np.zeros(place.shape.dims, place.shape.dtype)
                continue
            first, last = ((at - run.begin) // run.dtype.itemsize for at in (place.begin, place.end))
            found[place.name] = run.sums.view(run.dtype)[first:last].reshape(place.shape.dims)
        return {name: found[name] for name in self._layout.shapes}

    def _cut(self, position: int, block: bytes) -> Iterator[tuple[_Run, int, NDArray[np.generic]]]:
        """The runs that a block touches: where in them, and with which numbers."""
        for run in self._runs:
            first, last = max(position, run.begin), min(position + len(block), run.end)
            if first < last:
                width = run.dtype.itemsize
                values = np.frombuffer(block, run.dtype, (last - first) // width, first - position)
                yield run, (first - run.begin) // width, values


def _pieces(data: NDArray[np.uint8]) -> Iterator[bytes]:
    for begin in range(0, len(data), _PIECE_BYTES):
        yield data[begin : begin + _PIECE_BYTES].tobytes()


def _as(mean: NDArray[np.float64], kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    if kind.kind == "b":
        return mean > 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind.name)
        return np.clip(np.rint(mean), limits.min, limits.max).astype(kind)
    return mean.astype(kind)
