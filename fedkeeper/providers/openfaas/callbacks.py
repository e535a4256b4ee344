"""Where a gateway's queue tells how asynchronous calls ended: X-Callback-Url (openfaas/nats-queue-worker).

The queue signs nothing. A callback counts only for a call that was made here and has not ended, whose ID
nobody else is told; and what it says only ends an attempt: results are what is in the store.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from typing import Final

from aiohttp import web
from yarl import URL

from fedkeeper.clock import Clock
from fedkeeper.errors import ConfigError
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation
from fedkeeper.providers.calls import ANSWER_BYTES_MAX, Call, activation

KEPT_MAX: Final = 4096  # calls: those that run, and those that have ended
PATH: Final = "/fedkeeper/outcome"
_DURATION_S_MAX: Final = 7 * 86_400.0


class Callbacks:
    """An HTTP server for one provider. `url` is what the gateway is told; empty until `open`."""

    def __init__(self, cluster: str, clock: Clock) -> None:
        self.url = ""
        self._cluster = cluster
        self._clock = clock
        self._running: OrderedDict[str, tuple[Call, int]] = OrderedDict()  # with its start, Unix ms
        self._ended: OrderedDict[str, Activation] = OrderedDict()
        self._runner: web.AppRunner | None = None

    async def open(self, host: str, port: int, *, towards: str, towards_port: int) -> None:
        """Listen on `port` (0: any). `host` empty: the address that connections to the gateway come from.

        Raises ConfigError: the port cannot be had, or there is no way to the gateway.
        """
        try:
            own = "" if host else await asyncio.to_thread(_own_address, towards, towards_port)
            # Behind an address that is not this machine's own, any of its interfaces may be the one.
            bind = own or (host if http.is_loopback(URL.build(scheme="http", host=host)) else None)
            host = host or own
            app = web.Application(client_max_size=ANSWER_BYTES_MAX)
            app.router.add_post(PATH, self._told)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
            site = web.TCPSite(self._runner, bind, port, backlog=128)
            await site.start()
        except OSError as exc:
            await self.close()
            raise ConfigError(
                f"{self._cluster}: callback_port {port}: {exc.strerror or exc}",
                hint="write a free port, or 0 for any; and callback_host if the gateway knows this machine"
                " by another name",
            ) from exc
        bound = self._runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{bound}{PATH}"

    def expect(self, call: Call) -> None:
        """From now on an outcome of this call counts."""
        self._ended.pop(call.activation_id, None)  # of the same key in an earlier life of the run
        self._running[call.activation_id] = (call, self._clock.now_ms())
        while len(self._running) > KEPT_MAX:
            self._running.popitem(last=False)

    def forget(self, activation_id: str) -> None:
        """It was not taken: no outcome will come."""
        self._running.pop(activation_id, None)

    def ended(self, activation_id: str) -> Activation | None:
        """How the call ended; None while it runs, and for calls that were not made here."""
        return self._ended.get(activation_id)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _told(self, request: web.Request) -> web.Response:
        found = self._running.get(request.headers.get("X-Call-Id", ""))
        status = request.headers.get("X-Function-Status", "")
        if found is None or not status.isdecimal():
            return web.Response(status=404)
        call, asked_ms = found
        body = await request.read()
        if self._running.pop(call.activation_id, None) is None:  # told twice at once
            return web.Response(status=404)
        end_ms = self._clock.now_ms()
        start_ms = max(asked_ms, end_ms - _duration_ms(request.headers.get("X-Duration-Seconds", "")))
        answer = http.Answer(int(status), request.headers, body)
        self._ended[call.activation_id] = activation(call, answer, start_ms=start_ms, end_ms=end_ms)
        while len(self._ended) > KEPT_MAX:
            self._ended.popitem(last=False)
        return web.Response(status=204)


def _duration_ms(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        return 0
    return round(seconds * 1000) if 0 <= seconds <= _DURATION_S_MAX else 0


def _own_address(host: str, port: int) -> str:
    """The local address of connections to `host`. Nothing is sent."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
