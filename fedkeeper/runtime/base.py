"""What a function needs of the store. The functions' side is synchronous: one activation, one thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import ObjectDamaged, ObjectMissing
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.wire import Outcome, Ref

Tensors = Mapping[str, NDArray[np.generic]]  # in the order in which they are stored


class StoredObject(Protocol):
    """An object of the store, to be read in parts."""

    @property
    def layout(self) -> Layout:
        """Where its tensors are. ObjectDamaged if such tensors cannot be averaged."""
        ...

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Its bytes from `begin` to `end`, piece by piece.

        ObjectDamaged if bytes and sha256 differ, perhaps only at the end: until then nothing may come of
        what was read. ObjectMissing if it is deleted meanwhile.
        """
        ...


class ObjectStore(Protocol):
    """Tensors by name, claims and outcomes by key. `runtime.store.MongoObjects` is the real one.

    Everything written is durable (majority, journalled) when the call returns. A store that is away is
    waited for within the limit it was opened with, then StoreUnavailable.
    """

    def put(self, name: str, tensors: Tensors, *, run: str, round_no: int) -> Ref:
        """Store `tensors` under `name`; the same name again replaces it. Blobs first, name last."""
        ...

    def get(self, name: str, *, sha256: str = "") -> dict[str, NDArray[np.generic]]:
        """The tensors under `name`. ObjectMissing; ObjectDamaged if bytes and sha256 differ."""
        ...

    def put_bytes(
        self,
        name: str,
        description: Sequence[Mapping[str, Any]],
        pieces: Callable[[], Iterator[bytes]],
        *,
        run: str,
        round_no: int,
    ) -> Ref:
        """As `put`, of bytes that are never in memory all at once.

        `description`: as `tensors.describe` says it; empty for a part of an object, which has no header.
        `pieces` is called again if they must be sent again.
        """
        ...

    def hand_in(self, key: str, update: Tensors, *, run: str, round_no: int, whole: bool = False) -> Ref:
        """Store what a client has trained, under its key. `whole`: nobody will read a part of it alone.

        As `put`; but a small one may be there only when `publish` has recorded the outcome of that key: the
        outcome takes it along, in one write. Without such an outcome, or after a bad one, it is dropped.
        """
        ...

    def open(self, name: str, *, sha256: str = "") -> StoredObject:
        """To read it in parts. ObjectMissing; ObjectDamaged if its sha256 is said to be another one."""
        ...

    def open_each(self, refs: Sequence[Ref]) -> Iterator[StoredObject | ObjectMissing | ObjectDamaged]:
        """As `open`, of each in turn, but many with one question; what is wrong with one is not raised."""
        ...

    def claim(self, key: str, *, run: str, activation_id: str) -> bool:
        """True for the first to claim `key`, and for the same activation again; else False."""
        ...

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known."""
        ...

    def publish(self, outcome: Outcome) -> bool:
        """Record what became of a key. The first outcome of a key stands: False if there was one."""
        ...

    def close(self) -> None:
        """Give the connections back."""
        ...
