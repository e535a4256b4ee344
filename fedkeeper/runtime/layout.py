"""Where in a stored object which tensor lies: enough to read, average and write a part of it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from fedkeeper.errors import ObjectDamaged

# As safetensors spells them, https://huggingface.co/docs/safetensors: those that can be averaged.
_DTYPES: Final[Mapping[str, str]] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
ALIGNMENT: Final = 8  # bytes; no number of these dtypes lies across a multiple of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is known of a tensor without its values."""

    dims: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.dims)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One tensor; positions are bytes from the first one behind the header."""

    name: str
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An object's bytes: a header, then all tensors without gaps, the wider dtypes first."""

    header_bytes: int
    nbytes: int  # with the header
    places: tuple[Place, ...]  # by position
    shapes: Mapping[str, Shape]  # in the tensors' own order

    @property
    def data_bytes(self) -> int:
        """Behind the header."""
        return self.nbytes - self.header_bytes

    @classmethod
    def of(cls, description: Sequence[Mapping[str, Any]], nbytes: int) -> Layout:
        """From what `tensors.describe` says. ObjectDamaged for gaps, or dtypes that cannot be averaged."""
        header_bytes = min((one["begin"] for one in description), default=nbytes)
        shapes, places = {}, []
        for one in description:
            name, dtype = one["name"], _DTYPES.get(one["dtype"])
            if dtype is None:
                raise ObjectDamaged(f"tensor {name!r} has dtype {one['dtype']}, which cannot be averaged")
            shapes[name] = Shape(dims=tuple(one["shape"]), dtype=dtype)
            begin, end = one["begin"] - header_bytes, one["end"] - header_bytes
            width = np.dtype(dtype).itemsize
            if end - begin != prod(one["shape"]) * width or begin % width:
                raise ObjectDamaged(f"tensor {name!r} of {shapes[name]} lies in bytes {begin} to {end}")
            places.append(Place(name=name, shape=shapes[name], begin=begin, end=end))
        places.sort(key=lambda place: (place.begin, place.end))
        ends = [0, *(place.end for place in places)]
        if [place.begin for place in places] != ends[:-1] or ends[-1] != nbytes - header_bytes:
            raise ObjectDamaged("there are gaps between the tensors")
        if header_bytes % ALIGNMENT:
            raise ObjectDamaged(f"its header has {header_bytes} bytes, no multiple of {ALIGNMENT}")
        return cls(header_bytes=header_bytes, nbytes=nbytes, places=tuple(places), shapes=shapes)

    def shard(self, number: int, count: int) -> tuple[int, int]:
        """Position of the first byte of shard `number` of `count`, and of the one after its last."""
        return self._cut(number, count), self._cut(number + 1, count)

    def tensor_at(self, position: int) -> str:
        """The name of the tensor that has this byte."""
        return next(place.name for place in self.places if place.begin <= position < place.end)

    def _cut(self, number: int, count: int) -> int:
        at = self.data_bytes * number // count
        return at if number == count else at // ALIGNMENT * ALIGNMENT
