"""The HTTP server below the API: aiohttp's, with bounds on connections and without its own error pages."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from fedkeeper.errors import ApiError, PortTaken
from fedkeeper.keeper.api.answers import failure
from fedkeeper.keeper.api.settings import ApiSettings

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HANDSHAKE_S: Final = 5.0
SHUTDOWN_S: Final = 2.0
LINGER_S: Final = 0.5  # for a refused body to arrive, so that its sender sees the answer
HEADERS_MAX: Final = 64


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`; 0 is any.

    Raises PortTaken: names the address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
    except OSError as exc:
        raise PortTaken(f"the API cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        hint = "another program has it: set another port" if exc.errno == errno.EADDRINUSE else ""
        problem = os.strerror(exc.errno or 0)
        raise PortTaken(f"the API cannot listen on {host}:{port}: {problem}", hint=hint) from exc
    except BaseException:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def serving(
    handler: Handler, listener: socket.socket, settings: ApiSettings, tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Answer what arrives at `listener` with `handler`, for as long as the block runs."""
    loop = asyncio.get_running_loop()
    server = _Server(handler, settings)
    accepting = await loop.create_server(
        server.protocol,
        sock=listener,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls else None,
        ssl_shutdown_timeout=SHUTDOWN_S if tls else None,
    )
    try:
        yield
    finally:
        accepting.close()
        server.pre_shutdown()
        await server.shutdown(SHUTDOWN_S)


class _Server(web.Server):
    """Counts its connections, those in their handshake included."""

    def __init__(self, handler: Handler, settings: ApiSettings) -> None:
        super().__init__(handler, request_factory=self._request)
        self._settings = settings
        self._greeting: dict[asyncio.BaseProtocol, float] = {}  # accepted, in their handshake, since when

    def protocol(self) -> asyncio.BaseProtocol:
        """For a connection that is being accepted."""
        now = self._loop.time()
        # One whose handshake failed never tells.
        self._greeting = {
            made: since for made, since in self._greeting.items() if now - since < HANDSHAKE_S + 1
        }
        if len(self._connections) + len(self._greeting) >= self._settings.connections_max:
            return _Refusal()
        made = _Connection(
            self,
            loop=self._loop,
            keepalive_timeout=self._settings.idle_s,
            lingering_time=LINGER_S,
            max_line_size=self._settings.header_bytes_max,
            max_field_size=self._settings.header_bytes_max,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._greeting[made] = now
        return made

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._greeting.pop(handler, None)
        super().connection_made(handler, transport)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        # Bodies have a length that has been checked before they are read.
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=0)


class _Connection(web.RequestHandler):
    """Answers what is no HTTP in our own words, and logs none of it."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        del request, message
        answer = failure(ApiError(f"this is not HTTP as we speak it: {type(exc).__name__}", status=status))
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Not with what strangers sent."""


class _Refusal(asyncio.Protocol):
    """Closes at once: there are as many connections as may be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
