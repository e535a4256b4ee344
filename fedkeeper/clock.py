"""Time as a part that can be exchanged: the real one, and one that tests turn by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What the effects use for time; the core never sees it."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


class FakeClock:
    """Stands still until `advance` is called; sleepers wake in the order of their times."""

    def __init__(self, start_ms: int = 1_000_000) -> None:
        self._now_ms = start_ms
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """The time that was set, in milliseconds."""
        return self._now_ms

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced past `seconds` from now."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_ms + round(seconds * 1000), next(self._order), future))
        await future

    async def advance(self, ms: int) -> None:
        """Move the time on by `ms`, letting every sleeper that falls due run at its own time."""
        end = self._now_ms + ms
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._now_ms = max(self._now_ms, at)
            if not future.done():
                future.set_result(None)
            await _settle()
        self._now_ms = end
        await _settle()


async def _settle(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
