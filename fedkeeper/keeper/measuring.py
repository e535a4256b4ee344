"""How far this keeper is from the others and from the clusters: what `placement: latency` compares."""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import KeeperMeasured
from fedkeeper.errors import ClusterError, FedKeeperError, JournalUnconfirmed, KeeperStopped
from fedkeeper.keeper.lease import Seconds, since_boot_s
from fedkeeper.providers.base import Provider
from fedkeeper.replication.base import ClusterLog

log = structlog.get_logger(__name__)

SAMPLES: Final = 3  # the median counts
SAMPLE_S_MAX: Final = 2.0  # what takes longer was not reached
FIRST_S: Final = 1.0  # after the start, when the others have said where they are
REPEAT_S: Final = 300.0  # unchanged values are told again
CHANGED_BY: Final = 0.2  # part of the last value by which another one is news
CHANGED_BY_MS: Final = 1.0  # and at least so much: quicker than that, all are near

Probe = Callable[[str], Awaitable[None]]  # asks the API at a base URL for its health; raises if it cannot


class Measuring:
    """Beside the log of every keeper. One target after the other, a few requests each."""

    def __init__(
        self,
        *,
        keeper: str,
        log: ClusterLog,
        providers: Mapping[str, Provider],
        probe: Probe,
        every_s: float,
        eager: bool,
        clock: Clock,
        seconds: Seconds = since_boot_s,
    ) -> None:
        """`eager`: placement needs every measurement; else only changes are told."""
        self._keeper = keeper
        self._log = log
        self._providers = providers
        self._probe = probe
        self._every_s = every_s
        self._eager = eager
        self._clock = clock
        self._seconds = seconds
        self._told: Mapping[str, float] = {}
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled."""
        await self._clock.sleep(min(FIRST_S, self._every_s))
        while True:
            found = await self.measure()
            if self._eager or self._is_news(found):
                await self._tell(found)
            await self._clock.sleep(self._every_s)

    async def measure(self) -> dict[str, float]:
        """Latencies in ms, by "keeper/k2" and "cluster/ow"; what was not reached is left out."""
        found = {}
        for name, known in sorted(self._log.state.keepers.items()):
            if name != self._keeper and known.api:
                found[f"keeper/{name}"] = await self._median(functools.partial(self._probe, known.api))
        for name, provider in self._providers.items():
            found[f"cluster/{name}"] = await self._median(provider.check)
        return {name: ms for name, ms in found.items() if ms is not None}

    async def _median(self, ask: Callable[[], Awaitable[None]]) -> float | None:
        samples = []
        for _ in range(SAMPLES):
            begun = self._seconds()
            try:
                async with asyncio.timeout(SAMPLE_S_MAX):
                    await ask()
            except (FedKeeperError, OSError, TimeoutError):
                return None
            samples.append((self._seconds() - begun) * 1000)
        return round(statistics.median(samples), 3)

    def _is_news(self, found: Mapping[str, float]) -> bool:
        if self._seconds() - self._told_at >= REPEAT_S or found.keys() != self._told.keys():
            return True
        return any(
            abs(ms - self._told[name]) > max(CHANGED_BY_MS, CHANGED_BY * self._told[name])
            for name, ms in found.items()
        )

    async def _tell(self, found: Mapping[str, float]) -> None:
        try:
            await self._log.propose(
                KeeperMeasured(keeper=self._keeper, latencies=found, at_ms=self._clock.now_ms())
            )
        except KeeperStopped:
            raise
        except (ClusterError, JournalUnconfirmed) as exc:
            log.debug("latencies not told", problem=str(exc))
            return
        self._told, self._told_at = found, self._seconds()
