"""Messages between the pool and a worker: a JSON head and a body of raw bytes, each with its length."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTHS = struct.Struct(">IQ")  # bytes of the head, bytes of the body
HEAD_BYTES_MAX = 1 << 20
DATAGRAM_BYTES_MAX = 1 << 17  # between the pool and a zygote


class Closed(Exception):
    """The other side is gone."""


def pack(head: dict[str, Any], body: bytes) -> bytes:
    """One message as bytes."""
    text = json.dumps(head).encode()
    return b"".join((LENGTHS.pack(len(text), len(body)), text, body))


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next message from a blocking socket. Raises Closed at its end."""
    head_bytes, body_bytes = LENGTHS.unpack(_exactly(channel, LENGTHS.size))
    head: dict[str, Any] = json.loads(_exactly(channel, head_bytes))
    return head, _exactly(channel, body_bytes)


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, filled = memoryview(data), 0
    while filled < count:
        got = channel.recv_into(view[filled:])
        if not got:
            raise Closed
        filled += got
    return bytes(data)
