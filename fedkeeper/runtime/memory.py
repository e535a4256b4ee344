"""The functions' face of a store that is a few dictionaries: for tests and for trying functions out.

`weights.memory` is the keeper's face over the same `Shelf`. Tensors are kept as bytes, as in the real store,
so nobody can change what was stored, and damage can be staged.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import ObjectDamaged, ObjectMissing
from fedkeeper.runtime import tensors as codec
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.wire import Claim, Outcome, Ref

PIECE_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Held:
    """One object."""

    ref: Ref
    run: str
    round: int
    description: Sequence[Mapping[str, Any]]
    data: bytes = field(repr=False)


@dataclass(slots=True)
class Shelf:
    """The data itself, shared by both faces. Take `lock` to touch it."""

    objects: dict[str, Held] = field(default_factory=dict)
    claims: dict[str, tuple[str, Claim]] = field(default_factory=dict)  # key -> (run, claim)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryObject:
    """runtime.base.StoredObject in memory."""

    def __init__(self, held: Held) -> None:
        self._held = held

    @property
    def layout(self) -> Layout:
        """Where its tensors are."""
        return Layout.of(self._held.description, self._held.ref.nbytes)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Its bytes from `begin` to `end`, in small pieces."""
        for at in range(begin, end, PIECE_BYTES):
            yield self._held.data[at : min(at + PIECE_BYTES, end)]


class MemoryObjects:
    """runtime.base.ObjectStore in memory. Safe for threads."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf if shelf is not None else Shelf()

    def put(self, name: str, tensors: Mapping[str, NDArray[np.generic]], *, run: str, round_no: int) -> Ref:
        """Store `tensors` under `name`; the same name again replaces it."""
        data = codec.pack(tensors)
        return self.put_bytes(name, codec.describe(data), lambda: iter([data]), run=run, round_no=round_no)

    def put_bytes(
        self,
        name: str,
        description: Sequence[Mapping[str, Any]],
        pieces: Callable[[], Iterator[bytes]],
        *,
        run: str,
        round_no: int,
    ) -> Ref:
        """As `put`, of bytes."""
        data = b"".join(pieces())
        ref = Ref(name=name, sha256=hashlib.sha256(data).hexdigest(), nbytes=len(data))
        with self.shelf.lock:
            self.shelf.objects[name] = Held(
                ref=ref, run=run, round=round_no, description=description, data=data
            )
        return ref

    def get(self, name: str, *, sha256: str = "") -> dict[str, NDArray[np.generic]]:
        """The tensors under `name`, in their order. ObjectMissing; ObjectDamaged."""
        return codec.unpack(self._held(name, sha256).data)[0]

    def hand_in(
        self,
        key: str,
        update: Mapping[str, NDArray[np.generic]],
        *,
        run: str,
        round_no: int,
        whole: bool = False,
    ) -> Ref:
        """As `put`: there is nothing to be saved by waiting for the outcome, nor by `whole`."""
        del whole
        return self.put(key, update, run=run, round_no=round_no)

    def open(self, name: str, *, sha256: str = "") -> MemoryObject:
        """To read it in parts. ObjectMissing; ObjectDamaged."""
        return MemoryObject(self._held(name, sha256))

    def open_each(self, refs: Sequence[Ref]) -> Iterator[MemoryObject | ObjectMissing | ObjectDamaged]:
        """As `open`, of each in turn; what is wrong with one is not raised."""
        for ref in refs:
            try:
                yield self.open(ref.name, sha256=ref.sha256)
            except (ObjectMissing, ObjectDamaged) as exc:
                yield exc

    def claim(self, key: str, *, run: str, activation_id: str) -> bool:
        """True for the first to claim `key`, and for the same activation again; else False."""
        ours = Claim(key=key, activation_id=activation_id, at_ms=time.time_ns() // 1_000_000)
        with self.shelf.lock:
            return self.shelf.claims.setdefault(key, (run, ours))[1].activation_id == activation_id

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known."""
        with self.shelf.lock:
            return {key: self.shelf.outcomes[key] for key in keys if key in self.shelf.outcomes}

    def publish(self, outcome: Outcome) -> bool:
        """Record what became of a key. The first outcome of a key stands: False if there was another."""
        with self.shelf.lock:
            return self.shelf.outcomes.setdefault(outcome.key, outcome) == outcome

    def close(self) -> None:
        """Nothing to give back."""

    def _held(self, name: str, sha256: str) -> Held:
        with self.shelf.lock:
            held = self.shelf.objects.get(name)
        if held is None:
            raise ObjectMissing(f"no object {name!r} in memory")
        found = hashlib.sha256(held.data).hexdigest()
        if found != held.ref.sha256 or (sha256 and found != sha256):
            raise ObjectDamaged(f"{name!r}: sha256 is {found}, {sha256 or held.ref.sha256} was expected")
        return held
