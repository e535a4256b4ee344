"""How fast OpenWhisk is invoked: by its /limits, and by its refusals."""

from __future__ import annotations

import pytest

from fedkeeper.clock import FakeClock
from fedkeeper.errors import Throttled
from fedkeeper.providers.base import PlatformLimits
from fedkeeper.providers.openwhisk.pacing import Pace
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from fedkeeper.providers.openwhisk.records import user_limits
from tests.providers.canned import Canned
from tests.providers.canned_openwhisk import error, open_to

PER_MINUTE = "Too many requests in the last minute (count: 61, allowed: 60)."
CONCURRENT = "Too many concurrent requests in flight (count: 31, allowed: 30)."
START_MS = 1_800_000_020_000  # 20 s into a minute
ACCEPTED = {"activationId": "a" * 32}


def throttled(text: str, retry_after_s: float) -> Throttled:
    """What the provider makes of a 429."""
    return Throttled("ow", "f", text, retry_after_s=retry_after_s)


@pytest.fixture
def clock() -> FakeClock:
    """Stands 20 s into a minute."""
    return FakeClock(START_MS)


async def test_the_minutes_allowance_is_not_overdrawn(clock: FakeClock) -> None:
    """What is above it is not sent, and told to come back in the next clock minute, where all is new."""
    pace = Pace(clock, 1.0, limits=PlatformLimits(per_minute=3))
    for _ in range(3):
        assert pace.wait_s() == 0
        pace.answered()
    assert pace.wait_s() == 40.5
    assert pace.wait_s() == 40.5  # asking is not counted
    await clock.advance(40_500)
    assert pace.wait_s() == 0


async def test_a_refusal_of_the_minute_shuts_it_for_all(clock: FakeClock) -> None:
    """Others use the namespace too, and every attempt counts: nobody tries before the next minute."""
    pace = Pace(clock, 1.0)
    assert pace.wait_s() == 0
    pace.answered(throttled(PER_MINUTE, 12.5))
    assert pace.wait_s() == 12.5
    await clock.advance(12_500)
    assert [pace.wait_s(), pace.wait_s()] == [0, 0]  # and then as many as before


async def test_the_first_pause_is_the_configured_one(clock: FakeClock) -> None:
    """It doubles from there, up to eight times itself."""
    pace = Pace(clock, 0.5)
    pauses = []
    for _ in range(6):
        assert pace.wait_s() == 0
        pace.answered(throttled(CONCURRENT, 0.5))
        pauses.append(pace.wait_s())
        await clock.advance(round(pauses[-1] * 1000))
    assert pauses == [0.5, 1, 2, 4, 4, 4]


async def test_a_full_platform_is_tried_by_one_and_then_by_more(clock: FakeClock) -> None:
    """The pause doubles while it stays full; after that one goes, then two, then four at once."""
    pace = Pace(clock, 1.0)
    pauses = []
    for _ in range(5):
        assert pace.wait_s() == 0
        pace.answered(throttled(CONCURRENT, 1.0))
        pauses.append(pace.wait_s())
        await clock.advance(round(pauses[-1] * 1000))
    assert pauses == [1, 2, 4, 8, 8]
    assert pace.wait_s() == 0
    assert pace.wait_s() == 1.0  # one tries, the others wait for its answer
    pace.answered()
    assert [pace.wait_s(), pace.wait_s(), pace.wait_s()] == [0, 0, 1.0]
    pace.answered()
    pace.answered()
    assert pace.wait_s() == 0
    pace.answered(throttled(CONCURRENT, 1.0))
    assert pace.wait_s() == 1.0  # the pause begins anew


async def test_after_enough_answers_nobody_is_held_back(clock: FakeClock) -> None:
    """The brake is off once so many at once went well."""
    pace = Pace(clock, 1.0)
    assert pace.wait_s() == 0
    pace.answered(throttled(CONCURRENT, 1.0))
    await clock.advance(1_000)
    for _ in range(8):
        assert pace.wait_s() == 0
        pace.answered()
    assert [pace.wait_s() for _ in range(200)] == [0] * 200


def test_the_limits_are_read_as_the_platform_gives_them() -> None:
    """MB and milliseconds, and whatever is missing or no number is not known."""
    plain = {
        "invocationsPerMinute": 120,
        "concurrentInvocations": 100,
        "minActionMemory": 128,
        "maxActionMemory": 512,
        "minActionTimeout": 100,
        "maxActionTimeout": 300_000,
        "maxParameterSize": "1048576 B",
    }
    assert user_limits(plain) == PlatformLimits(
        per_minute=120, concurrent=100, memory_mb=(128, 512), timeout_s=(0.1, 300.0)
    )
    assert user_limits({"invocationsPerMinute": "many", "maxActionMemory": True}) == PlatformLimits()


async def test_the_provider_paces_itself_by_the_limits(canned: Canned, clock: FakeClock) -> None:
    """Read once, before the first invocation; the call that is too much never leaves this machine."""
    canned.when("GET", "/limits", 200, {"invocationsPerMinute": 2})
    canned.reply(202, ACCEPTED)
    async with open_to(canned.url, clock=clock) as whisk:
        for _ in range(2):
            await whisk.invoke("f", {}, key="k", timeout_s=1)
        with pytest.raises(Throttled, match="not sent") as caught:
            await whisk.invoke("f", {}, key="k", timeout_s=1)
        assert caught.value.retry_after_s == 40.5
        assert [seen.method for seen in canned.seen] == ["GET", "POST", "POST"]
        await clock.advance(40_500)
        await whisk.invoke("f", {}, key="k", timeout_s=1)


async def test_limits_that_an_operator_changed_are_read_again(canned: Canned, clock: FakeClock) -> None:
    """After a while, not at each call."""
    canned.when("GET", "/limits", 200, {"invocationsPerMinute": 1})
    canned.reply(202, ACCEPTED)
    async with open_to(canned.url, clock=clock, limits_fresh_s=90) as whisk:
        await whisk.invoke("f", {}, key="k", timeout_s=1)
        canned.when("GET", "/limits", 200, {"invocationsPerMinute": 1000})
        await clock.advance(89_999)
        await whisk.invoke("f", {}, key="k", timeout_s=1)  # another minute, the same limit
        with pytest.raises(Throttled, match="not sent"):
            await whisk.invoke("f", {}, key="k", timeout_s=1)
        await clock.advance(1)
        for _ in range(5):
            await whisk.invoke("f", {}, key="k", timeout_s=1)


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_limits_that_cannot_be_read_hold_nothing_up(canned: Canned, status: int) -> None:
    """An old release has none; a key may not see them: invocations go out, and refusals set the pace."""
    canned.when("GET", "/limits", status, error("no"))
    canned.reply(202, ACCEPTED)
    async with open_to(canned.url) as whisk:
        for _ in range(3):
            await whisk.invoke("f", {}, key="k", timeout_s=1)
    assert [seen.method for seen in canned.seen] == ["GET", "POST", "POST", "POST"]


async def test_one_refusal_holds_all_callers_back(whisk: OpenWhisk, canned: Canned) -> None:
    """A hundred waiting clients do not each ask the full platform."""
    canned.reply(429, error(CONCURRENT))
    for _ in range(10):
        with pytest.raises(Throttled):
            await whisk.invoke("f", {}, key="k", timeout_s=1)
    assert len(canned.seen) == 1
