"""A keeper as a whole: it says where it is, hands over when it ends, and ends when its log does."""

import asyncio

import pytest

from fedkeeper.core.model import KeeperLost, KeeperRemoved, KeeperStarted
from fedkeeper.errors import ConfigError, JournalFull
from fedkeeper.keeper.api.schemas import Status
from fedkeeper.keeper.belonging import Belonging
from fedkeeper.keeper.measuring import Measuring
from fedkeeper.keeper.node import Keeper, KeeperControl
from fedkeeper.weights.memory import MemoryUpdates
from tests.keeper.world import World, spec


async def never(url: str) -> None:
    """Nothing is measured here."""
    del url


async def nobody() -> list[Status]:
    """No other keeper answers."""
    return []


def keeper_of(world: World, name: str) -> Keeper:
    """Over the parts of a world's keeper, which it runs itself."""
    part = world.start(name)
    part.task.cancel()
    log = world.logs[name]
    return Keeper(
        name=name,
        log=log,
        conducting=part.conducting,
        measuring=Measuring(
            keeper=name, log=log, providers={}, probe=never, every_s=60, eager=False, clock=world.clock
        ),
        belonging=Belonging(log=log, ask=nobody, clock=world.clock),
        clock=world.clock,
        api_url=f"http://{name}:1",
        raft_address="127.0.0.1:2",
    )


async def test_it_announces_itself_whenever_the_others_do_not_know_it(world: World):
    """At its start, after it counted as lost, and when another address is known."""
    keeper = keeper_of(world, "k1")
    keeper.start()
    known = world.group.state.keepers
    await world.until(lambda: "k1" in world.group.state.keepers)
    await world.log.propose(KeeperLost(keeper="k1", reason="its connection is gone", at_ms=2))
    await world.until(lambda: world.group.state.keepers["k1"].alive)
    await world.log.propose(KeeperStarted(keeper="k1", api="http://elsewhere", version=1, at_ms=3))
    await world.until(lambda: world.group.state.keepers["k1"].api == "http://k1:1")
    assert known == {}
    await keeper.close()


async def test_one_that_was_removed_keeps_quiet(trio: World):
    """Or it would be known for ever."""
    keeper = keeper_of(trio, "k2")
    keeper.start()
    await trio.until(lambda: trio.group.state.keepers["k2"].api == "http://k2:1")
    del trio.group.members["k2"]
    await trio.log.propose(KeeperRemoved(keeper="k2", at_ms=3))
    await asyncio.sleep(0.05)
    assert "k2" not in trio.group.state.keepers
    await keeper.close()


async def test_it_hands_over_before_it_ends(trio: World):
    """Leading and with it conducting: the others need not find out that it is gone."""
    one, two = keeper_of(trio, "k1"), keeper_of(trio, "k2")
    one.start()
    two.start()
    trio.platform.delay_s = 0.01
    await trio.submit(spec())
    await trio.until(lambda: bool(trio.platform.invoked))
    del trio.group.members["k3"]  # or it would be the successor, and it does not run
    await one.close()
    assert trio.group.leader == "k2"
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    assert len(trio.platform.invoked) == len(set(trio.platform.invoked))
    await two.close()


async def test_it_ends_with_its_logs_reason(world: World):
    """So that the process can say it, and exit accordingly."""
    keeper = keeper_of(world, "k1")
    keeper.start()
    await world.until(lambda: "k1" in world.group.state.keepers)
    world.log.failure = JournalFull("no space left")
    with pytest.raises(JournalFull, match="no space"):
        await keeper.stopped()
    await keeper.close()


async def test_a_run_that_does_not_fit_is_refused_and_a_forgotten_one_dropped(world: World):
    """Both before anything is proposed."""
    dropped = []

    class Store(MemoryUpdates):
        async def drop(self, run: str) -> int:
            dropped.append(run)
            return 0

    def check(*_: object) -> None:
        raise ConfigError("cluster 'far' is not in it")

    control = KeeperControl(
        log=world.log,
        conducting=world.start().conducting,
        store=Store(),
        check=check,
        config={"name": "exp"},
        clock=world.clock,
    )
    with pytest.raises(ConfigError, match="far"):
        await control.submit(spec(), {}, {})
    await control.forget("exp-1")
    assert dropped == ["exp-1"]
    assert await control.config() == {"name": "exp"}


async def test_a_removed_member_is_forgotten(trio: World):
    """In the log's members and in what is replicated."""
    control = KeeperControl(
        log=trio.log,
        conducting=trio.start().conducting,
        store=MemoryUpdates(),
        check=lambda *_: None,
        config={},
        clock=trio.clock,
    )
    await control.remove_member("k3")
    assert "k3" not in trio.group.members
    assert "k3" not in trio.group.state.keepers
