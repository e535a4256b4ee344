"""Deploying: idempotent, concurrent, every function tried, nothing sent twice blindly."""

from __future__ import annotations

import asyncio

import pytest

from fedkeeper.clock import FakeClock
from fedkeeper.deployment import LineState, Target, deploy, describe, failures, remove
from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    ConfigError,
    Conflict,
    InvocationUnknown,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
)
from tests.deployment.platform import FakePlatform, wanted


def states(lines):
    """Lines as cluster/function -> state."""
    return {f"{line.cluster}/{line.function}": str(line.state) for line in lines}


async def bring(wants, *platforms, only_missing=False, in_flight_max=8, clock=None, progress=None):
    """Deploy with defaults."""
    return await deploy(
        wants,
        {platform.cluster: platform for platform in platforms},
        in_flight_max=in_flight_max,
        progress=progress or (lambda _: None),
        only_missing=only_missing,
        clock=clock or FakeClock(),
    )


async def test_missing_functions_are_created_changed_ones_updated_and_equal_ones_left_alone():
    """The digest decides; the cluster is listed once however many functions there are."""
    ow = FakePlatform("ow")
    ow.put("same", digest="d1")
    ow.put("old", digest="d0")

    lines = await bring(wanted("ow", "same", "old", "new"), ow)

    assert states(lines) == {"ow/same": "unchanged", "ow/old": "updated", "ow/new": "created"}
    assert sorted(ow.asked) == ["deploy new", "deploy old"]
    assert ow.listed == 1


async def test_deploying_twice_does_nothing_the_second_time():
    """Idempotent: the second pass only looks."""
    ow = FakePlatform("ow")
    await bring(wanted("ow", "a", "b"), ow)
    ow.asked.clear()

    lines = await bring(wanted("ow", "a", "b"), ow)

    assert set(states(lines).values()) == {"unchanged"}
    assert ow.asked == []


async def test_only_missing_leaves_other_versions_alone_and_says_so():
    """A function of another digest is reported as outdated, not replaced."""
    ow = FakePlatform("ow")
    ow.put("old", digest="d0")

    lines = await bring(wanted("ow", "old", "new"), ow, only_missing=True)

    assert states(lines) == {"ow/old": "outdated", "ow/new": "created"}
    assert ow.asked == ["deploy new"]


async def test_a_function_that_failed_on_the_platform_is_deployed_again():
    """The same digest is no reason to leave a broken function alone."""
    ow = FakePlatform("ow")
    ow.put("broken", state="failed")

    assert states(await bring(wanted("ow", "broken"), ow)) == {"ow/broken": "updated"}


async def test_every_function_is_tried_although_one_fails():
    """The failed one's line names the problem and the hint; all others are there."""
    ow, google = FakePlatform("ow"), FakePlatform("gcf", "google")
    ow.failures["bad"] = [
        RequestRefused("ow", "bad", "memory size 513 MB exceeds 512 MB", hint="ask for less")
    ]

    lines = await bring([*wanted("ow", "bad", "good"), *wanted("gcf", "other")], ow, google)

    assert states(lines) == {"ow/bad": "failed", "ow/good": "created", "gcf/other": "created"}
    (failed,) = failures(lines)
    assert failed.problem == "memory size 513 MB exceeds 512 MB"
    assert failed.hint == "ask for less"


async def test_a_cluster_that_cannot_be_listed_fails_all_its_functions_and_no_others():
    """Nothing is sent to it: what is there is not known."""
    ow, google = FakePlatform("ow"), FakePlatform("gcf", "google")
    ow.list_failures = [AuthenticationRefused("ow", "", "the credentials were refused", status=401)]

    lines = await bring([*wanted("ow", "a", "b"), *wanted("gcf", "c")], ow, google)

    assert states(lines) == {"ow/a": "failed", "ow/b": "failed", "gcf/c": "created"}
    assert ow.asked == []


async def test_too_many_requests_are_waited_out():
    """Throttled is the one refusal after which the same is sent again, when the platform said."""
    ow, clock = FakePlatform("ow"), FakeClock()
    ow.failures["a"] = [Throttled("ow", "a", "too many requests", retry_after_s=60.0)]
    seen = []
    task = asyncio.ensure_future(bring(wanted("ow", "a"), ow, clock=clock, progress=seen.append))
    await clock.advance(59_999)
    assert not task.done()
    assert seen[-1].problem == "too many requests for the platform, trying again in 60 s"
    await clock.advance(1)

    assert states(await task) == {"ow/a": "created"}
    assert ow.asked == ["deploy a", "deploy a"]


async def test_throttling_without_end_is_a_failure():
    """The waiting is bounded: three minutes, then the line says why."""
    ow, clock = FakePlatform("ow"), FakeClock()
    ow.failures["a"] = [Throttled("ow", "a", "too many requests", retry_after_s=60.0) for _ in range(9)]
    task = asyncio.ensure_future(bring(wanted("ow", "a"), ow, clock=clock))
    await clock.advance(180_000)

    (line,) = await task
    assert line.state is LineState.FAILED
    assert ow.asked == ["deploy a"] * 4


async def test_what_somebody_else_is_deploying_is_waited_for_and_looked_at_anew():
    """As after the death of a conductor in mid-deployment: equal functions are not deployed a second time."""
    ow, clock = FakePlatform("ow"), FakeClock()
    busy = Changing("ow", "a", "an operation on a is already in progress")
    ow.failures = {name: [busy, busy] for name in ("same", "other", "none")}
    asked, seen = [], []

    async def before():
        asked.append("may it be")

    task = asyncio.ensure_future(
        deploy(
            wanted("ow", "same", "other", "none"),
            {"ow": ow},
            in_flight_max=8,
            progress=seen.append,
            before=before,
            clock=clock,
        )
    )
    await clock.advance(999)
    assert seen[-1].problem == "somebody else is changing it, trying again in 1 s"
    ow.put("same", state="deploying")
    ow.put("other", digest="d0")
    await clock.advance(1)  # all are still being changed
    ow.put("same")
    await clock.advance(2_000)
    assert states(await task) == {"ow/same": "created", "ow/other": "created", "ow/none": "created"}
    assert [what.split()[1] for what in ow.asked].count("same") == 2
    assert ow.functions["other"].digest == "d1"
    assert len(asked) == len(ow.asked) == 2 + 3 + 3  # whether it may act is asked before each


async def test_a_change_without_end_is_a_failure():
    """The waiting is bounded by the time that a deployment may take, then the line says why."""
    ow, clock = FakePlatform("ow"), FakeClock()
    ow.failures["a"] = [Changing("ow", "a", "already in progress") for _ in range(99)]
    task = asyncio.ensure_future(bring(wanted("ow", "a"), ow, clock=clock))
    await clock.advance(600_000)
    (line,) = await task
    assert (line.state, line.problem) == (LineState.FAILED, "already in progress")


async def test_removing_waits_for_a_deployment_that_goes_on():
    """Then it is removed."""
    ow, clock = FakePlatform("ow"), FakeClock()
    ow.put("a")
    ow.failures["a"] = [Changing("ow", "a", "already in progress")]
    task = asyncio.ensure_future(
        remove(
            [Target(cluster="ow", function="a")],
            {"ow": ow},
            in_flight_max=8,
            progress=lambda _: None,
            clock=clock,
        )
    )
    await clock.advance(1_000)
    assert states(await task) == {"ow/a": "removed"}


@pytest.mark.parametrize(
    "error",
    [
        Conflict("ow", "a", "something else has that name"),
        ProviderUnavailable("ow", "a", "no connection"),
        InvocationUnknown("ow", "a", "sent, no answer"),
        RequestRefused("ow", "a", "no"),
    ],
)
async def test_no_other_error_is_retried(error):
    """One request per function: whether to try again is the user's to say."""
    ow = FakePlatform("ow")
    ow.failures["a"] = [error]

    assert states(await bring(wanted("ow", "a"), ow)) == {"ow/a": "failed"}
    assert ow.asked == ["deploy a"]


async def test_an_unanswered_deployment_says_that_it_may_have_happened():
    """An indefinite error is not sold as a definite one."""
    ow = FakePlatform("ow")
    ow.failures["a"] = [InvocationUnknown("ow", "a", "sent, no answer")]

    (line,) = await bring(wanted("ow", "a"), ow)

    assert line.problem == "sent, no answer (it may have happened all the same)"
    assert line.hint


async def test_what_is_in_flight_is_bounded():
    """Many functions, never more than `in_flight_max` of them at a time."""
    ow = FakePlatform("ow")

    await bring(wanted("ow", *(f"f{n}" for n in range(20))), ow, in_flight_max=3)

    assert ow.in_flight_seen == 3
    assert len(ow.functions) == 20


async def test_progress_tells_of_each_function_when_it_begins_and_when_it_is_done():
    """First "working", then the final state; unchanged ones only have the latter."""
    ow = FakePlatform("ow")
    ow.put("same")
    seen = []

    await bring(
        wanted("ow", "same", "new"), ow, progress=lambda line: seen.append((line.function, str(line.state)))
    )

    assert [state for name, state in seen if name == "new"] == ["working", "created"]
    assert [state for name, state in seen if name == "same"] == ["unchanged"]


async def test_replacing_a_function_that_fedkeeper_did_not_deploy_is_said():
    """The user's own function of that name is gone: the line must not hide it."""
    ow = FakePlatform("ow")
    ow.put("mine", digest="")

    (line,) = await bring(wanted("ow", "mine"), ow)

    assert line.state is LineState.UPDATED
    assert "FedKeeper had not deployed" in line.problem


async def test_an_unknown_cluster_suggests_the_near_name():
    """Before anything is sent."""
    ow = FakePlatform("ow_cluster")

    with pytest.raises(ConfigError) as caught:
        await bring([*wanted("ow_cluster", "a"), *wanted("ow_clutser", "b")], ow)

    assert caught.value.hint == "did you mean 'ow_cluster'?"
    assert ow.asked == []


async def test_removing_takes_what_is_there_and_what_fedkeeper_made():
    """Absent functions are no failure; one of somebody else's is left alone, and is."""
    ow = FakePlatform("ow")
    ow.put("a")
    ow.put("theirs", digest="")
    targets = [Target(cluster="ow", function=name) for name in ("a", "gone", "theirs")]

    lines = await remove(targets, {"ow": ow}, in_flight_max=2, progress=lambda _: None, clock=FakeClock())

    assert states(lines) == {"ow/a": "removed", "ow/gone": "absent", "ow/theirs": "failed"}
    assert ow.asked == ["remove a"]


async def test_describing_returns_what_the_platform_says():
    """With one listing and no other request."""
    ow = FakePlatform("ow")
    ow.put("a")
    targets = [Target(cluster="ow", function=name) for name in ("a", "gone")]

    there, gone = await describe(targets, {"ow": ow}, in_flight_max=2, clock=FakeClock())

    assert there.deployed == ow.functions["a"]
    assert (gone.state, gone.deployed) == (LineState.ABSENT, None)
    assert (ow.listed, ow.asked) == (1, [])
