"""Waiting for a long-running operation: with progress, with a limit, and through the API's moods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from google.api_core import exceptions as api

from fedkeeper.errors import (
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    Throttled,
)
from fedkeeper.providers.base import Progress
from fedkeeper.providers.google.resources import stage_of

T = TypeVar("T")
POLL_S: Final = (0.05, 5.0)  # first and longest pause between looks at an operation; each 1.5 times the last
TOLD_AFTER_S: Final = 5.0  # a deployment that is over by then needs no progress …
TOLD_EVERY_S: Final = 30.0  # … and a stage that lasts is told again
_log = structlog.get_logger(__name__)

Run = Callable[[Callable[[], T]], Awaitable[T]]
# What an operation's own error stands for: (cluster, function, error, the operation's metadata).
Blame = Callable[[str, str, api.GoogleAPICallError, Any], ProviderError]


class Watch:
    """One operation on one function, looked at until it ends."""

    def __init__(
        self,
        cluster: str,
        function: str,
        operation: Any,
        run: Run[Any],
        *,
        blame: Blame,
        progress: Progress,
    ) -> None:
        self._cluster = cluster
        self._function = function
        self._operation = operation
        self._run = run  # a look at the API, in a thread and paced
        self._blame = blame
        self._progress = progress
        self._stage = ""
        self._told_s = 0.0  # of the waiting, when progress was last told

    async def result(self, *, timeout_s: float) -> Any:
        """What the operation came to. A look that fails is not the operation's end: the next one tells.

        Raises what `blame` makes of the operation's error, InvocationUnknown after `timeout_s`, and what the
        platform says when it will not tell (401, 403, 404).
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        pause_s, longest_s = POLL_S
        last: ProviderError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    wait_s = pause_s
                    try:
                        if await self._run(self._operation.done):
                            break
                        self._tell(loop.time() - started_s)
                    except Throttled as exc:
                        last, wait_s = exc, exc.retry_after_s
                    except (ProviderUnavailable, InvocationUnknown) as exc:
                        last = exc
                    await asyncio.sleep(wait_s)
                    pause_s = min(longest_s, pause_s * 1.5)
        except TimeoutError as exc:
            why = f" (last look: {last.problem})" if last else ""
            raise InvocationUnknown(
                self._cluster,
                self._function,
                f"not finished after {timeout_s:g} s, still going on{why}",
                hint="raise limits.deploy_timeout_s; the same command again looks before it acts",
            ) from exc
        return self._ended()

    def _ended(self) -> Any:
        """The result is here already: nothing is asked for."""
        try:
            return self._operation.result(timeout=0)
        except api.GoogleAPICallError as exc:
            raise self._blame(self._cluster, self._function, exc, self._operation.metadata) from exc

    def _tell(self, waited_s: float) -> None:
        """Say which stage it is in: in the log when that changes, to people when it takes long."""
        stage = stage_of(self._operation.metadata)
        if stage != self._stage:
            self._stage, self._told_s = stage, 0.0
            _log.info("deploying", cluster=self._cluster, function=self._function, stage=stage)
        due_s = self._told_s + TOLD_EVERY_S if self._told_s else TOLD_AFTER_S
        if stage and waited_s >= due_s:
            self._progress(f"{stage}, {waited_s:.0f} s so far")
            self._told_s = waited_s
