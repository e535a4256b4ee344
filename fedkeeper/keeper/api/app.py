"""A keeper's HTTP API: takes requests, lets in those that may, has the table's handlers answer them."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.errors import ApiError, FedKeeperError, KeeperBusy, NotThere
from fedkeeper.keeper.api.answers import Redirect, encode, failure, internal, redirect, reply
from fedkeeper.keeper.api.call import Bodies, Call, decoded
from fedkeeper.keeper.api.cluster import Cluster
from fedkeeper.keeper.api.control import Control
from fedkeeper.keeper.api.events import Events
from fedkeeper.keeper.api.guard import Access, Guard
from fedkeeper.keeper.api.keepers import KeeperRoutes
from fedkeeper.keeper.api.kv import Dictionary
from fedkeeper.keeper.api.openapi import document
from fedkeeper.keeper.api.routes import Route, Table, routes
from fedkeeper.keeper.api.runs import RunRoutes
from fedkeeper.keeper.api.server import serving
from fedkeeper.keeper.api.settings import TIMEOUT_HEADER, ApiSettings, check_safe, server_context
from fedkeeper.keeper.api.streams import Streams
from fedkeeper.replication.base import ClusterLog

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A running one."""

    url: str  # where it listens; others may reach it at another address
    routes: tuple[Route, ...]


@asynccontextmanager
async def open_api(
    log: ClusterLog,
    control: Control,
    listener: socket.socket,
    *,
    settings: ApiSettings | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Api]:
    """Serve on `listener` (see `server.listen`), which is closed in the end, for as long as the block runs.

    On leaving, requests under way are answered, streams end.

    Raises:
        ConfigError: it would not be safe to listen there so; or the certificate cannot be read.
    """
    settings = settings or ApiSettings()
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        host, port = listener.getsockname()[:2]
        check_safe(settings, host)
        tls = server_context(settings)
        cluster = await stack.enter_async_context(Cluster(log, clock or SystemClock()))
        streams = Streams(streams_max=settings.streams_max, stall_s=settings.stall_s)
        events = Events(cluster, streams, interval_s=settings.events_s, keep_alive_s=settings.keep_alive_s)
        about: list[bytes] = []

        async def openapi(call: Call) -> web.Response:
            del call
            return reply(about[0])

        every = routes(
            KeeperRoutes(cluster, control),
            RunRoutes(cluster, control),
            Dictionary(
                cluster,
                streams,
                value_bytes_max=settings.value_bytes_max,
                total_bytes_max=settings.kv_bytes_max,
            ),
            events,
            openapi,
        )
        about.append(encode(document(every)))
        front = _Front(every, settings)
        await stack.enter_async_context(serving(front.answer, listener, settings, tls))
        stack.callback(events.close)
        name = f"[{host}]" if ":" in host else host
        yield Api(url=f"{'https' if tls else 'http'}://{name}:{port}", routes=every)


class _Front:
    """What every request goes through. There is nothing beside it: each layer would cost each request."""

    def __init__(self, every: tuple[Route, ...], settings: ApiSettings) -> None:
        self._table = Table(every)
        self._guard = Guard(settings)
        self._bodies = Bodies(settings.body_bytes_max)
        self._timeout_s = settings.request_timeout_s
        self._in_flight_max = settings.requests_in_flight_max
        self._in_flight = 0
        self._loop = asyncio.get_running_loop()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, whatever happens."""
        try:
            return await self._handle(request)
        except Redirect as exc:
            return redirect(exc.url)
        except FedKeeperError as exc:
            return failure(exc)
        except ConnectionError:  # its sender has gone
            raise
        except Exception as exc:  # noqa: BLE001 - the outer edge: the next request must be served
            # Not what was sent: it may hold a secret.
            _log.exception("request failed inside the keeper", method=request.method)
            return internal(exc)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw_path = request.raw_path
        path, _, query = raw_path.partition("?")
        by_method, parameter = self._table.find(path)
        route = by_method.get(request.method)
        if route is None:
            return self._no_route(request, path, by_method)
        self._guard.check(request, route.needs)
        deadline = self._loop.time() + min(self._timeout_s, _patience_s(request))
        call = Call(request, raw_path, query, decoded(parameter), deadline, self._bodies)
        if not route.counted:
            return await route.handler(call)
        if self._in_flight >= self._in_flight_max:
            raise KeeperBusy(f"{self._in_flight} requests are being worked on")
        self._in_flight += 1
        try:
            return await route.handler(call)
        finally:
            self._in_flight -= 1

    def _no_route(
        self, request: web.BaseRequest, path: str, by_method: Mapping[str, Route]
    ) -> web.StreamResponse:
        self._guard.check(request, Access.READER)
        if not by_method:
            raise NotThere(
                f"no route {path[:200]!r}", status=404, hint="GET /v1/openapi.json lists all routes"
            )
        allowed = ", ".join(sorted(by_method))
        answer = failure(ApiError(f"{request.method} is not for {path[:200]!r}", status=405, hint=allowed))
        answer.headers["Allow"] = allowed
        return answer


def _patience_s(request: web.BaseRequest) -> float:
    """How long the caller waits: what it would not hear of any more is not begun. Raises ApiError."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nor NaN
        raise ApiError(f"{TIMEOUT_HEADER} is {text[:100]!r}, must be seconds", status=400)
    return seconds
