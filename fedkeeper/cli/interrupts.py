"""Ctrl-C: the first one stops in order, the second one at once, a third one ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from fedkeeper.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, signals come here. `graceful` is what the first one calls, if set.

    `stopping` is what is said then.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = 0
        self.graceful: Callable[[], None] | None = None
        self.stopping = "stopping: the state is kept, the same command resumes (Ctrl-C again: at once)"
        self._say = say
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        # Not in the main thread (a test, a notebook): Ctrl-C is somebody else's business there.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            for one in SIGNALS:
                loop.add_signal_handler(one, self.interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            for one in SIGNALS:
                loop.remove_signal_handler(one)

    def interrupt(self) -> None:
        """What a signal does."""
        self.count += 1
        if self.count == 1 and self.graceful is not None:
            self._say(self.stopping)
            self.graceful()
        elif self.count <= 2 and self._task is not None:
            self._say("stopping at once" if self.count == 2 else "stopping (Ctrl-C again: at once)")
            self._task.cancel()
        else:
            os._exit(Interrupted.exit_code)


def execute(work: Callable[[Interrupts], Awaitable[None]], *, say: Callable[[str], None]) -> None:
    """Run `work` on a loop of its own. Interrupted (exit 130) when a signal ended it."""

    async def guarded() -> None:
        with Interrupts(say) as interrupts:
            try:
                await work(interrupts)
            except asyncio.CancelledError:
                if not interrupts.count:
                    raise
                raise Interrupted("interrupted", hint="the same command goes on where it was") from None

    asyncio.run(guarded())
