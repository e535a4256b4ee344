"""The Cloud Functions API's quotas, which count requests per minute: pacing, and what a refusal says.

Source: https://docs.cloud.google.com/functions/quotas, section "Rate Limits", column 2nd gen: 1,200 reads and
60 writes in 60 s, for a project in a region. A read describes or lists, a write deploys or deletes.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedkeeper.clock import Clock

READS_PER_MINUTE: Final = 1200
WRITES_PER_MINUTE: Final = 60
_WINDOW_MS: Final = 60_000
_RETRY_INFO: Final = "google.rpc.RetryInfo"
_DELAY: Final = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)s")


class Pace:
    """At most so many requests in any minute (0: any number); who comes too early waits, in order."""

    def __init__(self, clock: Clock, *, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._times_ms: deque[int] = deque()
        self._lock = asyncio.Lock()

    async def turn(self) -> float:
        """Return when one more request may go out; the seconds that this took."""
        if not self._per_minute:
            return 0.0
        async with self._lock:
            started_ms = self._clock.now_ms()
            while True:
                now_ms = self._clock.now_ms()
                while self._times_ms and self._times_ms[0] <= now_ms - _WINDOW_MS:
                    self._times_ms.popleft()
                if len(self._times_ms) < self._per_minute:
                    self._times_ms.append(now_ms)
                    return (now_ms - started_ms) / 1000
                await self._clock.sleep((self._times_ms[0] + _WINDOW_MS - now_ms) / 1000)


def retry_info_s(details: Iterable[Any]) -> float | None:
    """Seconds of the google.rpc.RetryInfo among an error's details; None if there is none."""
    for one in details:
        delay = None
        if isinstance(one, Mapping) and str(one.get("@type", "")).endswith(_RETRY_INFO):
            delay = one.get("retryDelay")
        elif type(one).__name__ == "RetryInfo":  # the SDK may have made a message of it
            return float(one.retry_delay.total_seconds())
        match = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
        if match:
            return float(match[1])
    return None
