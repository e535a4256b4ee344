"""Three keepers' real logs behind their APIs: what a client gets when they hand over, and when they die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.core.model import KeeperStarted, Phase
from fedkeeper.errors import FedKeeperError
from fedkeeper.keeper.api.app import open_api
from fedkeeper.keeper.api.control import LogControl
from fedkeeper.keeper.api.server import listen
from fedkeeper.keeper.client import KeeperClient
from fedkeeper.keeper.dictionary import DistributedDict
from fedkeeper.replication import codec
from fedkeeper.replication.base import ClusterLog
from tests.keeper.lab import until
from tests.keeper.world import spec
from tests.replication.clusters import agreed, raft_logs

NAMES = ("k1", "k2", "k3")


@dataclass
class Keepers:
    """Their logs, and where their APIs are."""

    logs: dict[str, ClusterLog]
    urls: dict[str, str] = field(default_factory=dict)
    stacks: dict[str, AsyncExitStack] = field(default_factory=dict)

    async def die(self, name: str) -> None:
        """It ends: API and log."""
        await self.stacks.pop(name).aclose()
        await self.logs.pop(name).close()

    async def leader(self) -> str:
        return await agreed(self.logs)


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    """Three of them, announced."""
    async with raft_logs(tmp_path, *NAMES) as logs:
        keepers = Keepers(dict(logs))
        for name, log in logs.items():
            own = keepers.stacks[name] = AsyncExitStack()
            api = await own.enter_async_context(open_api(log, LogControl(log), listen("127.0.0.1", 0)))
            keepers.urls[name] = api.url
            started = KeeperStarted(keeper=name, api=api.url, version=codec.VERSION, at_ms=1)
            await logs[await keepers.leader()].propose(started)
        yield keepers
        for own in keepers.stacks.values():
            await own.aclose()


async def call(what: Any, *args: Any, **options: Any) -> Any:
    """On a thread: the client blocks."""
    return await asyncio.to_thread(partial(what, *args, **options))


async def test_whoever_is_asked_the_leader_answers(keepers):
    """Writes and reads through each keeper see each other at once."""
    for number, name in enumerate(NAMES):
        with KeeperClient(keepers.urls[name], timeout_s=30) as client:
            await call(client.set, "x", number)
        for other in NAMES:
            with KeeperClient(keepers.urls[other], timeout_s=30) as client:
                assert await call(client.get, "x") == number


async def test_writes_survive_a_handover_and_a_death(keepers):
    """Counting goes on over both: every acknowledged increment is there, once."""
    client = KeeperClient(list(keepers.urls.values()), timeout_s=60)
    counted = 0

    def count() -> None:
        nonlocal counted
        d = DistributedDict(client)
        for _ in range(60):
            d.change("n", lambda n: n + 1, default=0)
            counted += 1

    counting = asyncio.create_task(asyncio.to_thread(count))
    await until(lambda: counted >= 15)
    leader = await keepers.leader()
    to = next(name for name in NAMES if name != leader)
    await call(client.lead, to)
    await until(lambda: counted >= 30)
    await keepers.die(await keepers.leader())
    await counting
    assert await call(client.get, "n") == 60
    client.close()


async def test_a_run_is_followed_over_the_leader_s_death(keepers):
    """Its events go on at another keeper; it is stopped through whoever leads then."""
    client = KeeperClient(list(keepers.urls.values()), timeout_s=60)
    seen: list[Any] = []

    def follow() -> None:
        seen.extend(client.events("exp-1"))

    await call(client.submit, spec())
    following = asyncio.create_task(asyncio.to_thread(follow))
    await keepers.die(await keepers.leader())
    await call(client.stop, "exp-1", "enough")
    await following
    assert (seen[-1].phase, seen[-1].reason) == (Phase.STOPPED, "enough")
    client.close()


async def test_without_a_majority_nothing_is_acknowledged(keepers):
    """Stale reads still work, and what was acknowledged is there."""
    with KeeperClient(list(keepers.urls.values()), timeout_s=5) as client:
        await call(client.set, "x", 1)
        for log in keepers.logs.values():
            await log.barrier()
        for name in NAMES[:2]:
            await keepers.die(name)
        with pytest.raises(FedKeeperError):
            await call(client.set, "x", 2)
        assert await call(client.get, "x", stale=True) == 1
        status = await call(client.status)
        assert status.name == "k3"
        assert status.problem


async def test_a_keeper_leaves_through_the_api(keepers):
    """Also the leader: another one leads first."""
    leader = await keepers.leader()
    with KeeperClient(list(keepers.urls.values()), timeout_s=60) as client:
        members = await call(client.remove_member, leader)
        assert leader not in [member.name for member in members.members]
        await call(client.set, "x", 1)
        assert await call(client.get, "x") == 1
