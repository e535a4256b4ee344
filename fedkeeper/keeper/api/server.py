"""Where a keeper's API listens, and the bounded HTTP server below it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from aiohttp import web

from fedkeeper import connections
from fedkeeper.connections import ConnectionBounds, Handler
from fedkeeper.errors import ApiError, PortTaken
from fedkeeper.keeper.api.answers import failure
from fedkeeper.keeper.api.settings import ApiSettings

LINGER_S: Final = 0.5
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


def serving(
    handler: Handler, listener: socket.socket, settings: ApiSettings, tls: ssl.SSLContext | None
) -> AbstractAsyncContextManager[None]:
    """Answer what arrives at `listener` with `handler`, for as long as the block runs."""
    return connections.serving(
        handler,
        listener,
        ConnectionBounds(
            connections_max=settings.connections_max,
            idle_s=settings.idle_s,
            linger_s=LINGER_S,
            header_bytes_max=settings.header_bytes_max,
            headers_max=HEADERS_MAX,
        ),
        refusal=_refusal,
        request_factory=_request,
        tls=tls,
    )


def _refusal(status: int, cause: BaseException | None) -> web.StreamResponse:
    return failure(ApiError(f"this is not HTTP as we speak it: {type(cause).__name__}", status=status))


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    # Bodies have a length that has been checked before they are read.
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=0)
