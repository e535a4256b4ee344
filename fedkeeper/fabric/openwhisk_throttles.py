"""How often a namespace may invoke actions and fire triggers.

Source: apache/openwhisk, core/controller/.../entitlement/{RateThrottler,ActivationThrottler}.scala.
"""

from __future__ import annotations

from collections.abc import Callable

from fedkeeper.fabric.openwhisk_entities import Bounds, Refused


class Throttles:
    """Counts per namespace: in the clock's present minute (every attempt counts), and in flight."""

    def __init__(self, bounds: Bounds, active: Callable[[str], int], clock: Callable[[], float]) -> None:
        self._bounds = bounds
        self._active = active
        self._clock = clock
        self._minute = -1
        self._counts: dict[tuple[str, str], int] = {}

    def invoke(self, namespace: str) -> None:
        """Count an attempt to invoke an action. Refused 429."""
        self._count("invoke", namespace, self._bounds.invocations_per_minute)
        count, allowed = self._active(namespace), self._bounds.concurrent_invocations
        if count >= allowed:
            raise too_many_in_flight(count, allowed)

    def fire(self, namespace: str) -> None:
        """Count an attempt to fire a trigger. Refused 429."""
        self._count("fire", namespace, self._bounds.fires_per_minute)

    def _count(self, what: str, namespace: str, allowed: int) -> None:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        count = self._counts[what, namespace] = self._counts.get((what, namespace), 0) + 1
        if count > allowed:
            words = f"Too many requests in the last minute (count: {count}, allowed: {allowed})."
            raise Refused(429, words)


def too_many_in_flight(count: int, allowed: int) -> Refused:
    """429 that is over as soon as something has ended."""
    words = f"Too many concurrent requests in flight (count: {count}, allowed: {allowed})."
    return Refused(429, words)
