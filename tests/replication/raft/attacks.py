"""What a stranger at the port may try: each row of the table that PySyncObj as shipped failed, and more.

Every attack is a coroutine that takes the address of a keeper's port for the other keepers, and returns when
it has been tried thoroughly. None knows the secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from tests.replication.raft.real_world import shared
from tests.replication.raft.wires import Rogue, frame

Address = tuple[str, int]
Attack = Callable[[Address], Awaitable[None]]

CLOSED_WITHIN_S = 10.0  # by the keeper; its own limit for handshakes is 2 s


@contextlib.asynccontextmanager
async def connection(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, closed in the end whatever has become of it."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _say(address: Address, data: bytes) -> bytes:
    """Say something; what is answered until the keeper closes, which it must."""
    async with connection(address) as (reader, writer):
        answer = b""
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            answer = await asyncio.wait_for(reader.read(), CLOSED_WITHIN_S)
        return answer


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self._path),))


def as_pysyncobj(message: object) -> bytes:
    """As the library as shipped frames what it sends: a signed length, then a compressed pickle."""
    body = zlib.compress(pickle.dumps(message), 3)
    return struct.pack("i", len(body)) + body


def pickle_bomb(path: Path) -> Attack:
    """A pickle that runs code, framed as the library's and as ours."""

    async def attack(address: Address) -> None:
        bomb = pickle.dumps(_Bomb(path))
        for data in (as_pysyncobj(_Bomb(path)), frame(len(bomb), bomb), bomb):
            assert await _say(address, data) == b""
        assert not os.path.exists(path)  # noqa: ASYNC240, PTH110 (one look)

    return attack


async def admin_commands(address: Address) -> None:
    """The library's own administration: it must not be answered, let alone obeyed."""
    commands = (["status"], ["remove", "k2"], ["add", "evil:1"], ["set_version", 9], ["transfer", "evil:1"])
    for command in commands:
        assert await _say(address, as_pysyncobj(command)) == b""


async def false_candidate(address: Address) -> None:
    """To be a peer with a term far ahead: as the library says it, and as we do without the secret."""
    vote = {"type": "request_vote", "term": 10**6, "last_log_index": 10**6, "last_log_term": 10**6}
    entries = {"type": "append_entries", "term": 10**6, "commit_index": 10**6, "entries": [(b"x", 1, 1)]}
    for message in (vote, entries):
        assert await _say(address, as_pysyncobj("k2") + as_pysyncobj(message)) == b""
        body = msgspec.msgpack.encode([message])
        assert await _say(address, frame(len(body), body)) == b""
    for secret in ("a secret that is not the right one", "correct horse battery stapler"):
        rogue = Rogue(shared(secret), "k2")
        with contextlib.suppress(EOFError, ConnectionError):
            await rogue.connect(address)
            raise AssertionError("let in with another secret")
        await rogue.close()


async def huge_frame(address: Address, *, length: int = 2**31 - 1, taken_mib: int = 256) -> None:
    """A header that promises 2 GiB, and as much of it as the keeper takes."""
    async with connection(address) as (_, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(frame(length))
            for _ in range(taken_mib):
                writer.write(bytes(1 << 20))
                await writer.drain()
            raise AssertionError(f"{taken_mib} MiB were taken from a stranger")


async def idle_connections(address: Address, *, count: int = 200) -> None:
    """Two hundred at once that say nothing, or a byte now and then: each is closed in time."""

    async def idle(number: int) -> None:
        async with connection(address) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(CLOSED_WITHIN_S):
                    while number % 2:
                        writer.write(b"\x00")
                        await writer.drain()
                        with contextlib.suppress(TimeoutError):
                            assert await asyncio.wait_for(reader.read(1), 0.2) == b""
                            return
                    assert await reader.read() == b""

    await asyncio.gather(*(idle(number) for number in range(count)))


async def reconnecting(address: Address) -> None:
    """A second of connections opened as fast as they can be, none of which says anything."""
    end = asyncio.get_running_loop().time() + 1.0

    async def open_many() -> None:
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(OSError):
                async with connection(address):
                    pass

    await asyncio.gather(*(open_many() for _ in range(10)))


async def noise(address: Address) -> None:
    """Random bytes, negative lengths, HTTP, TLS, nested msgpack, floods of small frames."""
    chance = random.Random(7)  # noqa: S311 (the same noise each time)
    deep = b"\x91" * 4000
    said = (
        *(chance.randbytes(chance.choice((1, 50, 5000, 100_000))) for _ in range(20)),
        struct.pack(">i", -1) + bytes(100),
        struct.pack("<i", -(2**31)) + bytes(100),
        b"GET /status HTTP/1.1\r\nHost: k1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        frame(len(deep), deep),
        frame(0) * 50_000,
        frame(112, b"FedKeeper raft 1" + chance.randbytes(96)),
    )
    answers = await asyncio.gather(*(_say(address, data) for data in said))
    assert all(len(answer) < 10 for answer in answers)  # an alert of TLS at most


async def crowd(address: Address) -> None:
    """A hundred connections that are only given up when the keeper closes them: files run out."""

    async def stay() -> None:
        with contextlib.suppress(OSError):
            async with connection(address) as (reader, _):
                await asyncio.wait_for(reader.read(), CLOSED_WITHIN_S)

    await asyncio.gather(*(stay() for _ in range(100)))


ATTACKS: dict[str, Attack] = {
    "admin commands": admin_commands,
    "false candidate": false_candidate,
    "huge frame": huge_frame,
    "idle connections": idle_connections,
    "reconnecting": reconnecting,
    "noise": noise,
}


def main(name: str, port: str, folder: str) -> None:
    """From a process of its own, so that what it costs is not on the keepers' account."""
    attacks = {**ATTACKS, "crowd": crowd, "pickle bomb": pickle_bomb(Path(folder) / "owned")}
    asyncio.run(attacks[name](("127.0.0.1", int(port))))


if __name__ == "__main__":
    main(*sys.argv[1:])
