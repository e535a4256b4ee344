"""Log lines that others can provoke: each kind at most once a minute, with the number of those left out."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

_EVERY_S: Final = 60.0
_KINDS_MAX: Final = 256  # then all are forgotten: better a line too many than memory without bound


class Complaints:
    """Warnings of one keeper about its network."""

    def __init__(self, keeper: str) -> None:
        self._keeper = keeper
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}  # when it may be said again; left out since

    def __call__(self, event: str, *kind: str, **facts: Any) -> None:
        """Log `event` with `facts`, unless the same event of the same `kind` was logged within a minute."""
        key = (event, *kind)
        again, left_out = self._said.get(key, (0.0, 0))
        now = time.monotonic()
        if now < again:
            self._said[key] = (again, left_out + 1)
            return
        if len(self._said) >= _KINDS_MAX:
            self._said.clear()
        self._said[key] = (now + _EVERY_S, 0)
        more = {"left_out": left_out} if left_out else {}
        structlog.get_logger().warning(event, keeper=self._keeper, **facts, **more)
