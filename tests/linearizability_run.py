"""Three keepers' logs in three processes, real disks and sockets; kill -9 and SIGSTOP; one history, checked.

    python -m tests.linearizability_run --minutes 1 [--seed S]

Each process has clients that get, put, compare-and-set and delete through its RaftLog. They say what they
call before they call it, so a process that is killed leaves an operation of unknown outcome behind. Times are
of the host's monotonic clock, which all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from fedkeeper.core.model import DeleteValue, PutValue
from fedkeeper.errors import FedKeeperError
from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork, Unprotected
from tests.linearizability import Act, Operation, check

KEYS = ("x", "y", "z")
CLIENTS = 3  # of each process
KEEPERS = ("k1", "k2", "k3")


def _say(**what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


async def _client(log: RaftLog, name: str, ending: asyncio.Event) -> None:
    """One operation after the other: a line when it is called, a line when it has ended."""
    chance = random.Random(name)  # noqa: S311 - no secret
    known: dict[str, tuple[Any, int]] = {}
    number = 0
    while not ending.is_set():
        number += 1
        key, act = chance.choice(KEYS), chance.choice(("get", "get", "put", "cas", "cas", "delete"))
        call, value = f"{name}/{number}", f"{name}-{number}"
        expected, version = known.get(key, (None, 0))
        called = {"call": call, "client": name, "key": key, "act": act, "value": value, "expected": expected}
        _say(**called, at=time.monotonic())
        try:
            if act == "get":
                entry = (await log.barrier()).kv.get(key)
                value = None if entry is None else json.loads(entry.value)
                known[key] = (value, 0 if entry is None else entry.version)
                done = True
            else:
                put = PutValue(
                    name=key,
                    value=json.dumps(value),
                    expected=version if act == "cas" else None,
                    request=call,
                    at_ms=0,
                )
                command = DeleteValue(name=key, request=call, at_ms=0) if act == "delete" else put
                done = not (await log.propose(command)).rejected
            _say(call=call, ended=time.monotonic(), value=value, done=done)
        except FedKeeperError as exc:
            _say(call=call, never=exc.definite)
        await asyncio.sleep(0.03 * chance.random())


async def _keeper(name: str, folder: Path, members: dict[str, str], life: int) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    host, port = members[name].split(":")

    def network(resolve: Resolve) -> PeerNetwork:
        return PeerNetwork(name, bind=(host, int(port)), resolve=resolve, credentials=Unprotected())

    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    async with RaftLog.open(
        name, folder, members, network=network, timing="fast", snapshot_every=200, timeout_s=2.0
    ) as log:
        clients = [asyncio.create_task(_client(log, f"{name}.{life}.{n}", ending)) for n in range(CLIENTS)]
        await loop.run_in_executor(None, sys.stdin.readline)
        ending.set()
        await asyncio.gather(*clients)


class _Process:
    """One life of a keeper, and what its clients have said."""

    def __init__(self, name: str, folder: Path, members: dict[str, str], life: int) -> None:
        self.said: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "tests.linearizability_run", "--keeper", name, "--life", str(life)]
        command += ["--folder", str(folder / name), "--members", json.dumps(members)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.said.append(json.loads(line))

    def end(self, number: int = 0) -> None:
        """By that signal; or (0) when its clients have finished what they do."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if number:
            self.process.send_signal(number)
        self.process.stdin.close()
        self.process.wait(30)
        self._reader.join(30)
        self.process.stdout.close()


def run(folder: Path, *, seconds: float, seed: int) -> tuple[list[Operation], int]:
    """The history of all clients, and how many faults there were."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    with contextlib.ExitStack() as stack:  # all at once, so that they differ
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in KEEPERS]
        members = {
            name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in zip(KEEPERS, sockets, strict=True)
        }
    lives = {name: [_Process(name, folder, members, 0)] for name in members}
    faults = 0
    try:
        time.sleep(1.0)  # so that there is something to disturb
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.3, 1.0))
            for name in chance.sample(KEEPERS, chance.choice((1, 1, 1, 2, 3))):
                faults += 1
                if chance.random() < 0.6:
                    lives[name][-1].end(signal.SIGKILL)
                    lives[name].append(_Process(name, folder, members, len(lives[name])))
                else:
                    process = lives[name][-1].process
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(chance.choice((0.05, 0.3)))
                    process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
    finally:
        for processes in lives.values():
            assert processes[-1].process.stdin is not None
            processes[-1].process.stdin.write(b"\n")
            processes[-1].process.stdin.flush()
        for processes in lives.values():
            processes[-1].end()
    said = [line for processes in lives.values() for process in processes for line in process.said]
    return history(said), faults


def history(said: list[dict[str, Any]]) -> list[Operation]:
    """Calls and their ends, together; what certainly never happened is left out."""
    ends = {line["call"]: line for line in said if "act" not in line}
    operations = []
    for line in said:
        if "act" not in line:
            continue
        end = ends.get(line["call"], {})
        known = "ended" in end
        if end.get("never") or (line["act"] == "get" and not known):
            continue
        operations.append(
            Operation(
                client=line["client"],
                key=line["key"],
                act=Act(line["act"]),
                called=line["at"],
                ended=end.get("ended"),
                value=end["value"] if known else line["value"],
                expected=line["expected"],
                done=end.get("done", True),
            )
        )
    return operations


def main() -> int:
    """Return 0 if the history is linearizable."""
    parser = argparse.ArgumentParser(prog="python -m tests.linearizability_run")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    for hidden in ("--keeper", "--folder", "--members"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--life", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keeper:
        members = json.loads(options.members)
        asyncio.run(_keeper(options.keeper, Path(options.folder), members, options.life))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        operations, faults = run(Path(folder), seconds=options.minutes * 60, seed=options.seed)
    unknown = sum(one.ended is None for one in operations)
    checked = check(operations)
    print(f"{checked} operations ({unknown} of unknown outcome), {faults} faults: linearizable")
    return 0


if __name__ == "__main__":
    sys.exit(main())
