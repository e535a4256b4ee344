"""Many calls of which a few are made at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

Work = Coroutine[Any, Any, None]


class Lane:
    """At most `width` calls under way; the others wait in order, and cost nothing until their turn comes.

    Ten thousand tasks that wait for one semaphore would take seconds to be cancelled, in which a conductor
    does nothing else: each of them looks for itself among all that wait.
    """

    def __init__(self, width: int, start: Callable[[Work], object]) -> None:
        """`start` makes a task of a call."""
        self._width = width
        self._start = start
        self._waiting: deque[Callable[[], Work]] = deque()
        self._under_way = 0

    def add(self, call: Callable[[], Work]) -> None:
        """Make it when its turn comes."""
        self._waiting.append(call)
        self._go_on()

    def clear(self) -> None:
        """Make none of those that wait."""
        self._waiting.clear()

    def _go_on(self) -> None:
        while self._waiting and self._under_way < self._width:
            self._under_way += 1
            self._start(self._run(self._waiting.popleft()))

    async def _run(self, call: Callable[[], Work]) -> None:
        try:
            await call()
        finally:
            self._under_way -= 1
            self._go_on()
