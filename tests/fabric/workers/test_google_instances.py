"""How many instances of a Cloud Function there may be: real workers, and the gate by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedkeeper.fabric.google_instances import Gates
from fedkeeper.fabric.model import Limits, PoolFull, Revision
from tests.fabric.workers.conftest import Bench, eventually

WAITING = """
    import os, time
    def main(request):
        open(request.args["mark"], "x").close()
        while not os.path.exists(request.args["go"]):
            time.sleep(0.01)
        return str(os.getpid())
"""


@pytest.mark.parametrize(("concurrency", "instances", "requests"), [(1, 2, 6), (3, 1, 6), (2, 2, 8)])
async def test_a_burst_without_any_instance_starts_no_more_than_it_may(
    bench: Bench, tmp_path: Path, concurrency: int, instances: int, requests: int
) -> None:
    """All requests are answered, by at most that many processes; those over wait for a place."""
    await bench.open()
    source = "import os\ndef main(request): return str(os.getpid())"
    function = bench.revision(source, flavour="google", concurrency=concurrency, instances=instances)
    answers = await asyncio.gather(*(bench.get(function) for _ in range(requests)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) <= instances
    assert bench.pool.stats()["cold"] <= instances


async def test_at_max_instances_the_next_request_is_turned_away(bench: Bench, tmp_path: Path) -> None:
    """PoolFull (429) after a wait that is bounded; once one has ended there is room again."""
    await bench.open(pending_s=0.2)
    function = bench.revision(WAITING, flavour="google", instances=2)
    marks, go = [tmp_path / str(number) for number in range(2)], tmp_path / "go"
    running = [asyncio.create_task(bench.get(function, f"/?mark={mark}&go={go}")) for mark in marks]
    await eventually(lambda: all(mark.exists() for mark in marks))
    with pytest.raises(PoolFull, match="no available instance"):
        await bench.get(function, f"/?mark={tmp_path / 'third'}&go={go}")
    assert not (tmp_path / "third").exists()
    other = bench.revision("def main(request): return 'ok'", flavour="google")
    assert (await bench.get(other)).body == b"ok"  # another function is not held up
    go.touch()
    assert {answer.status for answer in await asyncio.gather(*running)} == {200}
    assert (await bench.get(function, f"/?mark={tmp_path / 'fourth'}&go={go}")).status == 200


class Places:
    """Instances of one revision, as the pool would count them."""

    def __init__(self) -> None:
        self.living = self.free = 0

    def __call__(self, revision_id: str) -> tuple[int, int]:
        del revision_id
        return self.living, self.free


def revision(*, concurrency: int, instances: int) -> Revision:
    """One that is never run."""
    limits = Limits(concurrency=concurrency, instances=instances)
    return Revision(id="r", flavour="google", name="f", folder="/nowhere", entry="main", limits=limits)


async def settled() -> None:
    """Let every task run until it waits for something that this test has in its hands."""
    for _ in range(50):
        await asyncio.sleep(0)


async def entered(gates: Gates, one: Revision, log: list[str], name: str, leave: asyncio.Event) -> None:
    """A request that is on its way until `leave`."""
    async with gates.enter(one) as arrived:
        log.append(name)
        await leave.wait()
        arrived()


async def test_first_come_first_served_and_starters_make_room() -> None:
    """With three places an instance, one request starts it and two wait for it; the rest start the second."""
    places, log = Places(), []
    gates = Gates(places, pending_s=20)
    leave = [asyncio.Event() for _ in range(5)]
    one = revision(concurrency=3, instances=2)
    tasks = [asyncio.create_task(entered(gates, one, log, str(n), leave[n])) for n in range(5)]
    await settled()
    assert log == ["0", "1"]  # both start one: five do not fit into one instance
    places.living, places.free = 1, 2
    leave[0].set()
    await settled()
    assert log == ["0", "1", "2", "3"]
    for event in leave:
        event.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)


async def test_a_start_that_fails_lets_the_next_one_try() -> None:
    """The place that it held is free at once."""
    places, log = Places(), []
    gates = Gates(places, pending_s=20)
    leave = [asyncio.Event(), asyncio.Event()]
    one = revision(concurrency=1, instances=1)
    tasks = [asyncio.create_task(entered(gates, one, log, str(n), leave[n])) for n in range(2)]
    await settled()
    assert log == ["0"]
    leave[0].set()  # and no instance has come to live
    await tasks[0]
    leave[1].set()
    await tasks[1]
    assert log == ["0", "1"]


async def test_a_caller_that_gives_up_holds_nothing() -> None:
    """Cancelled while it waits, or when it was just let through."""
    places, log = Places(), []
    gates = Gates(places, pending_s=20)
    leave = asyncio.Event()
    one = revision(concurrency=1, instances=1)
    first = asyncio.create_task(entered(gates, one, log, "first", leave))
    second = asyncio.create_task(entered(gates, one, log, "second", leave))
    third = asyncio.create_task(entered(gates, one, log, "third", leave))
    await settled()
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    leave.set()
    async with asyncio.timeout(5):
        await third
    assert log == ["first", "third"]
