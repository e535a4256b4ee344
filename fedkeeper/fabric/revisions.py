"""Revisions on disk: each is extracted once, used by any number of activations, then deleted.

A revision may have variants: the same files for another caller or with another environment, which must not
share its workers. A variant's ID is that of its revision, a hyphen and what tells it from others.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from fedkeeper.fabric.model import Revision, Workers

_CLOSE_S: Final = 2.0  # a worker may be busy for as long as its time limit
log = structlog.get_logger(__name__)


class Revisions:
    """The folders `root/<revision id>/`."""

    def __init__(self, root: Path, workers: Workers) -> None:
        self._root = root
        self._workers = workers
        self._users: Counter[str] = Counter()
        self._variants: dict[str, set[str]] = {}
        self._retired: set[str] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._preparing: set[asyncio.Task[None]] = set()

    def folder(self, revision_id: str) -> Path:
        """Where the revision's files are."""
        return self._root / revision_id

    async def make(self, revision_id: str, extract: Callable[[Path], None]) -> None:
        """Have `extract` fill the revision's folder, off the event loop. Its errors are passed on."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(extract, self.folder(revision_id))

    def prepare(self, revision_id: str, expected: Revision | None = None) -> None:
        """Have the workers import, in the background, what the revision needs: for a quick first call.

        `expected`: have a worker of it ready as well.
        """

        async def prepare() -> None:
            try:
                with self.use(revision_id):
                    await self._workers.prepare(self.folder(revision_id))
                    if expected is not None and revision_id not in self._retired:
                        self._workers.expect(expected)
            except Exception as exc:  # noqa: BLE001 - an optimisation; the first call will tell the user
                log.warning("nothing was imported ahead", revision=revision_id, error=repr(exc))

        _keep(self._preparing, asyncio.create_task(prepare()))

    @contextlib.contextmanager
    def use(self, variant_id: str) -> Iterator[None]:
        """Keep the revision's files for as long as the block runs, even if it is retired meanwhile."""
        revision_id = variant_id.partition("-")[0]
        self._variants.setdefault(revision_id, set()).add(variant_id)
        self._users[revision_id] += 1
        try:
            yield
        finally:
            self._users[revision_id] -= 1
            if not self._users[revision_id]:
                del self._users[revision_id]
                if revision_id in self._retired:
                    self._remove(revision_id)

    async def retire(self, revision_id: str) -> None:
        """No new activation will use it: end its workers and delete its files once nobody needs them."""
        if not revision_id:
            return
        self._retired.add(revision_id)
        await self._retire_workers(revision_id)
        if not self._users[revision_id]:
            self._remove(revision_id)

    async def keep_only(self, wanted: set[str]) -> None:
        """Delete the folders of all other revisions: what a fabric before us left behind."""
        if self._root.exists():
            await asyncio.to_thread(_sweep, self._root, wanted)

    async def close(self) -> None:
        """Finish deletions that were begun; give up what is being imported ahead."""
        for task in self._preparing:
            task.cancel()
        if tasks := self._preparing | self._removals:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        for task in self._removals:
            task.cancel()  # the next fabric in this folder deletes what is left
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _retire_workers(self, revision_id: str, *, wait: bool = False) -> None:
        for variant_id in {revision_id} | self._variants.get(revision_id, set()):
            await self._workers.retire(variant_id, wait=wait)

    def _remove(self, revision_id: str) -> None:
        self._retired.discard(revision_id)

        async def remove() -> None:
            # A worker of it may be busy for another revision, with which it is shared.
            await self._retire_workers(revision_id, wait=True)
            self._variants.pop(revision_id, None)
            await asyncio.to_thread(shutil.rmtree, self.folder(revision_id), ignore_errors=True)

        _keep(self._removals, asyncio.create_task(remove()))


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _sweep(root: Path, wanted: set[str]) -> None:
    for folder in root.iterdir():
        if folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
