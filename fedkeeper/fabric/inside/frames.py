"""Messages between the pool and a worker: a JSON head and a body of raw bytes, each with its length."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

LENGTHS = struct.Struct(">IQ")  # bytes of the head, bytes of the body
HEAD_BYTES_MAX = 1 << 20
READ_BYTES = 1 << 16
DATAGRAM_BYTES_MAX = 1 << 17  # between the pool and a zygote


class Closed(Exception):
    """The other side is gone."""


def pack(head: dict[str, Any], body: bytes) -> bytes:
    """One message as bytes."""
    text = json.dumps(head).encode()
    return b"".join((LENGTHS.pack(len(text), len(body)), text, body))


class Inbox:
    """Takes messages out of the bytes of a stream as they arrive."""

    def __init__(self, body_bytes_max: int | None = None) -> None:
        self._data = bytearray()
        self._body_bytes_max = body_bytes_max  # None: whatever the other side sends

    def feed(self, data: bytes) -> None:
        """Bytes that have arrived."""
        self._data += data

    def take(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message, None until it is whole. ValueError: it is none, or larger than allowed."""
        data = self._data
        if len(data) < LENGTHS.size:
            return None
        head_bytes, body_bytes = LENGTHS.unpack_from(data)
        if self._body_bytes_max is not None and body_bytes > self._body_bytes_max:
            raise ValueError(f"a body of {body_bytes} bytes")
        if head_bytes > HEAD_BYTES_MAX:
            raise ValueError(f"a head of {head_bytes} bytes")
        begin = LENGTHS.size + head_bytes
        if len(data) < begin + body_bytes:
            return None
        head: dict[str, Any] = json.loads(data[LENGTHS.size : begin])
        body = bytes(data[begin : begin + body_bytes])
        del data[: begin + body_bytes]
        return head, body


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next message from a blocking socket, and no byte of what follows it. Raises Closed at its end."""
    head_bytes, body_bytes = LENGTHS.unpack(_exactly(channel, LENGTHS.size))
    head: dict[str, Any] = json.loads(_exactly(channel, head_bytes))
    return head, _exactly(channel, body_bytes)


def messages(channel: socket.socket) -> Iterator[tuple[dict[str, Any], bytes]]:
    """All messages from a blocking socket, usually with one read for each, until it is closed."""
    inbox = Inbox()
    while True:
        while (message := inbox.take()) is None:
            data = channel.recv(READ_BYTES)
            if not data:
                return
            inbox.feed(data)
        yield message


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, filled = memoryview(data), 0
    while filled < count:
        got = channel.recv_into(view[filled:])
        if not got:
            raise Closed
        filled += got
    return bytes(data)
