"""A keeper that was removed while it was down finds out, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fedkeeper.clock import SystemClock
from fedkeeper.errors import KeeperStopped
from fedkeeper.keeper.api.schemas import Status
from fedkeeper.keeper.belonging import Belonging, without
from fedkeeper.replication.base import LogStatus, Member, Role
from tests.keeper.world import World

OWN = LogStatus(
    name="k1",
    role=Role.FOLLOWER,
    leader="",
    term=4,
    voted_for="",
    commit_index=0,
    applied_index=0,
    last_index=9,
    members=tuple(
        Member(name=name, address="", connected=False, match_index=None) for name in ("k1", "k2", "k3")
    ),
    ready=False,
)


def says(name: str = "k2", **others: object) -> Status:
    """k2 leads k2 and k3."""
    plain: dict[str, object] = {
        "name": name,
        "role": "leader",
        "leader": "k2",
        "conductor": "k2",
        "conductor_why": "",
        "conductor_since_ms": 0,
        "pinned": False,
        "epoch": 1,
        "term": 4,
        "commit_index": 20,
        "applied_index": 20,
        "last_index": 20,
        "ready": True,
        "problem": "",
        "members": ("k2", "k3"),
        "keepers": (),
        "runs": (),
        "entries": 0,
        "now_ms": 0,
    }
    return Status(**(plain | others))  # type: ignore[arg-type]


def test_the_leader_of_the_others_says_so():
    """It leads, works, and knows no such member."""
    assert without(OWN, [says()]) == "k2"


@pytest.mark.parametrize(
    "answer",
    [
        says("k3"),
        says(term=3),
        says(members=("k1", "k2", "k3")),
        says(problem="no majority: k3 cannot be reached"),
        says(ready=False),
        says("k9", leader="k9"),
    ],
    ids=["a follower", "an old leader", "a member", "no majority", "just begun", "another cluster"],
)
def test_nobody_else_is_believed(answer: Status):
    """A keeper that stops for nothing is worse than one that waits."""
    assert without(OWN, [answer]) == ""


class Away:
    """A log that hears no leader, until it does."""

    def __init__(self, world: World) -> None:
        self.status = OWN
        self.watch = world.log.watch


async def test_it_stops_when_it_is_told_twice(world: World):
    """And says who said so, and what to do."""
    asked = 0

    async def ask() -> Sequence[Status]:
        nonlocal asked
        asked += 1
        return [says("k3"), says()]

    belonging = Belonging(log=Away(world), ask=ask, clock=SystemClock(), every_s=0.01)  # type: ignore[arg-type]
    with pytest.raises(KeeperStopped, match=r"k1 was removed .* says its leader k2") as raised:
        await belonging.run()
    assert asked == 2
    assert "keeper add" in raised.value.hint


@pytest.mark.parametrize("status", [replace(OWN, counts=False), replace(OWN, leader="k2")])
async def test_one_that_is_about_to_join_or_hears_a_leader_asks_nobody(world: World, status: LogStatus):
    """It waits for its leader, or has one."""
    away = Away(world)
    away.status = status

    async def ask() -> Sequence[Status]:
        raise AssertionError

    waiting = asyncio.ensure_future(
        Belonging(log=away, ask=ask, clock=SystemClock(), every_s=0.001).run()  # type: ignore[arg-type]
    )
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
