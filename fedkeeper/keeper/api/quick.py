"""An answer that is written in one piece, for the routes that are asked thousands of times a second.

`web.Response` takes some 30 us more: a fifth of what a write costs the API (`python -m benchmarks.api`).
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Final, cast

from aiohttp import HttpVersion11, web

from fedkeeper.keeper.api.answers import HEADERS, reply

_HEAD: Final = b"HTTP/1.1 200 OK\r\n" + b"".join(
    f"{key}: {value}\r\n".encode() for key, value in HEADERS.items()
)
_BYTES_MAX: Final = 16 * 1024  # larger ones wait for their reader, as web.Response does


class _Dated:
    """The start of an answer with the time, made anew each second."""

    def __init__(self) -> None:
        self._second = 0
        self._head = b""

    def head(self) -> bytes:
        """Up to the length, which follows."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._head = b"%bDate: %b\r\nContent-Length: " % (_HEAD, formatdate(second, usegmt=True).encode())
        return self._head


_dated: Final = _Dated()


class _Quick:
    """What aiohttp needs of a response, and no more."""

    __slots__ = ("_body", "_plain", "_request", "keep_alive")
    status = 200

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._plain: web.Response | None = None
        self._request: web.BaseRequest | None = None
        self.keep_alive: bool | None = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Begin; what is not the common case goes the common way."""
        self._request = request
        if request.version != HttpVersion11 or not request.keep_alive or len(self._body) > _BYTES_MAX:
            self._plain = reply(self._body)
            await self._plain.prepare(request)
            self.keep_alive = self._plain.keep_alive

    async def write_eof(self) -> None:
        """Send it all."""
        if self._plain is not None:
            await self._plain.write_eof()
            return
        assert self._request is not None
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        transport.write(b"%b%d\r\n\r\n%b" % (_dated.head(), len(self._body), self._body))


def quick(body: bytes) -> web.StreamResponse:
    """200 with this JSON."""
    return cast(web.StreamResponse, _Quick(body))
