"""What a keeper measures, and when it tells the others."""

import pytest

from fedkeeper.clock import FakeClock
from fedkeeper.core.model import KeeperMeasured, KeeperStarted
from fedkeeper.errors import ApiError, ProviderUnavailable
from fedkeeper.keeper.measuring import REPEAT_S, Measuring
from fedkeeper.replication.memory import MemoryLog


class Far:
    """Targets at given distances, on a clock that moves by them."""

    def __init__(self, **ms: float) -> None:
        self.ms = ms
        self.now = 0.0
        self.asked: list[str] = []

    def seconds(self) -> float:
        return self.now

    async def probe(self, url: str) -> None:
        await self.ask(url.removeprefix("http://"))

    async def ask(self, name: str) -> None:
        self.asked.append(name)
        if self.ms[name] < 0:
            raise ApiError("no answer") if name.startswith("k") else ProviderUnavailable(name, "", "away")
        self.now += self.ms[name] / 1000


class Cluster:
    """The part of a provider that is measured."""

    def __init__(self, name: str, far: Far) -> None:
        self.name = name
        self.far = far

    async def check(self) -> None:
        await self.far.ask(self.name)


def measuring(far: Far, log: MemoryLog, *, eager: bool = False) -> Measuring:
    """Of k1, whose clusters are those of `far` that are no keepers."""
    return Measuring(
        keeper="k1",
        log=log,
        providers={name: Cluster(name, far) for name in far.ms if not name.startswith("k")},  # type: ignore[misc]
        probe=far.probe,
        every_s=10,
        eager=eager,
        clock=FakeClock(),
        seconds=far.seconds,
    )


@pytest.fixture
async def log() -> MemoryLog:
    """Three keepers have announced themselves."""
    log = MemoryLog()
    for name in ("k1", "k2", "k3"):
        await log.propose(KeeperStarted(keeper=name, api=f"http://{name}", version=1, at_ms=1))
    return log


async def test_the_others_and_the_clusters_are_measured(log: MemoryLog):
    """In ms, a few requests each; not itself, and not what cannot be reached."""
    far = Far(k2=2.0, k3=-1, ow=5.0, gcf=-1)
    assert await measuring(far, log).measure() == {"keeper/k2": 2.0, "cluster/ow": 5.0}
    assert far.asked.count("k2") == 3
    assert "k1" not in far.asked


async def test_small_changes_are_no_news(log: MemoryLog):
    """On one machine everything is near: nothing is proposed for the noise of a millisecond."""
    far = Far(k2=2.0, k3=2.0)
    told = measuring(far, log)
    await told._tell(await told.measure())
    far.ms["k2"] = 2.9
    assert not told._is_news(await told.measure())
    far.ms["k2"] = 4.0
    assert told._is_news(await told.measure())


async def test_what_is_not_reached_any_more_is_news(log: MemoryLog):
    """And so is what has not been told for a while."""
    far = Far(k2=2.0, k3=2.0)
    told = measuring(far, log)
    await told._tell(await told.measure())
    far.ms["k3"] = -1
    assert told._is_news(await told.measure())
    far.ms["k3"] = 2.0
    assert not told._is_news(await told.measure())
    far.now += REPEAT_S
    assert told._is_news(await told.measure())


async def test_measurements_are_replicated(log: MemoryLog):
    """Where placement looks for them."""
    told: list[KeeperMeasured] = []
    log.listen(lambda command, _: told.append(command) if isinstance(command, KeeperMeasured) else None)
    far = Far(k2=2.0, k3=3.0)
    one = measuring(far, log, eager=True)
    await one._tell(await one.measure())
    assert log.state.keepers["k1"].latencies == {"keeper/k2": 2.0, "keeper/k3": 3.0}
    assert len(told) == 1
