"""A keeper's network in a process of its own, that can be stopped, killed, and starved of files.

    python -m tests.replication.raft.keeper_process NAME FILES_MAX [unbinds]

Prints its port, echoes all messages to their senders, and prints its counts as JSON when stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import sys
from collections.abc import Sequence

import structlog

from fedkeeper.replication.raft.base import Hello, Message
from fedkeeper.replication.raft.network import PeerNetwork
from fedkeeper.replication.raft.network.listener import Listener
from tests.replication.raft.real_world import QUICK, SECRET, shared


class Process:
    """Such a process, as its parent sees it."""

    unbinds = False  # if it cannot accept, as PySyncObj does

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.pid = process.pid
        self._process = process

    @classmethod
    async def start(cls, name: str, *, files_max: int = 0) -> Process:
        """Start one and wait until it listens."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            name,
            str(files_max),
            *(["unbinds"] if cls.unbinds else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        return cls(process, int(await process.stdout.readline()))

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self) -> dict[str, int]:
        """Close it in order; what it counted. Nothing if it was dead already."""
        out, _ = await self._process.communicate(b"")
        return json.loads(out or b"{}")


class _Echo:
    def __init__(self, name: str) -> None:
        self.name = name
        self.network: PeerNetwork | None = None

    def hello(self) -> Hello:
        return Hello(
            name=self.name, incarnation=str(os.getpid()), fresh=True, cluster="", last_index=0, version=1
        )

    def connected(self, hello: Hello) -> None:
        pass

    def disconnected(self, peer: str) -> None:
        pass

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        assert self.network
        for message in messages:
            self.network.send(peer, message)


async def _main(name: str, files_max: int) -> None:
    structlog.configure(logger_factory=lambda: structlog.PrintLogger(sys.stderr))
    echo = _Echo(name)
    echo.network = PeerNetwork(
        name, bind=("127.0.0.1", 0), resolve=lambda peer: None, credentials=shared(SECRET), limits=QUICK
    )
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    if files_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    echo.network.open(echo)
    echo.network.peers(["k1", "k2", "k3"])
    sys.stdout.write(f"{echo.network.address[1]}\n")
    sys.stdout.flush()
    await reader.read()
    await echo.network.close()
    sys.stdout.write(json.dumps(dataclasses.asdict(echo.network.counts)))


def _unbind(listener: Listener, _listening: object, _exc: OSError) -> None:
    listener._counts.accepts_failed += 1
    listener.close()


if __name__ == "__main__":
    if sys.argv[3:] == ["unbinds"]:
        Listener._exhausted = _unbind
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
