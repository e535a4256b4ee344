"""The connections of an HTTP server, bounded: for the keepers' API and for the embedded platforms.

aiohttp serves each of them; here is how many there may be, how long a client may take, and who gives way.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refusal = Callable[[int, BaseException | None], web.StreamResponse]  # the answer to what is no HTTP
RequestFactory = Callable[[Any, Any, Any, Any, Any], web.BaseRequest]

HANDSHAKE_S: Final = 5.0
SHUTDOWN_S: Final = 2.0
_AT_ONCE: Final = struct.pack("ii", 1, 0)
BACKLOG: Final = 1024  # connections that the kernel holds until they are accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionBounds:
    """What clients may hold, and for how long."""

    connections_max: int = 1024  # open ones; for more, whoever has kept us waiting the longest gives way
    idle_s: float = 75.0  # for the headers of a request, from the connection's start or the last answer
    answer_s: float = 120.0  # for the client to take an answer
    unread_bytes_max: int = 256 * 1024 * 1024  # of all answers that their clients do not take
    linger_s: float = 10.0  # for a refused body to arrive, so that its sender sees the answer
    header_bytes_max: int = 16 * 1024  # of the request line, and of each header
    headers_max: int = 128


@asynccontextmanager
async def serving(
    handler: Handler,
    listener: socket.socket,
    bounds: ConnectionBounds,
    *,
    refusal: Refusal,
    request_factory: RequestFactory | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Answer what arrives at `listener` with `handler`, for as long as the block runs.

    A client that goes away cancels no handler. `refusal` makes the answer (status, cause) to what cannot be
    read as HTTP; `request_factory` is aiohttp's.
    """
    server = _Server(handler, bounds, refusal, request_factory)
    accepting = await asyncio.get_running_loop().create_server(
        server.protocol,
        sock=listener,
        backlog=BACKLOG,
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
    """Knows of each connection whether it waits for its client, and since when."""

    def __init__(
        self, handler: Handler, bounds: ConnectionBounds, refusal: Refusal, make: RequestFactory | None
    ) -> None:
        super().__init__(self._answer, request_factory=make)
        self.bounds = bounds
        self.refusal = refusal
        self._handler = handler
        self._greeting: dict[asyncio.BaseProtocol, float] = {}  # accepted, in their handshake, since when
        self._waiting: dict[_Connection, None] = {}  # for their clients; oldest first
        self._asked: dict[_Connection, web.BaseRequest] = {}
        self._unread: dict[_Connection, int] = {}  # bytes of answers that are not taken; oldest first
        self._unread_bytes = 0

    def protocol(self) -> asyncio.BaseProtocol:
        """For a connection that is being accepted."""
        now = self._loop.time()
        # One whose handshake failed never tells.
        self._greeting = {
            made: since for made, since in self._greeting.items() if now - since < HANDSHAKE_S + 1
        }
        full = len(self._connections) + len(self._greeting) >= self.bounds.connections_max
        if full and not self._make_room():
            return _Refusal()
        made = _Connection(self, self._loop)
        self._greeting[made] = now
        return made

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        assert isinstance(handler, _Connection)
        self._greeting.pop(handler, None)
        self._waiting[handler] = None
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        assert isinstance(handler, _Connection)
        self._waiting.pop(handler, None)
        self.not_taken(handler, 0)
        super().connection_lost(handler, exc)

    def not_taken(self, connection: _Connection, nbytes: int) -> None:
        """A client leaves so much of its answer; 0: it has taken it."""
        self._unread_bytes += nbytes - self._unread.pop(connection, 0)
        if nbytes:
            self._unread[connection] = nbytes
        while self._unread_bytes > self.bounds.unread_bytes_max:
            self._drop(next(iter(self._unread)))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        self._waiting.pop(connection, None)
        self._asked[connection] = request
        try:
            return await self._handler(request)
        finally:
            self._asked.pop(connection, None)
            if connection.connected:
                self._waiting[connection] = None

    def _make_room(self) -> bool:
        """End the connection that has waited for its client the longest; one with half a body if none has."""
        victim = next(iter(self._waiting), None)
        if victim is None:
            victim = next((one for one, asked in self._asked.items() if not asked.content.is_eof()), None)
        if victim is None:
            return False
        self._drop(victim)
        return True

    def _drop(self, victim: _Connection) -> None:
        self._waiting.pop(victim, None)
        self._asked.pop(victim, None)
        self.not_taken(victim, 0)
        victim.drop()


class _Connection(web.RequestHandler):
    """Answers what is no HTTP in its server's words, logs none of it, and waits for readers for so long."""

    __slots__ = ("_link", "_patience", "_server")

    def __init__(self, server: _Server, loop: asyncio.AbstractEventLoop) -> None:
        bounds = server.bounds
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=bounds.idle_s,
            lingering_time=bounds.linger_s,
            max_line_size=bounds.header_bytes_max,
            max_field_size=bounds.header_bytes_max,
            max_headers=bounds.headers_max,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._server = server
        self._link: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._link = transport
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._be_patient(for_s=None)
        self._link = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._be_patient(for_s=self._server.bounds.answer_s)
        if self._link is not None:
            self._server.not_taken(self, self._link.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._be_patient(for_s=None)
        self._server.not_taken(self, 0)

    def force_close(self) -> None:
        super().force_close()  # which sends what is buffered first
        if self._link is not None and self._link.get_write_buffer_size() and self._patience is None:
            self._be_patient(for_s=self._server.bounds.answer_s)

    def drop(self) -> None:
        """End it now, whatever is still to be sent."""
        if self._link is None:
            return
        if self._link.get_write_buffer_size():  # else the kernel would go on offering what it holds of it
            self._link.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._link.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        del request, message
        answer = self._server.refusal(status, exc)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Not with what strangers sent."""

    def _be_patient(self, *, for_s: float | None) -> None:
        """Give the client so long to take what is sent to it; None: it has."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None if for_s is None else self._loop.call_later(for_s, self.drop)


class _Refusal(asyncio.Protocol):
    """Closes at once: there are as many connections as may be, and all of them are being answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
