"""Functions that belong to an experiment, on clusters that others use too."""

from __future__ import annotations

import re

import pytest

from fedkeeper import deployment
from fedkeeper.deployment import LineState, Target
from fedkeeper.errors import ProviderUnavailable
from fedkeeper.providers.base import owner_mark
from fedkeeper.providers.prefixed import Prefixed
from tests.deployment.platform import FakePlatform, package, wanted

MINE, OTHERS = owner_mark("mine"), owner_mark("others")


async def bring(platform, *functions, digest="d2", **more):
    """Deploy functions of `mine`."""
    items = wanted("ow", *functions, digest=digest, owner=MINE)
    return await deployment.deploy(items, {"ow": platform}, in_flight_max=2, progress=lambda _: None, **more)


async def clear(platform, *functions, owner=MINE, **others):
    """Remove functions, and with `owner` whatever else is of it."""
    targets = [Target(cluster="ow", function=one) for one in functions]
    lines = await deployment.remove(
        targets, {"ow": platform, **others}, in_flight_max=2, progress=lambda _: None, owner=owner
    )
    return {line.function: line for line in lines}


async def test_a_function_of_another_experiment_is_not_replaced():
    """Its run may be under way; what to do is said. Ours, unmarked ones and equal ones are no matter."""
    platform = FakePlatform("ow")
    platform.put("client_0", owner=OTHERS)
    platform.put("client_1", owner=MINE)
    platform.put("client_2")
    platform.put("client_3", digest="d2", owner=OTHERS)
    lines = {line.function: line for line in await bring(platform, *(f"client_{n}" for n in range(4)))}
    states = [lines[f"client_{n}"].state for n in range(4)]
    assert states == [LineState.FAILED, LineState.UPDATED, LineState.UPDATED, LineState.UNCHANGED]
    assert OTHERS in lines["client_0"].problem
    assert "function_prefix" in lines["client_0"].hint
    assert platform.functions["client_0"].owner == OTHERS


async def test_on_this_machine_it_is_taken_over_and_said():
    """An embedded platform has nobody else's runs but ours."""
    platform = FakePlatform("ow")
    platform.put("client_0", owner=OTHERS)
    (line,) = await bring(platform, "client_0", take_over={"ow"})
    assert line.state is LineState.UPDATED
    assert "taken over" in line.problem
    assert platform.functions["client_0"].owner == MINE


async def test_a_removal_finds_what_only_an_older_config_had():
    """On every cluster of the experiment, by its mark; others' functions stay."""
    platform, second = FakePlatform("ow"), FakePlatform("ow2")
    for function, owner in (("client_0", MINE), ("client_7", MINE), ("client_8", OTHERS), ("plain", "")):
        platform.put(function, owner=owner)
    second.put("client_9", owner=MINE)
    lines = await clear(platform, "client_0", "client_1", ow2=second)
    assert {name: line.state for name, line in lines.items()} == {
        "client_0": LineState.REMOVED,
        "client_1": LineState.ABSENT,
        "client_7": LineState.REMOVED,
        "client_9": LineState.REMOVED,
    }
    assert set(platform.functions) == {"client_8", "plain"}
    assert not second.functions
    assert (platform.listed, second.listed) == (1, 1)


async def test_a_removal_leaves_the_other_experiments_function_of_the_same_name():
    """Said, and no failure: ours is not there."""
    platform = FakePlatform("ow")
    platform.put("client_0", owner=OTHERS)
    line = (await clear(platform, "client_0"))["client_0"]
    assert line.state is LineState.ABSENT
    assert "left alone" in line.problem
    assert set(platform.functions) == {"client_0"}


async def test_without_an_experiment_only_what_is_named_goes():
    """As deploy.py removes."""
    platform = FakePlatform("ow")
    platform.put("client_0", owner=MINE)
    platform.put("client_1", owner=MINE)
    await clear(platform, "client_0", owner="")
    assert set(platform.functions) == {"client_1"}


async def test_a_cluster_that_cannot_be_listed_stops_no_other():
    """Its named functions fail; the others' are removed."""
    platform, second = FakePlatform("ow"), FakePlatform("ow2")
    platform.list_failures = [ProviderUnavailable("ow", "", "away")]
    second.put("client_9", owner=MINE)
    lines = await clear(platform, "client_0", ow2=second)
    assert lines["client_0"].state is LineState.FAILED
    assert lines["client_9"].state is LineState.REMOVED


@pytest.mark.parametrize("name", ["mnist", "Größe 1", "x" * 300, "__", "a.b-c"])
def test_a_mark_can_be_a_label_anywhere(name):
    """Google takes 63 lower-case letters, digits, hyphens; names that look alike differ all the same."""
    assert re.fullmatch(r"[a-z0-9-]{1,63}", owner_mark(name))
    assert owner_mark(name) != owner_mark(name + ".")


async def test_a_prefix_keeps_two_experiments_apart():
    """Each sees its own functions, under the plain names."""
    platform = FakePlatform("ow")
    plain, mine = platform, Prefixed(platform, "mine_")
    await plain.deploy(package("client_0"))
    await mine.deploy(package("client_0", digest="d2"))
    assert set(platform.functions) == {"client_0", "mine_client_0"}
    (seen,) = await mine.list()
    assert (seen.function, seen.digest) == ("client_0", "d2")
    assert await mine.remove("client_0")
    assert set(platform.functions) == {"client_0"}
    assert (mine.cluster, mine.platform) == ("ow", "openwhisk")
