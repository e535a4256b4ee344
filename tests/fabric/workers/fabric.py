"""The whole fabric of a test: the front with both APIs over a pool of real worker processes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from fedkeeper.fabric.credentials import make_credentials
from fedkeeper.fabric.front import FrontSettings, listen, open_front
from fedkeeper.fabric.pool import Pool


@dataclass
class Whisk:
    """A client of its OpenWhisk API, as `guest`."""

    url: str
    pool: Pool
    folder: Path
    auth: str = field(repr=False)
    http: aiohttp.ClientSession = field(repr=False)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of a call under /namespaces/_/."""
        headers = {"Authorization": f"Basic {base64.b64encode(self.auth.encode()).decode()}"}
        url = f"{self.url}/api/v1/namespaces/_/{path}"
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def put(self, name: str, code: str | bytes, *, kind: str = "python:3", **more: Any) -> None:
        """Create or update an action of a source file or a zip."""
        text = base64.b64encode(code).decode() if isinstance(code, bytes) else code
        body = {"exec": {"kind": kind, "code": text}, **more}
        status, answer = await self.call("PUT", f"actions/{name}?overwrite=true", body)
        assert status == 200, answer

    async def invoke(self, name: str, payload: Any = None) -> tuple[int, Any]:
        """Status and record of a blocking invocation."""
        return await self.call("POST", f"actions/{name}?blocking=true", payload or {})

    async def begin(self, name: str, payload: Any = None) -> str:
        """The activation ID of a non-blocking invocation."""
        status, answer = await self.call("POST", f"actions/{name}", payload or {})
        assert status == 202, answer
        identity: str = answer["activationId"]
        return identity

    async def record(self, activation_id: str, seconds: float = 60.0) -> Any:
        """The record, waited for."""
        end = time.monotonic() + seconds
        while True:
            status, answer = await self.call("GET", f"activations/{activation_id}")
            if status == 200:
                return answer
            assert time.monotonic() < end, answer
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_whisk(
    folder: Path, *, settings: FrontSettings | None = None, memory_mb: int = 4096, **pool: Any
) -> AsyncIterator[Whisk]:
    """A fabric on a free port, for as long as the block runs."""
    with listen(0, fallback=False) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
        credentials = make_credentials(folder, namespaces=["guest"], projects=[], url=url)
        bounds = {"queue_max": 1000, "idle_s": 60.0, **pool}
        async with (
            Pool.open(folder / "pool", memory_mb=memory_mb, **bounds) as workers,
            open_front(folder, workers, credentials, listener, settings=settings),
            aiohttp.ClientSession(json_serialize=json.dumps) as http,
        ):
            yield Whisk(url, workers, folder, credentials.openwhisk["guest"], http)
