"""Writes per second over the keepers' HTTP API, of 1, 64 and 256 clients, with 100 and 1,000 bytes.

    python -m benchmarks.api --seconds 3

Clients are keep-alive connections of one process that each wait for their answer; written by hand, so that
the load costs little of the processors. In the same run: a bare aiohttp handler that answers what it is sent
(the ceiling of the HTTP server itself), the API over a log in memory, and the API of three keepers in three
processes with real network, disk and fsync. Reference: rafty, 100 requests/s with 1 client, 2,000 with 3
servers and 64 clients, 1,500 with 256.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from benchmarks.nodes import cluster, settled
from benchmarks.reference import piece_us
from fedkeeper.keeper.api.app import open_api
from fedkeeper.keeper.api.control import LogControl
from fedkeeper.keeper.api.server import listen
from fedkeeper.replication.memory import MemoryLog

Json = dict[str, Any]


class Caller(asyncio.Protocol):
    """One client: a PUT, its answer, the next PUT."""

    def __init__(self, number: int, host: str, size: int, took_s: list[float], end: float) -> None:
        body = json.dumps({"value": "x" * (size - 2), "request": ""}).encode()
        self._request = (
            f"PUT /v1/kv/load/{number} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
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
        if not ends or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._data.decode()))
            self._transport.close()
            return
        now = time.monotonic()
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


async def load(url: str, *, clients: int, size: int, seconds: float) -> Json:
    """PUT for so long; requests per second and how long they took."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    took_s: list[float] = []
    end = time.monotonic() + seconds
    callers = []
    for number in range(clients):
        caller = Caller(number, parts.netloc, size, took_s, end)
        await loop.create_connection(lambda caller=caller: caller, parts.hostname, parts.port)
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    took_s.sort()
    return {
        "per_s": round(len(took_s) / seconds),
        "p50_ms": round(took_s[len(took_s) // 2] * 1000, 2),
        "p99_ms": round(took_s[int(len(took_s) * 0.99)] * 1000, 2),
    }


async def serve(kind: str) -> None:
    """The process of a server: prints its address, then serves for ever."""
    listener = listen("127.0.0.1", 0)
    if kind == "echo":

        async def echo(request: web.Request) -> web.Response:
            return web.Response(body=await request.read(), content_type="application/json")

        app = web.Application()
        app.router.add_put("/{path:.*}", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await asyncio.Event().wait()
    log = MemoryLog()
    async with open_api(log, LogControl(log), listener) as api:
        print(api.url, flush=True)
        await asyncio.Event().wait()


@contextmanager
def server(kind: str) -> Iterator[str]:
    """The address of such a process."""
    command = [sys.executable, "-m", "benchmarks.api", "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", default="1,64,256")
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--fsync", choices=("on", "off"), default="on")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=("echo", "memory"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        asyncio.run(serve(chosen.serve))
    rows: list[Json] = []
    loads = [(int(c), int(size)) for c in chosen.clients.split(",") for size in chosen.sizes.split(",")]
    with (
        TemporaryDirectory(prefix="api", dir=Path.cwd()) as scratch,
        server("echo") as echo,
        server("memory") as memory,
        cluster(3, Path(scratch), {"timing": "patient", "fsync": chosen.fsync == "on"}) as nodes,
    ):
        urls = {node.name: node.ask(do="api")["url"] for node in nodes}
        for clients, size in loads:
            ceiling = asyncio.run(load(echo, clients=clients, size=size, seconds=chosen.seconds))["per_s"]
            leader = settled(nodes)
            for kind, url in (("memory", memory), ("3 keepers", urls[leader.name])):
                before = leader.cpu_s()
                got = asyncio.run(load(url, clients=clients, size=size, seconds=chosen.seconds))
                row: Json = {"over": kind, "clients": clients, "bytes": size, **got}
                row |= {"of echo": round(got["per_s"] / ceiling, 2), "piece us": round(piece_us(), 1)}
                if url != memory:
                    row["leader us"] = round(
                        (leader.cpu_s() - before) / (got["per_s"] * chosen.seconds) * 1e6
                    )
                row["load"] = round(os.getloadavg()[0], 1)
                rows.append(row)
                print(row, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
