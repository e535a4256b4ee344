"""Workers that are started before they are called: for which actions, how many, and when there is room."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from fedkeeper.fabric.admission import Admission
from fedkeeper.fabric.model import Revision

FAILURES_MAX: Final = 3  # of one key, then its next call shows what is wrong
log = structlog.get_logger(__name__)


class Expected:
    """The actions that asked for a ready worker. Each counts for one; those that share theirs, up to a bound.

    Nothing is evicted for them and no caller waits for their memory: they take what is free, and come back
    when a worker has ended and its memory is free again.
    """

    def __init__(
        self,
        admission: Admission,
        start: Callable[[Revision], Awaitable[bool]],
        *,
        at_once: int,
        each_max: int,
        idle_s: float,
    ) -> None:
        """`start` makes a ready worker of what `admission.ahead` has granted; False if it does not load.

        `at_once`: how many are started at a time; `each_max`: ready workers of one key; `idle_s`: seconds
        after the last call of any of them when none is started any more.
        """
        self._admission = admission
        self._start = start
        self._at_once = at_once
        self._each_max = each_max
        self._idle_s = idle_s
        self._revisions: collections.OrderedDict[str, dict[str, Revision]] = collections.OrderedDict()
        self._keys: dict[str, str] = {}  # by revision
        self._failures: collections.Counter[str] = collections.Counter()
        self._tasks: dict[asyncio.Task[None], str] = {}  # with the revision that each makes a worker of
        self._last_call = 0.0  # event loop's time; a deployment counts as well

    def expect(self, revision: Revision) -> None:
        """Of an action that was deployed or is called. The one called last is the last to be made ready."""
        key = revision.key
        self._revisions.setdefault(key, {})[revision.id] = revision
        self._revisions.move_to_end(key)
        self._keys[revision.id] = key
        self.called()

    def called(self) -> None:
        """An expected action is called this moment, or runs."""
        self._last_call = asyncio.get_running_loop().time()

    def forget(self, revision_id: str) -> None:
        """Of an action that was updated or deleted."""
        key = self._keys.pop(revision_id, "")
        if not key:
            return
        del self._revisions[key][revision_id]
        if not self._revisions[key]:
            del self._revisions[key]
            del self._failures[key]

    def knows(self, revision: Revision) -> bool:
        """False once it was updated or deleted."""
        return revision.id in self._keys

    async def settled(self, revision_id: str) -> None:
        """Wait for what is being started of a revision."""
        mine = [task for task, one in self._tasks.items() if one == revision_id]
        await asyncio.gather(*mine, return_exceptions=True)

    def idle(self) -> bool:
        """Whether no expected action has been called for so long that their workers may end."""
        return asyncio.get_running_loop().time() - self._last_call > self._idle_s

    def fill(self) -> None:
        """Start what is missing and finds room, in the background."""
        while len(self._tasks) < self._at_once and (revision := self._next()) is not None:
            task = asyncio.create_task(self._one(revision), name=f"worker ahead for {revision.name}")
            self._tasks[task] = revision.id
            task.add_done_callback(self._done)

    async def close(self) -> None:
        """Give up what is being started."""
        self._revisions.clear()
        self._keys.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _next(self) -> Revision | None:
        if self.idle():
            return None
        for key, revisions in self._revisions.items():
            if self._failures[key] >= FAILURES_MAX:
                continue
            if self._admission.count(key) < min(len(revisions), self._each_max):
                revision = next(iter(revisions.values()))
                if self._admission.ahead(revision):
                    return revision
        return None

    async def _one(self, revision: Revision) -> None:
        try:
            loaded = await self._start(revision)
        except Exception as exc:  # noqa: BLE001 - an optimisation; the next call will tell the user
            log.warning("no worker was started ahead", function=revision.name, error=repr(exc))
            loaded = False
        if loaded:
            del self._failures[revision.key]
        elif revision.key in self._revisions:
            self._failures[revision.key] += 1

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self.fill()
