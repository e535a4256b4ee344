"""The right to act, for a short time: what keeps a keeper that was frozen or cut off from starting effects.

Raft would let a deposed conductor go on; its commands would be rejected, but what it has invoked is invoked.
So an effect is only started within `lease_s` of the moment at which the last command was *proposed* that the
log confirmed under the conductor's epoch: nobody else was elected and applied a claim before that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from fedkeeper.errors import EpochOver

Seconds = Callable[[], float]


def since_boot_s() -> float:
    """Seconds that go on while this process, or the whole machine, is stopped; wall clocks have no say."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """One epoch's. Every effect is done within `effect`."""

    def __init__(self, lease_s: float, *, clock: Seconds = since_boot_s) -> None:
        self.lease_s = lease_s
        self.now = clock
        self.wanted = asyncio.Event()  # somebody waits for it: renew it now
        self._until = float("-inf")
        self._revoked = False
        self._suspended = False
        self._moved = asyncio.Event()
        self._under_way = 0  # effects
        self._quiet = asyncio.Event()
        self._quiet.set()

    def held(self) -> bool:
        """Whether an effect may be started now, for all that the log has confirmed."""
        return not self._revoked and self.now() < self._until

    def left_s(self) -> float:
        """For how long it holds; negative if it does not."""
        return self._until - self.now()

    def confirmed(self, proposed_at: float) -> None:
        """A command that was proposed at `proposed_at` (by `now`) was applied under this epoch."""
        self._until = max(self._until, proposed_at + self.lease_s)
        self.wanted.clear()
        self._wake()

    def revoke(self) -> None:
        """For good: the epoch is over."""
        self._revoked = True
        self._wake()

    async def hold(self) -> None:
        """Return when an effect may be started. EpochOver once none may any more."""
        while self._suspended or not self.held():
            if self._revoked:
                raise EpochOver("this keeper does not conduct any more")
            moved = self._moved
            if not self._suspended:
                self.wanted.set()
            await moved.wait()

    @contextlib.asynccontextmanager
    async def effect(self) -> AsyncIterator[None]:
        """Wait for the right to act, then act; `drain` waits for the end of it."""
        await self.hold()
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    async def drain(self, timeout_s: float) -> None:
        """Begin no further effect; return when those under way have ended, or after `timeout_s`."""
        self._suspended = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()

    def resume(self) -> None:
        """Undo `drain`: nobody took over after all."""
        self._suspended = False
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
