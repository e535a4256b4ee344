"""A real pool with real worker processes, and short ways to make and run functions."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.fabric.model import HttpRequest, Limits, Ran, Revision
from fedkeeper.fabric.pool import Pool
from tests.fabric.workers.folders import write_folder

CONTEXT = {
    "namespace": "guest",
    "action_name": "/guest/f",
    "action_version": "0.0.1",
    "transaction_id": "t1",
    "deadline": "0",
}


async def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll until `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.02)


def exists(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Bench:
    """Makes revisions and runs them on pools that end with the test."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.root = root
        self._stack = stack
        self._ids = itertools.count()
        self.pool: Pool

    async def open(
        self, *, memory_mb: int = 4096, queue_max: int = 8, idle_s: float = 60.0, **more: Any
    ) -> Pool:
        folder = self.root / f"pool{next(self._ids)}"
        self.pool = await self._stack.enter_async_context(
            Pool.open(folder, memory_mb=memory_mb, queue_max=queue_max, idle_s=idle_s, **more)
        )
        return self.pool

    def revision(
        self,
        source: str | Mapping[str, str],
        *,
        flavour: str = "openwhisk",
        entry: str = "main",
        environment: Mapping[str, str] | None = None,
        **limits: int,
    ) -> Revision:
        number = next(self._ids)
        main = "__main__.py" if flavour == "openwhisk" else "main.py"
        files = {main: source} if isinstance(source, str) else source
        return Revision(
            id=f"rev{number}",
            flavour=flavour,
            name="/guest/f" if flavour == "openwhisk" else "projects/p/locations/l/functions/f",
            folder=write_folder(self.root / f"f{number}", files),
            entry=entry,
            limits=Limits(**limits),
            environment=environment or {},
        )

    async def run(self, revision: Revision, **arguments: Any) -> Ran:
        return await self.pool.run(revision, os.urandom(16).hex(), arguments, CONTEXT)

    async def get(self, revision: Revision, path: str = "/", body: bytes = b"", **headers: str) -> Any:
        method = "POST" if body else "GET"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.pool.serve(
            revision, HttpRequest(method=method, path=path, headers=named, body=body)
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench; `await bench.open()` gives it a pool."""
    async with AsyncExitStack() as stack:
        yield Bench(tmp_path, stack)
