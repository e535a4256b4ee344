"""The distributed dictionary against real keepers' APIs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fedkeeper.errors import Rejected
from fedkeeper.keeper.client import KeeperClient
from fedkeeper.keeper.dictionary import (
    LOCKS,
    DistributedDict,
    LockBusy,
    LockLost,
    ReadsEvery,
    SecondsEvery,
)
from tests.keeper.lab import Lab, open_lab

pytestmark = pytest.mark.timeout(60)


class Time:
    """A clock that is turned by hand, or by those who sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Counting(KeeperClient):
    """Counts what it asks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked = 0

    def _ask(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return super()._ask(*args, **options)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """k1 leads k2."""
    async with open_lab("k1", "k2") as lab:
        yield lab


@pytest.fixture
def work(lab) -> Iterator[Callable[[Callable[[Counting], None]], Any]]:
    """Runs a blocking piece of a test, with a client, on a thread beside the keepers' loop."""
    client = Counting(lab.urls, timeout_s=20.0)

    async def run(what: Callable[[Counting], None]) -> None:
        await asyncio.to_thread(what, client)

    yield run
    client.close()


async def test_it_is_a_mutable_mapping(work):
    """As a dict is, down to the errors."""

    def check(client):
        d = DistributedDict(client)
        assert dict(d) == {}
        assert len(d) == 0
        d["a"], d["b/c"], d["é"] = 1, [None, {"x": True}], "text"
        assert d["b/c"] == [None, {"x": True}]
        assert list(d) == ["a", "b/c", "é"]
        assert dict(d.items()) == {"a": 1, "b/c": [None, {"x": True}], "é": "text"} == d.snapshot()
        assert d == {"a": 1, "b/c": [None, {"x": True}], "é": "text"}
        assert (list(d.keys()), list(d.values())) == (["a", "b/c", "é"], [1, [None, {"x": True}], "text"])
        assert ("a" in d, "z" in d, 3 in d, "" in d) == (True, False, False, False)
        assert (d.get("a"), d.get("z"), d.get("z", 5)) == (1, None, 5)
        d.update({"a": 2}, f=3)
        assert (d["a"], d["f"]) == (2, 3)
        assert (d.setdefault("a", 9), d.setdefault("g", 9), d["g"]) == (2, 9, 9)
        assert (d.pop("g"), d.pop("g", None)) == (9, None)
        del d["f"]
        for what in (lambda: d["f"], lambda: d.pop("f"), lambda: d.__delitem__("f")):
            with pytest.raises(KeyError, match="f"):
                what()
        name, value = d.popitem()
        assert (name, value) == ("a", 2)
        d.clear()
        assert len(d) == 0
        with pytest.raises(KeyError):
            d.popitem()

    await work(check)


@pytest.mark.parametrize("refresh", ["always", "lock", ReadsEvery(3), SecondsEvery(5)])
async def test_prefixes_are_apart(work, refresh):
    """What is below one is not seen, nor cleared, below another; under every policy."""

    def check(client):
        one = DistributedDict(client, "one/", refresh=refresh)
        two = DistributedDict(client, "two/", refresh=refresh)
        one["a"], two["a"], two["b"] = 1, 2, 3
        assert (dict(one), dict(two)) == ({"a": 1}, {"a": 2, "b": 3})
        one.clear()
        two.refresh()
        assert (dict(one), dict(two)) == ({}, {"a": 2, "b": 3})
        assert client.names() == ("two/a", "two/b")

    await work(check)


async def test_bad_names_and_values_are_refused(work):
    """Before anything is sent."""

    def check(client):
        d = DistributedDict(client)
        for name, error in ((1, TypeError), ("", ValueError), (LOCKS + "x", ValueError)):
            with pytest.raises(error):
                d[name] = 1
        for value in (float("nan"), {1}, b"x"):
            with pytest.raises((TypeError, ValueError)):
                d["a"] = value
        assert client.asked <= 3
        assert dict(d) == {}
        for wrong in (lambda: ReadsEvery(0), lambda: SecondsEvery(-1)):
            with pytest.raises(ValueError, match="more"):
                wrong()

    await work(check)


async def test_always_asks_each_time(work):
    """So it sees at once what others wrote."""

    def check(client):
        d = DistributedDict(client)
        client.set("a", 1)
        assert d["a"] == 1
        client.set("a", 2)
        assert d["a"] == 2

    await work(check)


async def test_every_n_reads(work):
    """Each third read asks for everything; one's own writes are seen at once."""

    def check(client):
        client.set("a", 1)
        d = DistributedDict(client, refresh=ReadsEvery(3))
        before = client.asked
        assert d["a"] == 1
        assert client.asked == before + 1
        client.set("a", 2)
        assert [d["a"], d["a"]] == [1, 1]
        d["b"] = 5
        assert d["b"] == 5  # the fourth read, so it asks
        assert d["a"] == 2
        before = client.asked
        assert [d["b"]] == [5]
        assert client.asked == before

    await work(check)


async def test_every_t_seconds(work):
    """By the clock that is given."""

    def check(client):
        time = Time()
        client.set("a", 1)
        d = DistributedDict(client, refresh=SecondsEvery(5), monotonic=time)
        assert d["a"] == 1
        client.set("a", 2)
        time.now += 4.9
        assert d["a"] == 1
        time.now += 0.1
        assert d["a"] == 2

    await work(check)


async def test_one_s_own_writes_are_seen_in_memory(work):
    """Writes and deletions, without asking again."""

    def check(client):
        d = DistributedDict(client, refresh="lock")
        assert dict(d) == {}
        d["a"] = 1
        d["b"] = 2
        del d["a"]
        before = client.asked
        assert dict(d) == {"b": 2}
        assert client.asked == before
        client.set("c", 3)
        assert "c" not in d
        d.refresh()
        assert d["c"] == 3

    await work(check)


@pytest.mark.parametrize("refresh", ["always", "lock", ReadsEvery(1), SecondsEvery(0)])
async def test_a_block_reads_once(work, refresh):
    """On entering, under every policy; its own writes are seen in it."""

    def check(client):
        client.set("a", 1)
        d = DistributedDict(client, refresh=refresh)
        with d.lock():
            before = client.asked
            assert d["a"] == 1
            assert list(d) == ["a"]
            assert client.asked == before
            client.set("a", 2)  # one who does not care for the lock
            assert d["a"] == 1
            d["b"] = 5
            assert dict(d) == {"a": 1, "b": 5}
        with d.lock():
            assert d["a"] == 2
        assert client.names() == ("a", "b")

    await work(check)


async def test_blocks_of_several_processes_exclude_each_other(work):
    """Read, think, write: nobody's increment is lost."""

    def check(client):
        counts = []

        def count() -> None:
            d = DistributedDict(client, refresh="lock")
            for _ in range(5):
                with d.lock():
                    d["n"] = d.get("n", 0) + 1
                    counts.append(d["n"])

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == list(range(1, 21))

    await work(check)


async def test_changes_without_a_lock_are_not_lost_either(work):
    """By compare-and-set."""

    def check(client):
        def count() -> None:
            d = DistributedDict(client)
            for _ in range(10):
                d.change("n", lambda n: n + 1, default=0)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get("n") == 40

    await work(check)


@contextmanager
def two_holders(client: KeeperClient) -> Iterator[tuple[DistributedDict, DistributedDict, Time]]:
    """Two processes' dictionaries; the second one's clock can be turned."""
    time = Time()
    yield (
        DistributedDict(client),
        DistributedDict(client, monotonic=time, sleep=time.sleep),
        time,
    )


async def test_a_held_lock_is_waited_for_until_its_time_is_up(work):
    """LockBusy then; nobody is pushed aside before the lease is over."""

    def check(client):
        with two_holders(client) as (one, two, _), one.lock(lease_s=30):
            with pytest.raises(LockBusy), two.lock(wait_s=20):
                pass
            one["a"] = 1
        with two.lock(wait_s=0):
            assert two["a"] == 1

    await work(check)


async def test_a_block_that_slept_through_its_lease_changes_nothing(work):
    """Another one takes over; what the first still writes is rejected, whatever it believes."""

    def check(client):
        with two_holders(client) as (one, two, _), one.lock(lease_s=30):
            one["a"] = "one"
            with two.lock(wait_s=60):  # its clock runs while it waits
                two["b"] = "two"
                for write in (
                    lambda: one.write("a", 3),
                    lambda: one.remove("b"),
                    lambda: one.change("b", lambda _: 3),
                    lambda: one.setdefault("c", 3),
                    lambda: one.pop("b"),
                ):
                    with pytest.raises(LockLost):
                        write()
                two["a"] = "two"
            with pytest.raises(LockLost):  # nor when the other one has given it back
                one["a"] = "one again"
        assert client.get("a") == client.get("b") == "two"

    await work(check)


async def test_a_lost_lock_is_not_given_back_by_the_loser(work):
    """It would be another one's."""

    def check(client):
        with two_holders(client) as (one, two, _):
            block = one.lock(lease_s=30)
            block.__enter__()
            with two.lock(wait_s=60):
                block.__exit__(None, None, None)
                with pytest.raises(LockBusy), DistributedDict(client).lock(wait_s=0):
                    pass

    await work(check)


async def test_a_version_that_others_changed_is_not_the_lock_s_fault(work):
    """Rejected, and no LockLost, while it is held."""

    def check(client):
        d = DistributedDict(client)
        version = client.set("a", 1)
        with d.lock():
            client.set("a", 2)
            with pytest.raises(Rejected) as caught:
                d.write("a", 3, expected=version)
            assert not isinstance(caught.value, LockLost)
            assert d.change("a", lambda a: a + 1) == 3

    await work(check)


async def test_blocks_are_not_nested(work):
    """RuntimeError; the lock is free afterwards, as after any exception."""

    def check(client):
        d = DistributedDict(client)
        with pytest.raises(RuntimeError, match="nested"), d.lock(), d.lock():
            pass
        with pytest.raises(ZeroDivisionError), d.lock():
            raise ZeroDivisionError
        with d.lock(wait_s=0):
            pass
        assert client.names() == ()

    await work(check)


async def test_when_the_leader_dies_it_goes_on(lab, work):
    """The lock is still held, the writes still fenced."""
    loop = asyncio.get_running_loop()

    async def fail_over() -> None:
        await lab["k1"].die()
        lab.group.lead("k2")

    def check(client):
        d = DistributedDict(client)
        with d.lock():
            d["a"] = 1
            asyncio.run_coroutine_threadsafe(fail_over(), loop).result(timeout=20)
            d["b"] = 2
            with pytest.raises(LockBusy), DistributedDict(client).lock(wait_s=0):
                pass
        assert dict(d) == {"a": 1, "b": 2}

    await work(check)
