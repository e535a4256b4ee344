"""Answers that take longer: sent in pieces, to readers that take them; others are dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from fedkeeper.errors import KeeperBusy
from fedkeeper.keeper.api.answers import HEADERS
from fedkeeper.keeper.api.call import Call


class Dropped(ConnectionError):
    """A reader took nothing for too long, or has gone."""


class Stream:
    """One of them, under way."""

    def __init__(self, call: Call, response: web.StreamResponse, stall_s: float) -> None:
        self._request = call.request
        self._stall_s = stall_s
        self.response = response

    async def write(self, data: bytes) -> None:
        """Send, and wait while much is on its way. Raises Dropped, and closes the connection."""
        try:
            async with asyncio.timeout(self._stall_s):
                await self.response.write(data)
        except TimeoutError as exc:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise Dropped("the reader took nothing in time") from exc


class Streams:
    """All of them. `close` has those end that would go on for ever."""

    def __init__(self, *, streams_max: int, stall_s: float) -> None:
        self._streams_max = streams_max
        self._stall_s = stall_s
        self._open = 0
        self.closing = asyncio.Event()

    @asynccontextmanager
    async def open(self, call: Call, content_type: str) -> AsyncIterator[Stream]:
        """A stream as the answer to this call. Raises KeeperBusy if there are as many as may be."""
        if self._open >= self._streams_max or self.closing.is_set():
            raise KeeperBusy(f"{self._open} streams are open", hint="ask another keeper, or close some")
        self._open += 1
        try:
            response = web.StreamResponse(headers={**HEADERS, "Content-Type": content_type})
            await response.prepare(call.request)
            yield Stream(call, response, self._stall_s)
            await response.write_eof()
        finally:
            self._open -= 1

    async def send(self, call: Call, content_type: str, pieces: Iterable[bytes]) -> web.StreamResponse:
        """All pieces, as fast as the reader takes them."""
        async with self.open(call, content_type) as stream:
            for piece in pieces:
                await stream.write(piece)
            return stream.response

    def close(self) -> None:
        """No more of them."""
        self.closing.set()
