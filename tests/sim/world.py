"""Time and chance of a simulated world: both from one seed."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

Event = Callable[[], object]


class World:
    """Time jumps from event to event."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - no secret, and a seed must replay
        self.now_ms = self.chance.randint(0, 10**12)
        self._events: list[tuple[int, int, Event]] = []
        self._order = itertools.count()

    def at(self, after_ms: int, event: Event) -> None:
        """Have it happen; what comes at the same time happens in the order in which it was said."""
        heapq.heappush(self._events, (self.now_ms + after_ms, next(self._order), event))

    def step(self) -> bool:
        """The next event; False if there is none."""
        if not self._events:
            return False
        self.now_ms, _, event = heapq.heappop(self._events)
        event()
        return True

    def happens(self, probability: float) -> bool:
        """By chance."""
        return self.chance.random() < probability

    def end(self) -> None:
        """Nothing more happens."""
        self._events.clear()
