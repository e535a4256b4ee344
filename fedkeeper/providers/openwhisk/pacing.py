"""How fast a namespace may be invoked: by its `/limits`, and by what it says when it was too fast. No I/O.

OpenWhisk counts every attempt of a clock minute, refused ones too, so that asking again and again keeps the
door shut. What is not allowed now is therefore not sent: the caller is told when to come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedkeeper.clock import Clock
from fedkeeper.errors import Throttled
from fedkeeper.providers.base import PlatformLimits
from fedkeeper.providers.openwhisk.records import is_per_minute

BUSY_TIMES_MAX: Final = 8  # the pause doubles up to so many times the first while the platform stays full
AT_ONCE_MAX: Final = 64  # above so many requests at once, after a pause, none is held back any more
MARGIN_S: Final = 0.5  # a minute begins later for whose clock is ahead


@dataclass(slots=True)
class Pace:
    """One namespace's. A refusal is waited out by the platform's clock, the rest goes by ours."""

    clock: Clock
    busy_wait_s: float  # first pause when too much is in flight
    limits: PlatformLimits = field(default_factory=PlatformLimits)
    _minute: int = -1
    _sent: int = 0  # in that minute
    _shut_ms: int = 0  # nothing is sent before
    _doubled: int = 1  # how many times the first pause the next one is
    _at_once: int | None = None  # requests under way at most; None: any number
    _under_way: int = 0

    def wait_s(self) -> float:
        """Seconds until one more may be sent; 0: now, and it counts as sent: call `answered` after it."""
        now_ms = self.clock.now_ms()
        if now_ms < self._shut_ms:
            return (self._shut_ms - now_ms) / 1000
        if now_ms // 60_000 != self._minute:
            self._minute, self._sent = now_ms // 60_000, 0
        if self.limits.per_minute is not None and self._sent >= self.limits.per_minute:
            return 60 - now_ms / 1000 % 60 + MARGIN_S
        if self._at_once is not None and self._under_way >= self._at_once:
            return self.busy_wait_s
        self._sent += 1
        self._under_way += 1
        return 0.0

    def answered(self, refusal: Throttled | None = None) -> None:
        """One that was sent has an answer, or never will have; `refusal`: it was one too many."""
        self._under_way -= 1
        if refusal is None:
            self._doubled = 1
            if self._at_once is not None:
                self._at_once = self._at_once * 2 if self._at_once < AT_ONCE_MAX else None
            return
        pause_s = refusal.retry_after_s
        if not is_per_minute(refusal.problem):  # one tries, when the pause is over; then two, then four
            pause_s = max(pause_s, self.busy_wait_s * self._doubled)
            self._doubled = min(self._doubled * 2, BUSY_TIMES_MAX)
            self._at_once = 1
        now_ms = self.clock.now_ms()
        self._shut_ms = max(self._shut_ms, now_ms + round(pause_s * 1000))
