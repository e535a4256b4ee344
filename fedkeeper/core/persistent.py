"""Collections that change by making another: what is shared is never written to, what differs is small.

A state with 100,000 entries is replaced 20,000 times a second, and every earlier one stays as it was. All
iterate in an order that depends on nothing but what was done to them, also after they were written down and
read back as a plain dictionary or list: replicas must not differ in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar, overload

V = TypeVar("V")
BUCKETS = 256
CHUNK = 128


class Buckets(Mapping[str, V]):
    """A dictionary in 256 parts, by a hash of the key that no process and no version draws differently.

    A change copies one part: 4 entries of 1,000, 400 of 100,000. Iterates bucket by bucket.
    """

    __slots__ = ("_buckets", "_size")

    def __init__(self, source: Mapping[str, V] | None = None) -> None:
        if isinstance(source, Buckets):
            self._buckets: tuple[dict[str, V], ...] = source._buckets
            self._size: int = source._size
            return
        buckets: list[dict[str, V]] = [{} for _ in range(BUCKETS)]
        for key, value in (source or {}).items():
            buckets[_bucket(key)][key] = value
        self._buckets = tuple(buckets)
        self._size = len(source or ())

    def __getitem__(self, key: str) -> V:
        return self._buckets[_bucket(key)][key]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._buckets)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Buckets):
            return self._buckets == other._buckets
        return Mapping.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]  # as of every mapping whose values may be anything

    def __repr__(self) -> str:
        return f"Buckets({dict(self)!r})"

    @classmethod
    def of(cls, source: Mapping[str, V]) -> Buckets[V]:
        """`source` itself, if it is one already."""
        return source if isinstance(source, Buckets) else cls(source)

    def put(self, key: str, value: V) -> Buckets[V]:
        """With `value` under `key`, as its bucket's last entry if it is new."""
        number = _bucket(key)
        bucket = self._buckets[number]
        changed = bucket.copy()
        changed[key] = value
        return self._with(number, changed, self._size + (key not in bucket))

    def drop(self, key: str) -> Buckets[V]:
        """Without `key`, which need not be there."""
        number = _bucket(key)
        bucket = self._buckets[number]
        if key not in bucket:
            return self
        return self._with(number, {k: v for k, v in bucket.items() if k != key}, self._size - 1)

    def _with(self, number: int, bucket: dict[str, V], size: int) -> Buckets[V]:
        buckets = list(self._buckets)
        buckets[number] = bucket
        other: Buckets[V] = Buckets.__new__(Buckets)
        other._buckets = tuple(buckets)
        other._size = size
        return other


def _bucket(key: str) -> int:
    try:
        return zlib.crc32(key.encode()) % BUCKETS
    except UnicodeEncodeError:  # a lone surrogate; slower, so only where it must be
        return zlib.crc32(key.encode(errors="surrogatepass")) % BUCKETS


class Recent(Mapping[str, V]):
    """The latest entries, in the order in which they came: `limit` at most, `limit - CHUNK` at least.

    In chunks that are full but for the last, so that a change copies one chunk, and a dictionary in this
    order gives the same chunks again.
    """

    __slots__ = ("_chunks",)

    def __init__(self, source: Mapping[str, V] | None = None) -> None:
        if isinstance(source, Recent):
            self._chunks: tuple[dict[str, V], ...] = source._chunks
            return
        items = list((source or {}).items())
        self._chunks = tuple(dict(items[first : first + CHUNK]) for first in range(0, len(items), CHUNK))

    def __getitem__(self, key: str) -> V:
        for chunk in self._chunks:
            if key in chunk:
                return chunk[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._chunks)

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def __repr__(self) -> str:
        return f"Recent({dict(self)!r})"

    def add(self, key: str, value: V, *, limit: int) -> Recent[V]:
        """With an entry that is not there yet as the last; the oldest chunk goes if there would be too many.

        `limit` is at least CHUNK.
        """
        chunks = self._chunks
        if chunks and len(chunks[-1]) < CHUNK:
            chunks = (*chunks[:-1], {**chunks[-1], key: value})
        else:
            chunks = (*chunks, {key: value})
        other: Recent[V] = Recent.__new__(Recent)
        other._chunks = chunks[1:] if len(chunks) > limit // CHUNK else chunks
        return other


class Grown(Sequence[V]):
    """A list that grows at its end: a change copies one chunk."""

    __slots__ = ("_chunks", "_size")

    def __init__(self, source: Iterable[V] = ()) -> None:
        if isinstance(source, Grown):
            self._chunks: tuple[tuple[V, ...], ...] = source._chunks
            self._size: int = source._size
            return
        items = tuple(source)
        self._chunks = tuple(items[first : first + CHUNK] for first in range(0, len(items), CHUNK))
        self._size = len(items)

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[V]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        at = range(self._size)[index]  # negative ones, and IndexError
        return self._chunks[at // CHUNK][at % CHUNK]

    def __iter__(self) -> Iterator[V]:
        return chain.from_iterable(self._chunks)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Grown):
            return self._chunks == other._chunks
        return isinstance(other, list | tuple) and len(other) == self._size and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Grown({list(self)!r})"

    @classmethod
    def of(cls, source: Sequence[V]) -> Grown[V]:
        """`source` itself, if it is one already."""
        return source if isinstance(source, Grown) else cls(source)

    def news(self, before: Sequence[V]) -> Iterator[V]:
        """What is not in `before`, from which this has grown; perhaps a few (CHUNK at most) that are."""
        theirs = before._chunks if isinstance(before, Grown) else ()
        same = min(len(self._chunks), len(theirs))
        while (
            same and self._chunks[same - 1] is not theirs[same - 1]
        ):  # what is before one that is shared, is
            same -= 1
        for chunk in self._chunks[same:]:
            yield from chunk

    def add(self, value: V) -> Grown[V]:
        """With `value` at the end."""
        chunks = self._chunks
        if chunks and len(chunks[-1]) < CHUNK:
            chunks = (*chunks[:-1], (*chunks[-1], value))
        else:
            chunks = (*chunks, (value,))
        other: Grown[V] = Grown.__new__(Grown)
        other._chunks = chunks
        other._size = self._size + 1
        return other


def _same(one: object, other: object) -> bool:
    return one is other or one == other


def thawed(value: object) -> object:
    """A mapping as a dictionary, a Grown as a list: what encoders take. TypeError for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Grown):
        return list(value)
    raise TypeError(f"a {type(value).__name__} has no place in JSON")
