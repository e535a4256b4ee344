"""Frames: four bytes of length, most significant first, then so many bytes. Reassembled without copying.

The kernel writes straight into an `Inbox`'s buffer. It grows to the frame that is on its way, if that is
within the limit, and never before the length is known to be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = struct.Struct(">I")
BYTES_MAX_BEFORE_PROOF: Final = 4096  # of a frame of somebody who has not proved who it is
_ROOM: Final = 256 * 1024  # bytes taken from the kernel at once


class Broken(Exception):
    """The other side does not speak our protocol, or cannot prove who it is: the connection ends."""


class Inbox:
    """Where one connection's bytes arrive, and are found to be frames."""

    def __init__(self) -> None:
        self._limit = BYTES_MAX_BEFORE_PROOF
        self._buffer = bytearray(HEADER.size + BYTES_MAX_BEFORE_PROOF)
        self._start = 0  # of what has not been taken
        self._end = 0  # of what is there
        self._awaited = 0  # bytes of the frame that is incomplete, header included; 0: not known

    def trust(self, limit: int) -> None:
        """From now on frames may have `limit` bytes."""
        self._limit = limit

    def space(self) -> memoryview:
        """Where the next bytes go; never empty. Ends the life of what `frames` has handed out."""
        waiting = self._end - self._start
        if waiting and self._awaited <= len(self._buffer) - self._start and self._end < len(self._buffer):
            return memoryview(self._buffer)[self._end :]
        room = HEADER.size + BYTES_MAX_BEFORE_PROOF if self._limit == BYTES_MAX_BEFORE_PROOF else _ROOM
        room = max(room, self._awaited)
        if room == len(self._buffer):
            self._buffer[:waiting] = self._buffer[self._start : self._end]
        else:
            rest = self._buffer[self._start : self._end]
            self._buffer = bytearray(room)
            self._buffer[:waiting] = rest
        self._start, self._end = 0, waiting
        return memoryview(self._buffer)[waiting:]

    def frames(self, count: int) -> Iterator[memoryview]:
        """The frames that are complete after `count` more bytes, without their headers.

        Each is to be used before the next call of `space`. Broken if one is larger than it may be.
        """
        self._end += count
        whole = memoryview(self._buffer)
        self._awaited = 0
        while self._end - self._start >= HEADER.size:
            (length,) = HEADER.unpack_from(whole, self._start)
            if length > self._limit:
                raise Broken(f"a frame of {length} bytes, and {self._limit} are allowed")
            begin = self._start + HEADER.size
            if begin + length > self._end:
                self._awaited = HEADER.size + length
                return
            self._start = begin + length
            yield whole[begin : self._start]
