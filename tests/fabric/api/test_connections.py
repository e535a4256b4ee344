"""Clients that dawdle, flood or never end: each is bounded, and the next caller is served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from fedkeeper.connections import ConnectionBounds
from tests.fabric.api.conftest import Fabric, OpenFabric
from tests.fabric.api.sockets import (
    GOOGLE,
    LIMIT_S,
    MEGABYTE,
    OPENFAAS,
    WHISK,
    assert_serves,
    connected,
    head,
    opened,
    until,
    until_async,
)

FRONTS = pytest.mark.parametrize("path", [WHISK, GOOGLE, OPENFAAS])


@FRONTS
async def test_headers_one_byte_at_a_time(open_fabric: OpenFabric, path: str) -> None:
    """However steadily they come, the time for all of them is bounded."""
    async with opened(open_fabric, connections=ConnectionBounds(idle_s=0.3)) as fabric:
        async with connected(fabric) as slow, asyncio.timeout(LIMIT_S):
            sent = 0
            for byte in head(fabric, path, *("X-More: a" for _ in range(100_000))):
                if not await slow.send(bytes([byte])):
                    break
                sent += 1
                await asyncio.sleep(0.01)
        assert 0 < sent < 10_000
        await assert_serves(fabric)


@FRONTS
@pytest.mark.parametrize("length", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
async def test_a_body_one_byte_at_a_time(open_fabric: OpenFabric, path: str, length: str) -> None:
    """The time for all of it is bounded; its sender is told so, and the connection ends."""
    bounds = ConnectionBounds(linger_s=0.1)
    async with opened(open_fabric, body_s=0.3, connections=bounds) as fabric:
        piece = b"1\r\nx\r\n" if "chunked" in length else b"x"
        async with connected(fabric, head(fabric, path, length)) as slow, asyncio.timeout(LIMIT_S):
            await until_async(lambda: slow.send(piece), becomes=False)
            answer = await slow.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        await assert_serves(fabric)


@FRONTS
async def test_a_body_that_never_ends(open_fabric: OpenFabric, path: str) -> None:
    """It is refused as soon as it is too large, and nobody waits for its end."""
    async with opened(open_fabric, connections=ConnectionBounds(linger_s=0.1)) as fabric:
        chunked = head(fabric, path, "Transfer-Encoding: chunked")
        async with connected(fabric, chunked) as endless, asyncio.timeout(LIMIT_S):
            sent = 0
            while await endless.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n"):
                sent += 0x10000
            assert endless.received.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
        assert sent < 200 * MEGABYTE
        await assert_serves(fabric)


async def test_whoever_does_not_take_an_answer_is_given_up(open_fabric: OpenFabric) -> None:
    """After `answer_s`; without that, its connection and its answer would stay for ever."""
    bounds = ConnectionBounds(answer_s=0.3, idle_s=0.3)
    async with opened(open_fabric, connections=bounds) as fabric:
        assert (
            await fabric.put("large", "def main(args):\n    return {'x': 'x' * 1_000_000}\n")
        ).status == 200
        lazy = unread(
            fabric, head(fabric, f"{WHISK[:-5]}large?blocking=true", "Content-Length: 2") + b"{}", times=16
        )
        try:
            await until(lambda: reset(lazy))
        finally:
            lazy.close()
        await assert_serves(fabric)


async def test_answers_that_nobody_takes_are_bounded_in_sum(open_fabric: OpenFabric) -> None:
    """Of more bytes than that, the client who has left its answer the longest is given up."""
    async with opened(open_fabric, connections=ConnectionBounds(unread_bytes_max=MEGABYTE)) as fabric:
        assert (
            await fabric.put("large", "def main(args):\n    return {'x': 'x' * 1_000_000}\n")
        ).status == 200
        asked = head(fabric, f"{WHISK[:-5]}large?blocking=true", "Content-Length: 2") + b"{}"
        with contextlib.ExitStack() as lazy_ones:
            first = unread(fabric, asked, times=16)
            lazy_ones.callback(first.close)
            async with asyncio.timeout(LIMIT_S):
                while not reset(first):
                    lazy_ones.callback(unread(fabric, asked, times=16).close)
                    await asyncio.sleep(0.1)
        await assert_serves(fabric)


def unread(fabric: Fabric, data: bytes, *, times: int) -> socket.socket:
    """A client with the smallest of buffers that sends requests and takes no answer."""
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", int(fabric.url.rpartition(":")[2])))
    lazy.setblocking(False)
    lazy.send(data * times)
    return lazy


def reset(client: socket.socket) -> bool:
    """Whether the other side has ended the connection without having been read."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


async def test_idle_connections_give_way_the_oldest_first(open_fabric: OpenFabric) -> None:
    """A full house of silent clients turns nobody away; those that are answered keep their place."""
    async with opened(open_fabric, connections=ConnectionBounds(connections_max=4)) as fabric:
        fabric.workers.gate.clear()
        busy = asyncio.create_task(fabric.call("POST", "actions/hello?blocking=true", {"name": "busy"}))
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(LIMIT_S):
            await until(lambda: fabric.workers.contexts)
            silent = [await stack.enter_async_context(connected(fabric)) for _ in range(6)]
            assert [await one.rest() for one in silent[:3]] == [b""] * 3
            fabric.workers.gate.set()
            answer = await busy
        assert answer.body["response"]["result"]["hello"] == "busy"
        await assert_serves(fabric)


async def test_a_newcomer_is_turned_away_when_everybody_is_being_answered(open_fabric: OpenFabric) -> None:
    """At once, and none of those that are served is given up for it."""
    async with opened(open_fabric, connections=ConnectionBounds(connections_max=2)) as fabric:
        fabric.workers.gate.clear()
        asked = head(fabric, f"{WHISK}?blocking=true", "Content-Length: 12", "Connection: close")
        asked += b'{"name":"a"}'
        async with connected(fabric, asked) as first, connected(fabric, asked) as second:
            await until(lambda: len(fabric.workers.contexts) == 2)
            async with connected(fabric) as third:
                assert await third.rest() == b""
            fabric.workers.gate.set()
            for one in (first, second):
                assert (await one.rest()).startswith(b"HTTP/1.1 200 ")
        await assert_serves(fabric)


async def test_half_bodies_give_way_when_nobody_is_idle(open_fabric: OpenFabric) -> None:
    """As many clients as there may be send the start of a body each and no more."""
    async with opened(open_fabric, connections=ConnectionBounds(connections_max=8)) as fabric:
        half = head(fabric, WHISK, "Content-Length: 100") + b"{"
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(connected(fabric, half))
            await assert_serves(fabric)


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many open files as the hard limit allows; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield max(soft, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_ten_thousand_idle_connections(open_fabric: OpenFabric, many_files: int) -> None:
    """They are let in as far as the bound goes, and nobody is kept out by them."""
    count = 10_000
    held: list[asyncio.BaseTransport] = []
    bounds = ConnectionBounds(connections_max=2_000)
    needed = count + bounds.connections_max + 1_500
    assert many_files >= needed, f"the hard limit of open files is {many_files}, this needs {needed}"
    async with opened(open_fabric, connections=bounds) as fabric:
        loop, port = asyncio.get_running_loop(), int(fabric.url.rpartition(":")[2])
        ended: set[int] = set()

        class Idle(asyncio.Protocol):
            def __init__(self, number: int) -> None:
                self.number = number

            def connection_lost(self, exc: Exception | None) -> None:
                ended.add(self.number)

        async with asyncio.timeout(2 * LIMIT_S):
            for number in range(count):
                made, _ = await loop.create_connection(lambda n=number: Idle(n), "127.0.0.1", port)
                held.append(made)
            await assert_serves(fabric)
            await until(lambda: len(ended) >= count - bounds.connections_max)
            await assert_serves(fabric)
        assert len(ended) < count - bounds.connections_max + 100  # the youngest may stay
        for transport in held:
            transport.abort()  # type: ignore[attr-defined]
