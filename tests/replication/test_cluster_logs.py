"""What every log of a cluster must do beyond `test_logs`; run on the real one and on its double."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from fedkeeper.core.model import PutValue
from fedkeeper.errors import MembershipRefused, NoLeader
from fedkeeper.replication.base import ClusterLog, Role
from fedkeeper.replication.memory import MemoryGroup, MemoryLog
from tests.replication.clusters import WAIT_S, agreed, memory_logs, raft_logs

NAMES = ("k1", "k2", "k3")


def put(number: int) -> PutValue:
    """A command."""
    return PutValue(name="x", value=str(number), at_ms=0)


class ClusterLogContract:
    """Subclass it once per log and supply `opened`, an async context manager over three of them."""

    def opened(self) -> AbstractAsyncContextManager[dict[str, ClusterLog]]:
        raise NotImplementedError

    async def test_one_leads_and_all_know(self):
        """In the same term; the others follow, and all belong to it."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            for name, log in logs.items():
                status = log.status
                assert status.name == name
                assert status.role is (Role.LEADER if name == leader else Role.FOLLOWER)
                assert [member.name for member in status.members] == list(NAMES)
                assert status.ready
                assert status.problem == ""
            assert len({log.status.term for log in logs.values()}) == 1

    async def test_a_barrier_holds_what_was_acknowledged(self):
        """On every keeper, whoever acknowledged it."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            await logs[leader].propose(put(1))
            for log in logs.values():
                assert (await log.barrier()).kv["x"].value == "1"
                assert log.state.kv["x"].value == "1"

    async def test_all_hear_every_command_once_in_order(self):
        """Also those that the leader proposed before it."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            heard: dict[str, list[str]] = {name: [] for name in NAMES}
            for name, log in logs.items():
                log.listen(lambda command, _, mine=heard[name]: mine.append(command.value))
            await asyncio.gather(*(logs[leader].propose(put(number)) for number in range(100)))
            for log in logs.values():
                await log.barrier()
            assert all(mine == [str(number) for number in range(100)] for mine in heard.values())

    async def test_leadership_is_handed_over(self):
        """It returns when the other one leads, and those who watch are told."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            to = next(name for name in NAMES if name != leader)
            told: list[str] = []
            stop = logs[leader].watch(lambda status: told.append(status.leader))
            before = logs[leader].status.term
            await logs[leader].transfer(to)
            async with asyncio.timeout(WAIT_S):
                while await agreed(logs) != to or told[-1:] != [to]:  # noqa: ASYNC110 - two logs are to agree
                    await asyncio.sleep(0.01)
            assert logs[to].status.role is Role.LEADER
            assert logs[to].status.term > before
            stop()
            stop()
            count = len(told)
            await logs[to].transfer(leader)
            assert len(told) == count

    async def test_changes_that_cannot_be_are_refused(self):
        """Nothing changes then."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            other = next(name for name in NAMES if name != leader)
            log = logs[leader]
            for act in (
                log.transfer("k9"),
                log.add_member(other, "127.0.0.1:1"),
                log.remove_member("k9"),
                log.remove_member(leader),
            ):
                with pytest.raises(MembershipRefused):
                    await act
            for act in (logs[other].add_member("k4", "127.0.0.1:1"), logs[other].remove_member(leader)):
                with pytest.raises((MembershipRefused, NoLeader)):
                    await act
            assert [member.name for member in log.status.members] == list(NAMES)
            assert await agreed(logs) == leader

    async def test_a_keeper_is_let_go(self):
        """Confirmed when it returns; the others go on."""
        async with self.opened() as logs:
            leader = await agreed(logs)
            gone = next(name for name in NAMES if name != leader)
            await logs[leader].remove_member(gone)
            assert gone not in [member.name for member in logs[leader].status.members]
            await logs[leader].propose(put(2))

    async def test_a_log_that_works_has_not_stopped(self):
        """Whoever waits for that waits on."""
        async with self.opened() as logs:
            waiting = [asyncio.create_task(log.stopped()) for log in logs.values()]
            await logs[await agreed(logs)].propose(put(1))
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


class TestMemoryLogs(ClusterLogContract):
    """The double."""

    def opened(self):
        return memory_logs(*NAMES)

    async def test_nobody_leads_when_it_is_told_so(self):
        """So that users of a log can be tested for a lost majority."""
        group = MemoryGroup(NAMES)
        logs = [MemoryLog(name=name, group=group) for name in NAMES]
        group.lead("")
        for log in logs:
            assert log.status.role is Role.CANDIDATE
            with pytest.raises(NoLeader):
                await log.propose(put(1))
            with pytest.raises(NoLeader):
                await log.barrier()

    async def test_one_may_be_behind(self):
        """It learns of everything later, in order; its barrier waits for that."""
        group = MemoryGroup(NAMES)
        first, second, _ = (MemoryLog(name=name, group=group) for name in NAMES)
        second.behind = True
        await first.propose(put(1))
        assert second.state.kv == {}
        reading = asyncio.create_task(second.barrier())
        await asyncio.sleep(0)
        second.behind = False
        assert (await reading).kv["x"].value == "1"


class TestRaftLogs(ClusterLogContract):
    """The real one."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def opened(self):
        return raft_logs(self.folder, *NAMES)
