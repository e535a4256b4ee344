"""Clusters of logs in one process: in memory, and real ones over sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.replication.base import ClusterLog
from fedkeeper.replication.memory import MemoryGroup, MemoryLog
from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork
from tests.replication.raft.real_world import SECRET, shared

WAIT_S = 30.0


@asynccontextmanager
async def memory_logs(*names: str, apply: Any = core_apply) -> AsyncIterator[dict[str, ClusterLog]]:
    """Logs in memory that share their commands; the first leads."""
    group = MemoryGroup(names, apply=apply)
    logs = {name: MemoryLog(name=name, group=group) for name in names}
    yield dict(logs)
    for log in logs.values():
        await log.close()


@asynccontextmanager
async def raft_logs(
    folder: Path, *names: str, apply: Any = core_apply
) -> AsyncIterator[dict[str, ClusterLog]]:
    """Real ones, with a leader that all know."""
    addresses: dict[str, tuple[str, int]] = {}
    networks: dict[str, PeerNetwork] = {}

    def maker(name: str) -> Callable[[Resolve], PeerNetwork]:
        def network(resolve: Resolve) -> PeerNetwork:
            networks[name] = PeerNetwork(
                name, bind=("127.0.0.1", 0), resolve=resolve, credentials=shared(SECRET)
            )
            return networks[name]

        return network

    async with AsyncExitStack() as stack:
        logs: dict[str, ClusterLog] = {}
        for name in names:
            log = RaftLog.open(
                name,
                folder / name,
                dict.fromkeys(names, ""),
                network=maker(name),
                resolve=addresses.get,
                timing="patient",  # only what a test does may make a leader fall, not a busy machine
                apply=apply,
            )
            logs[name] = await stack.enter_async_context(log)
            addresses[name] = networks[name].address
        await agreed(logs)
        yield logs


async def agreed(logs: dict[str, ClusterLog]) -> str:
    """The leader, once all of `logs` name the same one."""
    found: set[str] = set()
    async with asyncio.timeout(WAIT_S):
        while len(found) != 1 or "" in found:
            await asyncio.sleep(0.01)
            found = {log.status.leader for log in logs.values()}
    return found.pop()
