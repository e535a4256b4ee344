"""A front of tests that is spoken to by raw sockets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fedkeeper.fabric.front import FrontSettings
from tests.fabric.api.conftest import Fabric, OpenFabric

LIMIT_S = 60
COUNT = "def main(args):\n    return {'hello': args['name'][:8], 'bytes': len(args['name'])}\n"
MEGABYTE = 1024 * 1024
WHISK, GOOGLE, OPENFAAS = "/api/v1/namespaces/_/actions/hello", "/token", "/async-function/echo"


def head(fabric: Fabric, path: str, *more: str) -> bytes:
    """Of a POST that proves itself to OpenWhisk."""
    key = base64.b64encode(fabric.credentials.openwhisk["guest"].encode()).decode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Basic {key}"]
    return "\r\n".join([*lines, "Content-Type: application/json", *more, "", ""]).encode()


class Socket(asyncio.Protocol):
    """A client with no library between; it keeps what comes, whatever becomes of the connection."""

    def __init__(self) -> None:
        self.received = b""
        self._transport: asyncio.Transport
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._may_write.set()

    async def send(self, data: bytes) -> bool:
        """Whether the connection still was there."""
        self._transport.write(data)
        await self._may_write.wait()
        return not self._ended.is_set()

    async def rest(self) -> bytes:
        """All that has come when the other side closes; waits for that."""
        async with asyncio.timeout(LIMIT_S):
            await self._ended.wait()
        return self.received

    def drop(self) -> None:
        self._transport.abort()


@asynccontextmanager
async def connected(fabric: Fabric, first: bytes = b"") -> AsyncIterator[Socket]:
    """A connection that has sent `first`."""
    port = int(fabric.url.rpartition(":")[2])
    _, client = await asyncio.get_running_loop().create_connection(Socket, "127.0.0.1", port)
    try:
        await client.send(first)
        yield client
    finally:
        client.drop()


async def assert_serves(fabric: Fabric) -> None:
    """A newcomer on a connection of its own gets its answer, from each of the platforms."""
    async with asyncio.timeout(LIMIT_S):
        answers = [
            await fabric.call("POST", "actions/hello?blocking=true", {"name": "next"}),
            await fabric.call("GET", "/oauth2/v1/certs"),
            await fabric.call("GET", "/healthz"),
        ]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[0].body["response"]["result"]["hello"] == "next"


@asynccontextmanager
async def opened(open_fabric: OpenFabric, **settings: object) -> AsyncIterator[Fabric]:
    """A fabric with an action, and bounds as given."""
    async with open_fabric(FrontSettings(**settings)) as fabric:  # type: ignore[arg-type]
        assert (await fabric.put("hello", COUNT)).status == 200
        yield fabric


async def until(condition: Callable[[], object]) -> None:
    """Poll until `condition` holds."""

    async def holds() -> bool:
        return bool(condition())

    await until_async(holds)


async def until_async(condition: Callable[[], Awaitable[bool]], *, becomes: bool = True) -> None:
    """Poll until `condition` is so."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if await condition() is becomes:
                return
            await asyncio.sleep(0.01)
