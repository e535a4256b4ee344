"""Wires that can be tapped, changed and cut, and rogues that know how keepers speak."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from fedkeeper.replication.raft.base import Hello
from fedkeeper.replication.raft.network import Credentials
from fedkeeper.replication.raft.network.frames import HEADER
from fedkeeper.replication.raft.network.handshake import Intro, Refusal, decode, encode


class Wire:
    """A TCP proxy before one keeper: records what passes, and does with it as it is told."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.address = ("", 0)
        self.recorded: list[bytes] = []  # what diallers said, one per connection
        self.change: Callable[[bytes], bytes] = lambda data: data  # of what diallers say
        self.hanging = False  # an end that is cut is not passed on to the other side
        self.connections: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []  # dialler, target
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> Wire:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def close(self) -> None:
        """Cut everything."""
        if self._server:
            self._server.close()
        for writers in self.connections:
            for writer in writers:
                writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        number = len(self.connections)
        self.connections.append((writer, other_writer))
        self.recorded.append(b"")

        def tap(data: bytes) -> bytes:
            self.recorded[number] += data
            return self.change(data)

        for pump in (
            self._pump(reader, other_writer, tap),
            self._pump(other_reader, writer, lambda data: data),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(change(data))
                await writer.drain()
        if not self.hanging:
            writer.close()


class Rogue:
    """Speaks the protocol by hand, with whatever credentials it has got hold of."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self.name = name
        self._channel = credentials.channel(dialling=True)
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, address: tuple[str, int]) -> None:
        """Dial, and shake hands. EOFError if the other side closes."""
        self._reader, self._writer = await asyncio.open_connection(*address)
        self._writer.write(self._channel.begin())
        while not self._channel.ready:
            await self._read()
        self._channel.trust(1 << 26)

    async def introduce(self, to: str, *, name: str = "", **facts: Any) -> Intro | Refusal:
        """Say who it claims to be; what the other side says to that."""
        hello = {"incarnation": "", "fresh": True, "cluster": "", "last_index": 0, "version": 1, **facts}
        self.say(encode(Intro(hello=Hello(name=name or self.name, **hello), to=to)))
        return decode(await self.hear())

    async def join(self, address: tuple[str, int], to: str) -> None:
        """All the way to a connection that stands."""
        await self.connect(address)
        assert isinstance(await self.introduce(to), Intro)
        self.say(b"")

    def say(self, body: bytes) -> None:
        """Send a frame."""
        assert self._writer
        self._writer.write(self._channel.seal(body))

    def say_messages(self, *messages: Any) -> None:
        """Send messages as a keeper does."""
        self.say(msgspec.msgpack.encode(list(messages)))

    def write(self, data: bytes) -> None:
        """Send bytes past the channel."""
        assert self._writer
        self._writer.write(data)

    async def hear(self) -> bytes:
        """The next frame. EOFError if the other side closes."""
        while self._frames.empty():
            await self._read()
        return self._frames.get_nowait()

    async def closed(self) -> bool:
        """Wait until the other side has closed."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                await self.hear()
        return True

    async def close(self) -> None:
        """Hang up."""
        if self._writer:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _read(self) -> None:
        assert self._reader
        data = await asyncio.wait_for(self._reader.read(65536), 10)
        if not data:
            raise EOFError
        while data:
            space = self._channel.space()
            count = min(len(space), len(data))
            space[:count], data = data[:count], data[count:]
            for frame in self._channel.received(count):
                self._frames.put_nowait(bytes(frame))
            if answer := self._channel.answer():
                self.write(answer)


def frame(length: int, body: bytes = b"") -> bytes:
    """Bytes that claim to be a frame of so many bytes."""
    return HEADER.pack(length) + body
