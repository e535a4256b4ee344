"""The cluster's log as the keeper uses it: threads, sockets, files, and real processes that are killed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.core.model import Applied, Command
from fedkeeper.errors import JournalError, KeeperStopped, NoLeader, OutcomeUnknown
from fedkeeper.replication.base import LogStatus
from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork, Unprotected
from tests.replication import toy
from tests.replication.raft.log_process import Process

NAMES = ("k1", "k2", "k3")


class Logs:
    """Keepers' logs in this process, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: dict[str, RaftLog] = {}
        self._addresses: dict[str, tuple[str, int]] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    async def start(self, name: str, members: tuple[str, ...] = NAMES, **options: Any) -> RaftLog:
        made: list[PeerNetwork] = []

        def network(resolve: Resolve) -> PeerNetwork:
            made.append(PeerNetwork(name, bind=("127.0.0.1", 0), resolve=resolve, credentials=Unprotected()))
            return made[0]

        stack = self._stacks[name] = AsyncExitStack()
        log = await stack.enter_async_context(
            RaftLog.open(
                name,
                self.folder / name,
                dict.fromkeys(members, ""),
                network=network,
                resolve=self._addresses.get,
                apply=toy.apply,
                **options,
            )
        )
        self._addresses[name] = made[0].address
        self.logs[name] = log
        return log

    async def stop(self, name: str) -> None:
        del self.logs[name]
        await self._stacks.pop(name).aclose()

    async def close(self) -> None:
        for name in list(self.logs):
            await self.stop(name)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"in vain for {what}")

    async def leader(self) -> RaftLog:
        names = {log.name for log in self.logs.values()}

        def agreed() -> bool:
            leaders = {log.status.leader for log in self.logs.values()}
            return len(leaders) == 1 and leaders <= names

        await self.until(agreed, "one leader")
        return self.logs[next(iter(self.logs.values())).status.leader]

    async def follower(self) -> RaftLog:
        leader = await self.leader()
        return next(log for log in self.logs.values() if log is not leader)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Logs]:
    """A cluster with a leader."""
    logs = Logs(tmp_path)
    for name in NAMES:
        await logs.start(name)
    await logs.leader()
    yield logs
    await logs.close()


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Logs]:
    """For clusters of one."""
    logs = Logs(tmp_path)
    yield logs
    await logs.close()


async def test_many_callers_on_all_keepers_see_one_order(three: Logs) -> None:
    """Each result is that of the caller's own command; listeners hear every command once, in order."""
    heard: dict[str, list[Command]] = {name: [] for name in NAMES}
    for name, log in three.logs.items():
        log.listen(lambda command, _applied, mine=heard[name]: mine.append(command))
    leader = await three.leader()
    results = await asyncio.gather(
        *(leader.propose(toy.command(number)) for number in range(1, 501)),
    )
    assert [int(applied.state.now_ms) for applied in results] == list(range(1, 501))
    for log in three.logs.values():
        assert toy.count(await log.barrier()) == 500
        assert toy.count(log.state) == 500
    expected = [toy.command(number) for number in range(1, 501)]
    assert all(one == expected for one in heard.values())


async def test_a_follower_proposes_and_has_the_state_when_it_is_answered(three: Logs) -> None:
    """Its own state, not only the leader's."""
    log = await three.follower()
    applied = await log.propose(toy.command(1))
    assert applied.state == toy.after(1) == log.state


async def test_proposals_outlive_a_leader(three: Logs) -> None:
    """What certainly came to nothing is proposed again; nobody notices but by the time it takes."""
    follower = await three.follower()
    leader = await three.leader()
    await leader.propose(toy.command(1))
    await three.stop(leader.name)
    assert (await follower.propose(toy.command(2))).state == toy.after(2)


async def test_without_a_majority_proposals_end_in_time(tmp_path: Path) -> None:
    """With the reason; and go on when there is one again."""
    logs = Logs(tmp_path)
    for name in NAMES:
        await logs.start(name, timeout_s=0.5)
    try:
        leader = await logs.leader()
        for name in NAMES:
            if name != leader.name:
                await logs.stop(name)
        with pytest.raises((NoLeader, OutcomeUnknown)):
            await leader.propose(toy.command(1))
        await logs.until(lambda: "no majority" in leader.status.problem, "the reason")
        with pytest.raises(NoLeader):
            await leader.propose(toy.command(1))
        with pytest.raises(NoLeader):
            await leader.barrier()
    finally:
        await logs.close()


async def test_the_lead_is_handed_over(three: Logs) -> None:
    """Returns when the other one leads, and watchers hear of it."""
    leader = await three.leader()
    to = (await three.follower()).name
    seen: list[LogStatus] = []
    leader.watch(seen.append)
    await leader.transfer(to)
    assert leader.status.leader == to
    assert seen[-1].leader == to
    await leader.propose(toy.command(1))


async def test_members_are_added_and_removed(three: Logs) -> None:
    """A keeper that was removed stops, and says why."""
    leader = await three.leader()
    await leader.propose(toy.command(1))
    await three.start("k4", (*NAMES, "k4"))
    await leader.add_member("k4", "")
    await three.until(lambda: len(three.logs["k4"].status.members) == 4, "four")
    assert toy.count(await three.logs["k4"].barrier()) == 1
    name = (await three.follower()).name
    leader = await three.leader()
    await leader.remove_member(name)
    with pytest.raises(KeeperStopped, match="was removed"):
        await asyncio.wait_for(three.logs[name].stopped(), 20)
    with pytest.raises(KeeperStopped):
        await three.logs[name].propose(toy.command(2))


async def test_one_keeper_restarts_with_what_it_had(alone: Logs) -> None:
    """From its journal, and from its snapshot."""
    log = await alone.start("k1", ("k1",), snapshot_every=100)
    for number in range(1, 251):
        await log.propose(toy.command(number))
    await alone.stop("k1")
    log = await alone.start("k1", ("k1",), snapshot_every=100)
    assert toy.count(await log.barrier()) == 250


async def test_too_many_that_wait_are_refused(alone: Logs) -> None:
    """At once, and for certain."""
    log = await alone.start("k1", ("k1",), waiting_max=10)
    outcomes = await asyncio.gather(
        *(log.propose(toy.command(number)) for number in range(1, 31)), return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [Applied] * 10 + [NoLeader] * 20


async def test_a_large_command_goes_through_and_a_larger_one_is_refused(alone: Logs) -> None:
    """Before it is in the log, where it would be for ever."""
    log = await alone.start("k1", ("k1",))
    large = toy.command(1).__class__(run="run-1", reason="x" * 3_000_000, at_ms=1)
    assert not (await log.propose(large)).rejected
    with pytest.raises(JournalError, match="longer"):
        await log.propose(toy.command(1).__class__(run="run-1", reason="x" * 17_000_000, at_ms=1))


async def test_a_closed_log_takes_nothing_and_its_callers_are_told(alone: Logs) -> None:
    """Closing twice is harmless."""
    log = await alone.start("k1", ("k1", "k2"))
    waiting = asyncio.create_task(log.propose(toy.command(1)))
    await asyncio.sleep(0.05)
    await log.close()
    with pytest.raises(KeeperStopped):
        await waiting
    with pytest.raises(KeeperStopped):
        await log.propose(toy.command(1))
    await log.close()


async def test_a_folder_in_use_is_refused_when_the_log_is_opened(alone: Logs) -> None:
    """Two keepers must never share one."""
    await alone.start("k1", ("k1",))
    other = Logs(alone.folder)
    with pytest.raises(JournalError, match="in use"):
        await other.start("k1", ("k1",))


# --- real processes ---------------------------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Starts a keeper's process; ends what is left of them."""
    ports = {}
    for name in NAMES:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[name] = f"127.0.0.1:{probe.getsockname()[1]}"
    started: list[Process] = []

    def start(name: str) -> Process:
        started.append(Process(name, tmp_path / name, ports))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Until it holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"in vain for {what}"
        time.sleep(0.01)


def test_processes_killed_under_load_lose_nothing(processes: Callable[[str], Process]) -> None:
    """Leaders are killed, then all at once; whatever was acknowledged is there, and alike on all."""
    running = {name: processes(name) for name in NAMES}
    told: set[str] = set()

    def all_write(more: int) -> None:
        before = {name: len(process.wrote) for name, process in running.items()}
        wait(lambda: all(len(p.wrote) >= before[n] + more for n, p in running.items()), "writes by all")

    all_write(20)
    for _ in range(3):
        wait(lambda: all(p.leader in NAMES for p in running.values()), "a leader")
        leader = running["k1"].leader
        victim = running.pop(leader)
        victim.kill()
        told.update(victim.wrote)
        all_write(20)
        running[leader] = processes(leader)
        all_write(20)
    for process in running.values():
        process.kill()
        told.update(process.wrote)
    running = {name: processes(name) for name in NAMES}
    all_write(20)
    for process in running.values():
        process.finish()
    wait(lambda: all(p.names is not None for p in running.values()), "their states")
    for process in running.values():
        told.update(process.wrote)
    names = [set(process.names or ()) for process in running.values()]
    assert told <= set.intersection(*names)
    assert len(told) > 200
    for process in running.values():
        process.end()
