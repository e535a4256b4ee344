"""Embedded services that die are started again, where they were, for as long as a session lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog

from fedkeeper.clock import Clock
from fedkeeper.errors import ServiceError

CHECK_S: Final = 0.5
RESTARTS_MAX: Final = 20  # in one session; a service that keeps dying has a reason that its log tells

log = structlog.get_logger(__name__)


async def keep_alive(service: str, ensure: Callable[[], Awaitable[bool]], clock: Clock) -> None:
    """Call `ensure` (start it again if it has died; True if it had) every CHECK_S, until cancelled."""
    restarts = 0
    while restarts < RESTARTS_MAX:
        await clock.sleep(CHECK_S)
        try:
            died = await ensure()
        except ServiceError as exc:
            log.error("an embedded service died and does not start", service=service, problem=str(exc))
            restarts += 1
            continue
        if died:
            restarts += 1
            log.warning("an embedded service died and was started again", service=service)
    log.error("an embedded service keeps dying: it is left alone", service=service, restarts=restarts)


def keep_open(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` beside everything else until `stack` is closed."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
    return task
