"""Callers of an HTTP server, and the bare server that others are compared with.

A caller is a keep-alive connection that waits for each answer before it asks again; written by hand, so that
the load costs little of the processors. The bare server is aiohttp's, with one handler that answers what it
is sent, in a process of its own: what this machine can do at best.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

Json = dict[str, Any]
_LENGTH = b"content-length: "


def request(method: str, url: str, path: str, body: bytes, **headers: str) -> bytes:
    """An HTTP request with a JSON body, as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Caller(asyncio.Protocol):
    """One connection: a request, its answer, the same request again until the end."""

    def __init__(self, request: bytes, took_s: list[float], end: float) -> None:
        self._request = request
        self._took_s = took_s
        self._end = end
        self._data = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Go on when the answer is whole."""
        self._data += data
        head, ends, body = self._data.partition(b"\r\n\r\n")
        if not ends or len(body) < int(head.lower().partition(_LENGTH)[2].partition(b"\r")[0]):
            return
        now = time.monotonic()
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._data.decode(errors="replace")))
            self._transport.close()
            return
        self._took_s.append(now - self._begun)
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._data = b""
        self._begun = time.monotonic()
        self._transport.write(self._request)


def _itself(caller: Caller) -> Caller:
    return caller


async def load(url: str, requests: Sequence[bytes], *, seconds: float) -> Json:
    """One caller for each of `requests`, for so long: answers, per second, and the time they took."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    loop = asyncio.get_running_loop()
    took_s: list[float] = []
    began = time.monotonic()
    callers = []
    for one in requests:
        caller = Caller(one, took_s, began + seconds)
        await loop.create_connection(partial(_itself, caller), parts.hostname, parts.port)
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    passed_s = time.monotonic() - began
    took_s.sort()
    at = {f"p{q}_ms": round(took_s[int(len(took_s) * q / 100)] * 1000, 2) for q in (50, 95, 99)}
    return {"count": len(took_s), "per_s": round(len(took_s) / passed_s), **at}


async def serve_echo() -> None:
    """The bare server: prints its address, then serves for ever."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


@contextmanager
def serving(*command: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server, `python -m <command>`, which prints its address first."""
    with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


def main() -> int:
    """Be the bare server."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    asyncio.run(serve_echo())
    return 0


ECHO = "benchmarks.load"  # its module, for `serving`

if __name__ == "__main__":
    sys.exit(main())
