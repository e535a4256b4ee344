"""What the keeper needs of the store: to learn what became of keys, and to tidy up. Never tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from fedkeeper.runtime.wire import Claim, Outcome


class UpdateStore(Protocol):
    """The keeper's view of the store; every call is bounded by the store's own time limit.

    Raises StoreUnavailable when there is no answer in time, StoreRefused on wrong credentials.
    """

    async def ping(self) -> None:
        """Return if the store answers and the credentials may read and write."""
        ...

    async def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known: one query however many there are."""
        ...

    async def claims(self, keys: Collection[str]) -> dict[str, Claim]:
        """Who works, or worked, on `keys`: one query however many there are."""
        ...

    async def prune(self, run: str, *, before_round: int) -> int:
        """Delete weights, updates, claims and outcomes of rounds below `before_round`; how many objects.

        Data assignments stay.
        """
        ...

    async def drop(self, run: str) -> int:
        """Delete everything of `run`; how many objects."""
        ...

    async def sweep(self, *, older_than_s: float) -> int:
        """Delete blobs that no object names and that are older than that; how many."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...
