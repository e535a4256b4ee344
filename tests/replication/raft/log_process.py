"""A keeper's log in a process of its own, which writes on and on.

    python -m tests.replication.raft.log_process NAME FOLDER MEMBERS

Says one JSON line for each write that is acknowledged ("wrote") and whenever another keeper leads ("leader").
A line on stdin ends the writing; then it says all names that it knows ("names"), and ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from fedkeeper.core.model import PutValue
from fedkeeper.errors import ClusterError
from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork, Unprotected

WRITERS = 4


class Process:
    """Such a process, as its parent sees it."""

    def __init__(self, name: str, folder: Path, members: dict[str, str]) -> None:
        self.name = name
        self.wrote: list[str] = []
        self.leader = ""
        self.names: list[str] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, str(folder), json.dumps(members)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # killed while it said it
            said: dict[str, Any] = json.loads(line)
            if "wrote" in said:
                self.wrote.append(said["wrote"])
            self.leader = said.get("leader", self.leader)
            self.names = said.get("names", self.names)

    def kill(self) -> None:
        """As `kill -9`; what it had said before is read."""
        self._process.send_signal(signal.SIGKILL)
        self._ended()

    def finish(self) -> None:
        """Have it stop writing and say what it knows."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Let it end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._ended()

    def _ended(self) -> None:
        self._process.wait(30)
        self._reader.join(30)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def say(**what: object) -> None:
    """One line in one write."""
    os.write(1, (json.dumps(what) + "\n").encode())


async def write(log: RaftLog, prefix: str, ending: asyncio.Event) -> None:
    """One value after the other, each under a name that was never used before."""
    number = 0
    while not ending.is_set():
        number += 1
        name = f"{prefix}-{number}"
        with contextlib.suppress(ClusterError):  # it may be there, or not
            await log.propose(PutValue(name=name, value="1", at_ms=0))
            say(wrote=name)
        await asyncio.sleep(0.002)


async def main(name: str, folder: Path, members: dict[str, str]) -> None:
    """Until stdin closes."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    host, port = members[name].split(":")

    def network(resolve: Resolve) -> PeerNetwork:
        return PeerNetwork(name, bind=(host, int(port)), resolve=resolve, credentials=Unprotected())

    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    async with RaftLog.open(name, folder, members, network=network, timing="fast", snapshot_every=300) as log:
        log.watch(lambda status: say(leader=status.leader))
        prefix = f"{name}.{time.time_ns():x}"
        writers = [asyncio.create_task(write(log, f"{prefix}.{n}", ending)) for n in range(WRITERS)]
        await loop.run_in_executor(None, sys.stdin.readline)
        ending.set()
        await asyncio.gather(*writers)
        say(names=sorted((await log.barrier()).kv))
        await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
