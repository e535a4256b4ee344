"""An OpenFaaS gateway's functions: /function at once, /async-function through a queue that calls back.

As openfaas/faas' gateway (call IDs, scaling from zero), of-watchdog (max_inflight, exec_timeout) and
nats-queue-worker (callbacks) do it. Anybody may call: a gateway asks for its password on /system alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from fedkeeper.fabric import openfaas_functions as rules
from fedkeeper.fabric import payloads
from fedkeeper.fabric.activations import InFlight
from fedkeeper.fabric.bodies import MEGABYTE, BodyMalformed, BodyTooLarge, read_body
from fedkeeper.fabric.calling import not_run, now_ms
from fedkeeper.fabric.model import HttpRequest, HttpResponse, PoolFull, Workers
from fedkeeper.fabric.openfaas_api import OpenFaas
from fedkeeper.fabric.openfaas_functions import Refused
from fedkeeper.fabric.payloads import PayloadsFull
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.verdict import SUCCESS

log = structlog.get_logger(__name__)
REQUEST_MAX_BYTES: Final = 32 * MEGABYTE
QUEUE_MAX: Final = 4096  # messages; kept in memory, as NATS Streaming does by default
QUEUE_WORKERS: Final = 64
CALLBACK_S_MAX: Final = 30.0
CALL_ID: Final = "X-Call-Id"
SERVED_BY: Final = "openfaas-ce/fedkeeper"
INTERNAL: Final = "X-OpenFaaS-Internal"
_HOP_BY_HOP: Final = frozenset(
    {"connection", "proxy-connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te",
     "trailer", "transfer-encoding", "upgrade", "content-length", "date", "server"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """A queued request."""

    function: str  # as it was called: "name" or "name.namespace"
    request: HttpRequest
    callback: str


class FunctionCalls:
    """Handlers of /function/… and /async-function/…."""

    def __init__(
        self, functions: OpenFaas, workers: Workers, revisions: Revisions, in_flight: InFlight
    ) -> None:
        self._functions = functions
        self._workers = workers
        self._revisions = revisions
        self._in_flight = in_flight
        self._active: Counter[str] = Counter()  # requests by function
        self._running: set[asyncio.Task[HttpResponse]] = set()
        self._queued: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(QUEUE_WORKERS)

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        doors = (("*", "/function/{name}", self._call), ("POST", "/async-function/{name}", self._enqueue))
        return [
            web.route(method, f"{path}{rest}", handler)
            for method, path, handler in doors
            for rest in ("", "/", "/{rest:.+}")
        ]

    @property
    def running(self) -> int:
        """How many calls have not ended, or wait in the queue."""
        return len(self._running) + len(self._queued)

    async def close(self) -> None:
        """Give up what still runs and waits."""
        tasks = (*self._queued, *self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- synchronous

    async def _call(self, request: web.Request) -> web.Response:
        headers, generated = _identified(request)
        try:
            body = await read_body(request, REQUEST_MAX_BYTES)
        except BodyTooLarge:
            return _plain(413, "http: request body too large", generated)
        except PayloadsFull as exc:
            return _plain(429, str(exc), generated)
        except BodyMalformed as exc:
            return _plain(400, str(exc), generated)
        answer = await self._serve(request.match_info["name"], _request(request, headers, body))
        return web.Response(
            status=answer.status, body=answer.body, headers={**_end_to_end(answer.headers), **generated}
        )

    async def _serve(self, called: str, request: HttpRequest) -> HttpResponse:
        """One call to its end, whoever still listens."""
        name, _, scope = called.rpartition(".") if "." in called else (called, "", "")
        try:
            scope = rules.namespace(scope)
        except Refused as exc:
            return _answer(exc.status, exc.words)
        document = await self._functions.find(name, scope)
        if document is None:
            words = f"error finding function {name}.{scope}: unexpected status code: 404"
            return _answer(404, words)
        if not document.body["replicas"]:
            document = await self._functions.scale_up(document)
        allowed = rules.max_inflight(document.body["deployment"]) * document.body["replicas"]
        key = f"{name}.{scope}"
        if allowed and self._active[key] >= allowed:
            words = f"Concurrent request limit exceeded. Max concurrent requests: {allowed}\n"
            return _answer(429, words, {INTERNAL: "faas-middleware"})
        self._functions.invocations[scope, name] += 1
        self._active[key] += 1
        try:
            with self._in_flight, self._revisions.use(document.revision):
                task = asyncio.create_task(self._workers.serve(self._functions.revision(document), request))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                answer = await asyncio.shield(task)
        except PoolFull:
            return _answer(429, "no worker is free and the queue is full\n")
        except Exception as exc:  # noqa: BLE001 - a fault of the pool is this call's, not the gateway's
            log.error("call failed inside the fabric", function=key, error=repr(exc))
            return _answer(500, f"Can't reach service for: {name}.", {INTERNAL: "proxy"})
        finally:
            self._active[key] -= 1
            if not self._active[key]:
                del self._active[key]
        self._functions.logged(name, scope, answer.ran.logs)
        return _as_watchdog(answer)

    # --- asynchronous

    async def _enqueue(self, request: web.Request) -> web.Response:
        headers, generated = _identified(request)
        callback = headers.get("X-Callback-Url", "")
        if callback and not _is_address(callback):
            return _plain(400, "X-Callback-Url is not an address", generated)
        try:
            body = await read_body(request, REQUEST_MAX_BYTES)
        except BodyTooLarge:
            return _plain(413, "http: request body too large", generated)
        except PayloadsFull as exc:
            return _plain(429, str(exc), generated)
        except BodyMalformed as exc:
            return _plain(400, str(exc), generated)
        if len(self._queued) >= QUEUE_MAX:
            return _plain(500, "Error queuing request: the queue is full", generated)
        message = _Message(
            function=request.match_info["name"], request=_request(request, headers, body), callback=callback
        )
        holds = contextlib.ExitStack()
        holds.enter_context(payloads.held())  # now: when the task begins, the request may have been answered
        task = asyncio.create_task(self._work_off(message), name=f"queued {message.function}")
        self._queued.add(task)
        task.add_done_callback(self._queued.discard)
        task.add_done_callback(lambda _: holds.close())
        return web.Response(status=202, headers=generated)

    async def _work_off(self, message: _Message) -> None:
        """Call the function once, and tell whoever wants to know."""
        async with self._slots:
            begun = time.monotonic()
            answer = await self._serve(message.function, message.request)
            if not message.callback:
                return
            headers = {
                **_end_to_end(answer.headers),
                "X-Duration-Seconds": f"{time.monotonic() - begun:f}",
                "X-Function-Status": str(answer.status),
                "X-Function-Name": message.function,
                CALL_ID: message.request.headers[CALL_ID],
            }
            timeout = aiohttp.ClientTimeout(total=CALLBACK_S_MAX)
            try:
                async with (
                    aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                    session.post(
                        URL(message.callback), data=answer.body, headers=headers, allow_redirects=False
                    ),
                ):
                    pass
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
                log.info("nobody took a callback", function=message.function, error=type(exc).__name__)


def _identified(request: web.Request) -> tuple[dict[str, str], dict[str, str]]:
    """The request's headers with its call ID, and what the answer is to have: an ID only if it is new."""
    headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
    started = str(time.time_ns())
    generated = {"X-Start-Time": started, "X-Served-By": SERVED_BY}
    given = headers.pop(CALL_ID, "")
    if not given:
        given = generated[CALL_ID] = str(uuid.uuid4())
    return {**headers, CALL_ID: given, "X-Start-Time": started}, generated


def _request(request: web.Request, headers: Mapping[str, str], body: bytes) -> HttpRequest:
    path = "/" + request.match_info.get("rest", "")
    query = request.rel_url.raw_query_string
    return HttpRequest(
        method=request.method, path=f"{path}?{query}" if query else path, headers=headers, body=body
    )


def _as_watchdog(answer: HttpResponse) -> HttpResponse:
    """What the function did not answer itself, the watchdog does: a status without a body."""
    seconds = (answer.ran.end_ms - answer.ran.start_ms) / 1000
    headers = {**answer.headers, "X-Duration-Seconds": f"{seconds:f}"}
    by_function = answer.ran.status == SUCCESS or "X-Google-Status" in answer.headers
    if by_function:
        return HttpResponse(status=answer.status, headers=headers, body=answer.body, ran=answer.ran)
    headers = {"X-Duration-Seconds": f"{seconds:f}", INTERNAL: "of-watchdog"}
    return HttpResponse(
        status=504 if answer.ran.timed_out else 500, headers=headers, body=b"", ran=answer.ran
    )


def _answer(status: int, words: str, headers: Mapping[str, str] | None = None) -> HttpResponse:
    ran = not_run(now_ms(), words)
    head = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    return HttpResponse(status=status, headers=head, body=words.encode(), ran=ran)


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() not in _HOP_BY_HOP}


def _plain(status: int, words: str, headers: Mapping[str, str]) -> web.Response:
    return web.Response(status=status, text=f"{words}\n", headers=headers)


def _is_address(text: str) -> bool:
    try:
        url = URL(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
