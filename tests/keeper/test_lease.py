"""The right to act: held for a short time after a confirmed command, and for good lost with the epoch."""

import asyncio

import pytest

from fedkeeper.errors import EpochOver
from fedkeeper.keeper.lease import Lease, since_boot_s


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_it_counts_from_the_proposal_not_from_the_confirmation():
    """Between the two another keeper may have been elected: only what came before is certain."""
    clock = Hands()
    lease = Lease(2.0, clock=clock)
    assert not lease.held()
    lease.confirmed(99.0)
    assert lease.left_s() == 1.0
    clock.now = 100.999
    assert lease.held()
    clock.now = 101.0
    assert not lease.held()


async def test_an_older_confirmation_takes_nothing_away():
    """Answers may overtake each other."""
    clock = Hands()
    lease = Lease(2.0, clock=clock)
    lease.confirmed(100.0)
    lease.confirmed(99.0)
    assert lease.left_s() == 2.0


async def test_an_effect_waits_for_a_confirmation_and_says_so():
    """Whoever renews the lease is woken."""
    lease = Lease(2.0, clock=Hands())
    waiting = asyncio.ensure_future(lease.hold())
    await asyncio.wait_for(lease.wanted.wait(), 5)
    assert not waiting.done()
    lease.confirmed(100.0)
    await asyncio.wait_for(waiting, 5)
    assert not lease.wanted.is_set()


async def test_after_the_epoch_nothing_begins_any_more():
    """Neither what waits nor what comes, and no confirmation brings it back."""
    lease = Lease(2.0, clock=Hands())
    waiting = asyncio.ensure_future(lease.hold())
    await asyncio.sleep(0)
    lease.revoke()
    with pytest.raises(EpochOver):
        await waiting
    lease.confirmed(100.0)
    with pytest.raises(EpochOver):
        await lease.hold()


async def test_a_drain_waits_for_effects_under_way_and_lets_none_begin():
    """Until it is resumed."""
    lease = Lease(2.0, clock=Hands())
    lease.confirmed(100.0)
    finish = asyncio.Event()

    async def effect() -> None:
        async with lease.effect():
            await finish.wait()

    first = asyncio.ensure_future(effect())
    await asyncio.sleep(0)
    draining = asyncio.ensure_future(lease.drain(30.0))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(lease.hold())
    await asyncio.sleep(0.01)
    assert not draining.done()
    finish.set()
    await asyncio.wait_for(draining, 5)
    assert first.done()
    assert not second.done()
    lease.resume()
    await asyncio.wait_for(second, 5)


async def test_a_drain_ends_in_time():
    """An effect that hangs does not keep a keeper from handing over."""
    lease = Lease(2.0, clock=Hands())
    lease.confirmed(100.0)
    async with lease.effect():
        await asyncio.wait_for(lease.drain(0.01), 5)


def test_its_clock_goes_on_in_a_stopped_process():
    """It is not the process's own time."""
    before = since_boot_s()
    assert since_boot_s() >= before
