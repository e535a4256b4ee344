"""What both flavours of invocation have in common: leases of workers, clocks, logs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Protocol

from fedkeeper.fabric.model import Ran, Revision
from fedkeeper.fabric.output import ActivationLog
from fedkeeper.fabric.verdict import INTERNAL_ERROR
from fedkeeper.fabric.worker import Worker

SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
LOGS_S_MAX = 2.0  # how long the end of a log is waited for when the result is there


class Leases(Protocol):
    """Gives out workers, and takes them back."""

    async def lease(self, revision: Revision) -> tuple[Worker, bool]:
        """A worker to make one call of, and whether it is new and bare. PoolFull, ServiceError."""
        ...

    async def release(self, worker: Worker, *, spoilt: bool) -> None:
        """Give a leased worker back; `spoilt`: it must not serve another call."""
        ...


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def open_log(worker: Worker, *, marked: bool = True) -> ActivationLog:
    """A log that takes the worker's lines from now on, until it is removed from `worker.output.logs`.

    `marked`: its end is told by the platform's sentinel with a secret, which the worker prints; so calls at
    the same time are told apart, and a function cannot end its own log.
    """
    marker = f"{SENTINEL}:{os.urandom(8).hex()}" if marked else ""
    log = ActivationLog(worker.revision.limits.logs_mb << 20, marker)
    worker.output.logs.append(log)
    return log


async def completed(log: ActivationLog) -> None:
    """Wait until both streams have shown the marker; not for ever, a function may have closed them."""
    if log.complete.is_set():
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOGS_S_MAX):
            await log.complete.wait()


def not_run(accepted_ms: int, problem: str) -> Ran:
    """An activation for which there was no worker: the platform's own fault."""
    now = now_ms()
    return Ran(
        status=INTERNAL_ERROR,
        result={"error": problem},
        logs=(),
        start_ms=now,
        end_ms=now,
        wait_ms=now - accepted_ms,
        init_ms=None,
    )
