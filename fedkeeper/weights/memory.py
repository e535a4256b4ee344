"""The keeper's face of the memory store; `runtime.memory` is the functions' face over the same Shelf."""

from __future__ import annotations

from collections.abc import Collection

from fedkeeper.runtime.memory import Shelf
from fedkeeper.runtime.mongo import ROWS, kind_of, round_of
from fedkeeper.runtime.wire import Claim, Outcome


class MemoryUpdates:
    """weights.base.UpdateStore in memory."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf if shelf is not None else Shelf()

    async def ping(self) -> None:
        """Memory is always there."""

    async def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known."""
        with self.shelf.lock:
            return {key: self.shelf.outcomes[key] for key in keys if key in self.shelf.outcomes}

    async def claims(self, keys: Collection[str]) -> dict[str, Claim]:
        """Who works, or worked, on `keys`."""
        with self.shelf.lock:
            return {key: self.shelf.claims[key][1] for key in keys if key in self.shelf.claims}

    async def prune(self, run: str, *, before_round: int) -> int:
        """Delete what rounds below `before_round` left, but for data assignments; how many objects."""
        return self._delete(run, before_round)

    async def drop(self, run: str) -> int:
        """Delete everything of `run`; how many objects."""
        return self._delete(run, None)

    async def sweep(self, *, older_than_s: float) -> int:
        """There are no blobs apart from objects here: 0."""
        del older_than_s
        return 0

    async def close(self) -> None:
        """Nothing to give back."""

    def _delete(self, run: str, before_round: int | None) -> int:
        """`before_round` None: all of it, data assignments too."""

        def is_old(round_no: int) -> bool:
            return before_round is None or round_no < before_round

        with self.shelf.lock:
            for key, (owner, _) in list(self.shelf.claims.items()):
                if owner == run and is_old(round_of(key, run)):
                    del self.shelf.claims[key]
            for key, outcome in list(self.shelf.outcomes.items()):
                if outcome.run == run and is_old(round_of(key, run)):
                    del self.shelf.outcomes[key]
            gone = [
                name
                for name, held in self.shelf.objects.items()
                if held.run == run
                and is_old(held.round)
                and (before_round is None or kind_of(name, run) != ROWS)
            ]
            for name in gone:
                del self.shelf.objects[name]
            return len(gone)
