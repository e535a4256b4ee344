"""The fabric's HTTP server: both APIs, triggers, health and administration, on one port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from aiohttp import web

import fedkeeper
from fedkeeper.connections import ConnectionBounds, serving
from fedkeeper.errors import PortTaken
from fedkeeper.fabric.activations import Activations, InFlight
from fedkeeper.fabric.bodies import (
    MEGABYTE,
    BodyMalformed,
    BodyTooLarge,
    json_response,
    parse_object,
    read_body,
)
from fedkeeper.fabric.credentials import Credentials
from fedkeeper.fabric.google_api import CloudFunctions
from fedkeeper.fabric.google_rpc import answer_google
from fedkeeper.fabric.model import Workers
from fedkeeper.fabric.openfaas_api import OpenFaas
from fedkeeper.fabric.openfaas_calls import FunctionCalls
from fedkeeper.fabric.openwhisk_api import OpenWhisk, answer_openwhisk
from fedkeeper.fabric.openwhisk_entities import Bounds
from fedkeeper.fabric.openwhisk_platform import TRANSACTION, Keys
from fedkeeper.fabric.payloads import Payloads, PayloadsFull
from fedkeeper.fabric.recorder import Retention
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Store
from fedkeeper.fabric.tokens import Authority, bearer
from fedkeeper.fabric.triggers import Triggers

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SERVICE: Final = "fedkeeper-fabric"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Bounds of the front. Times in the unit that is named."""

    in_flight_max: int = 256
    connections: ConnectionBounds = field(default_factory=ConnectionBounds)
    payload_bytes_max: int = 512 * MEGABYTE  # of all bodies that arrive, wait or are worked on
    body_s: float = 120.0  # for a body to arrive
    share_workers: bool = True  # by OpenWhisk actions that are alike in all that a worker is made from
    retention: Retention = field(default_factory=Retention)
    bounds: Bounds = field(default_factory=Bounds)
    images: Mapping[str, str] = field(default_factory=dict)  # OpenWhisk image -> kind that stands in for it
    clock: Callable[[], float] = time.time  # whose minutes the throttles count in


class Running(Protocol):
    """A part of the front that may have work under way."""

    @property
    def running(self) -> int:
        """How much of it has not ended."""
        ...


class Front:
    """A running front. `busy` says whether anything is being executed or deployed."""

    def __init__(self, url: str, keys: Keys, functions: CloudFunctions, parts: Sequence[Running]) -> None:
        self.url = url
        self._keys = keys
        self._functions = functions
        self._parts = parts

    def busy(self) -> bool:
        """Whether an activation, an execution or an operation has not ended."""
        return any(part.running for part in self._parts)

    def replace(self, credentials: Credentials) -> None:
        """Take another set of namespaces and projects."""
        self._keys.replace(credentials.openwhisk)
        self._functions.authority.replace(credentials.accounts)


@contextlib.asynccontextmanager
async def open_front(
    folder: Path,
    workers: Workers,
    credentials: Credentials,
    listener: socket.socket,
    *,
    settings: FrontSettings | None = None,
    reload: Callable[[Mapping[str, Any]], Awaitable[Credentials]] | None = None,
) -> AsyncIterator[Front]:
    """Serve on `listener` (bound, on 127.0.0.1) for as long as the block runs.

    `reload` is given the body of an administrator's call and returns the credentials from then on.
    On leaving, what still runs is given up and recorded as an internal error.
    """
    settings = settings or FrontSettings()
    host, port = listener.getsockname()[:2]
    url = f"http://{host}:{port}"
    async with contextlib.AsyncExitStack() as stack:
        store = await Store.open(folder, retention=settings.retention)
        stack.push_async_callback(store.close)
        revisions = Revisions(folder / "revisions", workers)
        stack.push_async_callback(revisions.close)
        in_flight = InFlight(settings.in_flight_max)
        activations = Activations(store, workers, revisions, in_flight, url)
        stack.push_async_callback(activations.close)
        keys = Keys(credentials.openwhisk)
        openwhisk = OpenWhisk(
            store, revisions, activations, keys, settings.bounds, settings.in_flight_max,
            settings.images, settings.clock,
            share_workers=settings.share_workers,
        )  # fmt: skip
        authority = Authority(issuer=url, private_key=credentials.signing_key, accounts=credentials.accounts)
        functions = CloudFunctions(store, revisions, workers, authority, url, logs=folder / "builds")
        stack.push_async_callback(functions.close)
        triggers = Triggers(functions, workers, revisions, in_flight)
        stack.push_async_callback(triggers.close)
        gateway = OpenFaas(store, revisions, workers, credentials.openfaas)
        faas_calls = FunctionCalls(gateway, workers, revisions, in_flight)
        stack.push_async_callback(faas_calls.close)
        await activations.recover()
        await functions.recover()
        kept = [
            *await store.after("action", "", name="", limit=-1),
            *await store.after("function", "", name="", limit=-1),
            *await store.after("faas", "", name="", limit=-1),
        ]
        await revisions.keep_only({document.revision for document in kept})
        busy = (activations, triggers, functions, gateway, faas_calls)
        front = Front(url, keys, functions, busy)
        payloads = Payloads(bytes_max=settings.payload_bytes_max, body_s=settings.body_s)

        @web.middleware
        async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
            with payloads.of_request():
                return await handler(request)

        app = web.Application(middlewares=[counted, _dialects])
        app.add_routes(openwhisk.routes())
        app.add_routes(functions.routes() + triggers.routes())
        app.add_routes(gateway.routes() + faas_calls.routes())
        app.add_routes(_own_routes(front, workers, credentials.admin, reload))
        # No access log: paths of uploads are permissions. A client that goes away cancels no handler.
        runner = web.AppRunner(app, access_log=None)  # makes the handler; its connections are ours
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        making = runner.server.request_factory
        handler = runner.server.request_handler
        async with serving(handler, listener, settings.connections, refusal=_no_http, request_factory=making):
            yield front


def listen(port: int, *, fallback: bool, key: str = "fabric_port") -> socket.socket:
    """A socket that listens on 127.0.0.1:`port`; 0 is any. With `fallback`, any if that one is in use.

    Raises:
        PortTaken: names the port and the configuration's `key`.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
        except OSError as exc:
            if exc.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            if fallback and port:
                listener.close()
                return listen(0, fallback=False, key=key)
            raise PortTaken(
                f"the embedded fabric cannot listen on 127.0.0.1:{port}: {os.strerror(exc.errno or 0)}",
                hint=f"set `{key}` to a free port, or to 0 for any",
            ) from exc
    except BaseException:
        listener.close()
        raise
    return listener


def _no_http(status: int, cause: BaseException | None) -> web.StreamResponse:
    del cause  # it may hold what was sent
    return web.Response(status=status, text="This is not HTTP as it is spoken here.\n")


@web.middleware
async def _dialects(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in the words of whichever API the path belongs to; nothing a caller sends ends the server."""
    try:
        if request.path in {"/", "/api/v1"} or request.path.startswith("/api/v1/"):
            return await answer_openwhisk(request, handler)
        if request.path.startswith("/v2/"):
            return await answer_google(request, handler)
        return await handler(request)
    except web.HTTPException:
        raise
    except (ConnectionError, TimeoutError):
        raise
    except PayloadsFull as exc:  # of a part without words of its own for it
        return web.Response(status=429, text=f"{exc}\n")
    except Exception as exc:  # noqa: BLE001 - the process must serve the next request
        # No traceback and no path: both may carry what was sent.
        log.error("request failed inside the fabric", method=request.method, error=type(exc).__name__)
        if request.path.startswith("/api/"):
            code = TRANSACTION.get()
            return json_response({"error": "There was an internal server error.", "code": code}, status=500)
        error = {"code": 500, "message": "Internal error encountered.", "status": "INTERNAL"}
        return json_response({"error": error}, status=500)


def _own_routes(
    front: Front,
    workers: Workers,
    admin: str,
    reload: Callable[[Mapping[str, Any]], Awaitable[Credentials]] | None,
) -> list[web.RouteDef]:
    def authorize(request: web.Request) -> None:
        if not hmac.compare_digest(bearer(request.headers.get("Authorization")).encode(), admin.encode()):
            raise web.HTTPUnauthorized

    async def health(request: web.Request) -> web.Response:
        del request
        return json_response({"name": SERVICE, "version": fedkeeper.__version__, "pid": os.getpid()})

    async def stats(request: web.Request) -> web.Response:
        authorize(request)
        return json_response(dict(workers.stats()))

    async def reload_settings(request: web.Request) -> web.Response:
        authorize(request)
        if reload is None:
            raise web.HTTPNotFound
        try:
            front.replace(await reload(parse_object(await read_body(request, 1024 * 1024))))
        except (BodyMalformed, BodyTooLarge, ValueError) as exc:
            raise web.HTTPBadRequest(text=str(exc)) from exc
        return json_response({})

    return [
        web.get("/health", health),
        web.get("/admin/stats", stats),
        web.post("/admin/reload", reload_settings),
    ]
