"""Channels: what turns a connection's bytes into frames that are certain to be the peer's, and back.

They do no I/O: bytes go in and come out, so that each can be tested byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedkeeper.replication.raft.network.frames import HEADER, Inbox

Bytes = bytes | bytearray | memoryview


class Channel(Protocol):
    """One connection, from its first byte to its last. Every method that takes bytes may raise Broken."""

    ready: bool  # the other side has proved that it may speak to us

    def begin(self) -> bytes:
        """What the one that dials sends first, and the other as soon as it is connected to."""
        ...

    def space(self) -> memoryview:
        """Where the next bytes from the network are to be put."""
        ...

    def received(self, count: int) -> Iterator[Bytes]:
        """So many bytes were put there: the frames that they complete. To be used at once, in order."""
        ...

    def answer(self) -> bytes:
        """What has to be sent back after `received`, in the handshake; mostly nothing."""
        ...

    def seal(self, body: Bytes) -> bytes:
        """What to send for a frame of `body`; only once the channel is ready."""
        ...

    def trust(self, limit: int) -> None:
        """From now on frames of `limit` bytes may come in."""
        ...

    def proves(self, name: str) -> bool:
        """The other side may call itself `name`."""
        ...


class Credentials(Protocol):
    """What a keeper proves with that it is one."""

    protects: bool  # against strangers on the network

    def channel(self, *, dialling: bool) -> Channel:
        """One for a new connection; `dialling`: we are the one that connects."""
        ...


class Unprotected:
    """Nothing is proved, nothing hidden: for tests and measurements on loopback."""

    protects = False

    def channel(self, *, dialling: bool) -> Channel:
        """A channel that is ready at once."""
        return PlainChannel()


class PlainChannel:
    """Frames, and nothing else."""

    def __init__(self) -> None:
        self.ready = True
        self._inbox = Inbox()

    def begin(self) -> bytes:
        """Nothing to be said."""
        return b""

    def space(self) -> memoryview:
        """Where the next bytes go."""
        return self._inbox.space()

    def received(self, count: int) -> Iterator[Bytes]:
        """The frames as they came."""
        return self._inbox.frames(count)

    def answer(self) -> bytes:
        """Nothing."""
        return b""

    def seal(self, body: Bytes) -> bytes:
        """The frame in the clear."""
        return HEADER.pack(len(body)) + body

    def trust(self, limit: int) -> None:
        """Frames may be larger from now on."""
        self._inbox.trust(limit)

    def proves(self, name: str) -> bool:
        """Everybody is believed."""
        return True
