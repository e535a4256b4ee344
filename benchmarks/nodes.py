"""Raft nodes as processes of their own, told what to do by lines of JSON: for the measurements.

python -m benchmarks.nodes NAME FOLDER   is one such node; `Node` is how the others speak to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.opening import open_log
from fedkeeper import logs
from fedkeeper.core.model import KeeperStarted, PutValue
from fedkeeper.errors import ClusterError, JournalError
from fedkeeper.replication.base import ClusterLog, Role

Json = dict[str, Any]
PORT = 47_201
PROBE_S = 0.004  # between two attempts to commit something


class Node:
    """One node's process, and the other end of its lines."""

    def __init__(self, name: str, number: int, folder: Path, settings: Json) -> None:
        self.name = name
        self.host = f"127.0.1.{number}"
        self.folder = folder
        self.settings = settings
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Run it; returns once it answers."""
        with (self.folder / f"{self.name}.err").open("a") as err:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.nodes",
                    self.name,
                    str(self.folder),
                    json.dumps(self.settings),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )

    def tell(self, **order: Any) -> None:
        """Send an order without waiting."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Json:
        """The next answer."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name} has ended: {(self.folder / f'{self.name}.err').read_text()[-2000:]}"
            )
        answer: Json = json.loads(line)
        return answer

    def ask(self, **order: Any) -> Json:
        """Send an order and wait for its answer."""
        self.tell(**order)
        return self.hear()

    def cpu_s(self) -> float:
        """Processor time that it has used so far."""
        assert self.process is not None
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; after SIGKILL wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(30)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


@contextmanager
def cluster(count: int, folder: Path, settings: Json) -> Iterator[list[Node]]:
    """`count` nodes, all up, with a leader that all know."""
    folder.mkdir(parents=True, exist_ok=True)
    members = {f"k{number}": f"127.0.1.{number}:{PORT}" for number in range(1, count + 1)}
    nodes = [
        Node(name, number, folder, {**settings, "members": members}) for number, name in enumerate(members, 1)
    ]
    try:
        for node in nodes:
            node.start()
        settled(nodes)
        yield nodes
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                node.signal(signal.SIGKILL)


def settled(nodes: list[Node], *, limit_s: float = 60.0) -> Node:
    """The leader, once every node knows it, is connected to all and has applied what it has."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        said = [node.ask(do="status") for node in nodes]
        leaders = {one["leader"] for one in said}
        applied = {one["applied"] for one in said}
        if (
            len(leaders) == 1
            and "" not in leaders
            and len(applied) == 1
            and all(one["connected"] for one in said)
        ):
            return next(node for node in nodes if node.name == said[0]["leader"])
        time.sleep(0.02)
    raise RuntimeError(f"not settled in {limit_s:g} s: {said}")


# --- the process ----------------------------------------------------------------------------------


async def _serve(log: ClusterLog, name: str) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer = await _DO[order.pop("do")](log, name, **order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def _status(log: ClusterLog, _: str) -> Json:
    status = log.status
    return {
        "leader": status.leader,
        "term": status.term,
        "leads": status.role is Role.LEADER,
        "applied": status.applied_index,
        "connected": all(one.connected for one in status.members),
    }


async def _probe(log: ClusterLog, name: str, *, number: int) -> Json:
    """Propose, every PROBE_S, until one succeeds; when that was, by the clock that all processes share."""
    probes: set[asyncio.Task[None]] = set()
    first: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def probe() -> None:
        with contextlib.suppress(ClusterError, JournalError):
            await log.propose(PutValue(name=f"probe/{name}", value=str(number), at_ms=0))
            if not first.done():
                first.set_result(time.monotonic())

    while not first.done():
        probes.add(asyncio.create_task(probe()))
        await asyncio.wait([first], timeout=PROBE_S)
    await asyncio.wait(probes)  # the next fault begins with a quiet log
    return {"at_s": first.result()}


async def _commands(log: ClusterLog, _: str, *, values: list[str], pause_s: float = 0.0) -> Json:
    """Propose as many writes at once as there are values."""
    await asyncio.gather(
        *(log.propose(PutValue(name=f"v{n}", value=json.dumps(one), at_ms=0)) for n, one in enumerate(values))
    )
    await asyncio.sleep(pause_s)
    return {}


async def _lines(log: ClusterLog, _: str, *, lines: list[str]) -> Json:
    """Propose commands given as the codec's lines, those of one list at once."""
    from fedkeeper.replication import codec  # noqa: PLC0415 - one of the orders needs it

    applied = await asyncio.gather(*(log.propose(codec.decode(line.encode())) for line in lines))
    return {"rejected": [one.rejected for one in applied if one.rejected]}


async def _load(log: ClusterLog, _: str, *, callers: int, size: int, seconds: float) -> Json:
    """Writes of `size` bytes by `callers` that each wait for the answer before the next one."""
    end = time.monotonic() + seconds
    took_s: list[float] = []

    async def caller(number: int) -> None:
        value = json.dumps("x" * (size - 2))
        while (begun := time.monotonic()) < end:
            await log.propose(PutValue(name=f"load/{number}", value=value, at_ms=0))
            took_s.append(time.monotonic() - begun)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    took_s.sort()
    return {
        "per_s": len(took_s) / seconds,
        "p50_ms": took_s[len(took_s) // 2] * 1000,
        "p99_ms": took_s[int(len(took_s) * 0.99)] * 1000,
    }


async def _api(log: ClusterLog, name: str) -> Json:
    """Serve the keeper's HTTP API from now on, at the address that is returned."""
    from fedkeeper.keeper.api.app import open_api  # noqa: PLC0415 - one of the orders needs it
    from fedkeeper.keeper.api.control import LogControl  # noqa: PLC0415
    from fedkeeper.keeper.api.server import listen  # noqa: PLC0415
    from fedkeeper.replication import codec  # noqa: PLC0415

    opening = open_api(log, LogControl(log), listen("127.0.0.1", 0))
    _APIS.append(opening)  # it lives as long as this process
    api = await opening.__aenter__()
    await log.propose(KeeperStarted(keeper=name, api=api.url, version=codec.VERSION, at_ms=0))
    return {"url": api.url}


_APIS: list[Any] = []
_DO: dict[str, Callable[..., Awaitable[Json]]] = {
    "api": _api,
    "load": _load,
    "status": _status,
    "probe": _probe,
    "commands": _commands,
    "lines": _lines,
}


async def _main(name: str, folder: Path, settings: Json) -> None:
    logs.set_up(verbose=True)  # on stderr: stdout is for the answers
    async with open_log(name, folder / name, settings) as log:
        await _serve(log, name)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
