"""Room for what callers send, from the first byte that arrives until the work on it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final

from fedkeeper.fabric.model import PoolFull

STALLED_S: Final = 1.0  # a body that has sent nothing for so long gives way to others
_CURRENT: ContextVar[Payload | None] = ContextVar("payload", default=None)


class PayloadsFull(PoolFull):
    """`requests` hold so many bytes that no more may be taken: answer 429."""

    def __init__(self, requests: int) -> None:
        super().__init__(f"the payloads of {requests} requests take up all the room there is")
        self.requests = requests


class Payloads:
    """Room for `bytes_max` bytes in all; each body may take `body_s` seconds to arrive."""

    def __init__(self, *, bytes_max: int, body_s: float) -> None:
        self.bytes_max = bytes_max
        self.body_s = body_s
        self.nbytes = 0
        self._held: set[Payload] = set()

    @contextmanager
    def of_request(self) -> Iterator[None]:
        """What is read in this block, and held (`held`) by what is begun in it, is one payload."""
        payload = Payload(self)
        token = _CURRENT.set(payload)
        try:
            with payload.keep():
                yield
        finally:
            _CURRENT.reset(token)

    def take(self, payload: Payload, nbytes: int) -> None:
        """Count `nbytes` more. PayloadsFull, unless bodies that have stalled can be given up for it."""
        while self.nbytes + nbytes > self.bytes_max:
            stalled = min(
                (one for one in self._held if one is not payload and one.stalled),
                key=lambda one: one.last,
                default=None,
            )
            if stalled is None:
                raise PayloadsFull(len(self._held | {payload}))
            stalled.give_way()
        self.nbytes += nbytes
        payload.nbytes += nbytes
        self._held.add(payload)

    def drop(self, payload: Payload) -> None:
        """It is not held any more."""
        self.nbytes -= payload.nbytes
        payload.nbytes = 0
        self._held.discard(payload)


class Payload:
    """What one request sent."""

    def __init__(self, room: Payloads) -> None:
        self.nbytes = 0
        self.last = 0.0  # when the last of it arrived, event loop's time
        self._room = room
        self._holders = 0
        self._limit: asyncio.Timeout | None = None  # while it arrives

    @property
    def stalled(self) -> bool:
        """Whether it is arriving, and nothing of it has for a while."""
        return self._limit is not None and asyncio.get_running_loop().time() - self.last > STALLED_S

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Count it until the block ends, and all others like it have."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._room.drop(self)

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """Bound the time in which it may arrive. Raises TimeoutError, also when it gave way."""
        self.last = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._room.body_s) as self._limit:
                yield
        finally:
            self._limit = None

    def arrived(self, nbytes: int) -> None:
        """So much more of it has. PayloadsFull."""
        self._room.take(self, nbytes)
        self.last = asyncio.get_running_loop().time()

    def give_way(self) -> None:
        """Stop waiting for the rest, and let go of what there is."""
        assert self._limit is not None
        self._limit.reschedule(self.last)
        self._limit = None
        self._room.drop(self)


def current() -> Payload:
    """That of the request which is being answered."""
    payload = _CURRENT.get()
    assert payload is not None, "every request is answered inside of `of_request`"
    return payload


@contextmanager
def held() -> Iterator[None]:
    """Count the payload of the request which is being answered, if one is, until the block ends."""
    payload = _CURRENT.get()
    if payload is None:  # at the start, for what an earlier fabric left
        yield
        return
    with payload.keep():
        yield
