"""Strangers at the ports of a real cluster: it keeps its leader and its term, and goes on committing.

Each row of the table that PySyncObj as shipped failed. The attacks come from a process of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import Credentials, PeerNetwork
from tests.replication.raft.attacks import ATTACKS
from tests.replication.raft.real_world import credentials_of
from tests.replication.toy import apply, command, count

NAMES = ("k1", "k2", "k3")
MIB = 1 << 20


class Cluster:
    """Three keepers' logs in this process, over real sockets."""

    def __init__(self) -> None:
        self.logs: dict[str, RaftLog] = {}
        self.networks: dict[str, PeerNetwork] = {}
        self.proposed = 0

    async def start(
        self, stack: AsyncExitStack, folder: Path, credentials: Callable[[str], Credentials]
    ) -> None:
        """Open all three and wait for a leader."""
        addresses: dict[str, tuple[str, int]] = {}

        def maker(name: str) -> Callable[[Resolve], PeerNetwork]:
            def network(resolve: Resolve) -> PeerNetwork:
                self.networks[name] = PeerNetwork(
                    name, bind=("127.0.0.1", 0), resolve=resolve, credentials=credentials(name)
                )
                return self.networks[name]

            return network

        for name in NAMES:
            log = RaftLog.open(
                name,
                folder / name,
                dict.fromkeys(NAMES, ""),
                network=maker(name),
                resolve=addresses.get,
                timing="patient",  # only what an attack does may make a leader fall, not a busy machine
                apply=apply,
            )
            self.logs[name] = await stack.enter_async_context(log)
            addresses[name] = self.networks[name].address
        await self.propose()

    @property
    def leader(self) -> RaftLog:
        """The log of the keeper that leads."""
        return self.logs[self.logs["k1"].status.leader]

    async def propose(self) -> None:
        """One more command; it is committed when this returns."""
        self.proposed += 1
        await self.logs["k1" if self.proposed == 1 else self.leader.name].propose(command(self.proposed))

    async def connected(self) -> None:
        """Wait until each sees each."""
        for _ in range(1000):
            if all(member.connected for log in self.logs.values() for member in log.status.members):
                return
            await asyncio.sleep(0.01)
        pytest.fail("the keepers do not see each other")

    async def checked(self) -> None:
        """All three have every command once, in order."""
        for log in self.logs.values():
            assert count(await log.barrier()) == self.proposed


@pytest.fixture
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """With a secret, unless the test asks for certificates."""
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        kind = getattr(request, "param", "secret")
        await cluster.start(stack, tmp_path, credentials_of(kind, tmp_path))
        await cluster.connected()
        yield cluster


async def attacked(cluster: Cluster, attack: str, target: str, folder: Path) -> None:
    """Let `attack` do what it can to `target`, and commit all the while. Fails if it got anywhere."""
    leader, term = cluster.leader.name, cluster.leader.status.term
    me = psutil.Process()
    before, files = me.memory_info().rss, me.num_fds()
    port = cluster.networks[target].address[1]
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.replication.raft.attacks", attack, str(port), str(folder)
    )
    ended = asyncio.ensure_future(attacker.wait())
    most = 0
    try:
        while not ended.done():
            await cluster.propose()
            most = max(most, me.memory_info().rss)
            await asyncio.sleep(0.005)
    finally:
        if not ended.done():
            attacker.kill()
        status = await ended
    assert status == 0, f"{attack} got somewhere"
    assert most - before < 64 * MIB
    for _ in range(500):
        if me.num_fds() <= files:
            break
        await asyncio.sleep(0.01)
    assert me.num_fds() <= files
    await cluster.checked()
    for log in cluster.logs.values():
        assert (log.status.leader, log.status.term) == (leader, term)
        assert all(member.connected for member in log.status.members)


@pytest.mark.parametrize(
    "attack",
    ["pickle bomb", *ATTACKS],
)
async def test_the_leader_stays_under_attack(cluster: Cluster, attack: str, tmp_path: Path) -> None:
    """Same leader, same term, every command committed once, memory and files bounded."""
    await attacked(cluster, attack, cluster.leader.name, tmp_path)


@pytest.mark.parametrize("attack", ["false candidate", "idle connections"])
@pytest.mark.parametrize("cluster", ["tls"], indirect=True)
async def test_so_it_does_with_certificates(cluster: Cluster, attack: str, tmp_path: Path) -> None:
    """The other kind of credentials, where the handshake itself costs more."""
    await attacked(cluster, attack, cluster.leader.name, tmp_path)


async def test_a_follower_under_attack_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Nor can one be brought to campaign."""
    follower = next(name for name in NAMES if name != cluster.leader.name)
    await attacked(cluster, "false candidate", follower, tmp_path)


async def test_files_that_run_out_cost_no_listener(cluster: Cluster, tmp_path: Path) -> None:
    """With hardly a file descriptor left the cluster goes on; afterwards every keeper takes connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = cluster.leader.name
    leader, term = target, cluster.leader.status.term
    port = cluster.networks[target].address[1]
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.replication.raft.attacks", "crowd", str(port), str(tmp_path)
    )
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 (numbers)
    free = itertools.filterfalse(used.__contains__, itertools.count())
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, 12, None)), hard))
    try:
        for _ in range(1000):
            await cluster.propose()
            if cluster.networks[target].counts.accepts_failed:
                break
            await asyncio.sleep(0.01)
        for _ in range(50):
            await cluster.propose()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await attacker.wait() == 0
    assert cluster.networks[target].counts.accepts_failed > 0
    await cluster.checked()
    assert (cluster.leader.name, cluster.leader.status.term) == (leader, term)
    for name in NAMES:
        _, writer = await asyncio.open_connection(*cluster.networks[name].address)
        writer.close()
        await writer.wait_closed()
