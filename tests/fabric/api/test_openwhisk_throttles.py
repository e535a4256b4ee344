"""Both throttles: per clock minute, and in flight; each namespace by itself."""

import pytest

from fedkeeper.fabric.front import FrontSettings
from fedkeeper.fabric.openwhisk_entities import Bounds, Refused
from fedkeeper.fabric.openwhisk_throttles import Throttles


def test_a_minute_counts_every_attempt_and_starts_anew_with_the_clocks():
    """A refused attempt counts as well; the window is the clock's minute, not the last 60 s."""
    now = 59.0
    throttles = Throttles(Bounds(invocations_per_minute=2), lambda _: 0, lambda: now)
    throttles.invoke("a")
    throttles.invoke("a")
    for count in (3, 4):
        with pytest.raises(Refused) as refused:
            throttles.invoke("a")
        words = f"Too many requests in the last minute (count: {count}, allowed: 2)."
        assert (refused.value.status, refused.value.words) == (429, words)
    throttles.invoke("b")
    throttles.fire("a")
    now = 60.0
    throttles.invoke("a")


async def test_invocations_of_a_minute_are_bounded(open_fabric):
    """429 with both numbers; nothing is started; `limits` and the base document say how many."""
    settings = FrontSettings(bounds=Bounds(invocations_per_minute=2), clock=lambda: 0.0)
    async with open_fabric(settings) as fabric:
        await fabric.put("a")
        answers = [await fabric.call("POST", "actions/a?blocking=true", {}) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        words = "Too many requests in the last minute (count: 3, allowed: 2)."
        assert answers[2].body["error"] == words
        assert len(fabric.workers.contexts) == 2
        assert (await fabric.call("GET", "limits")).body["invocationsPerMinute"] == 2
        assert (await fabric.call("GET", "/")).body["limits"]["actions_per_minute"] == 2


async def test_a_namespace_has_its_own_bound_in_flight(open_fabric):
    """429 for the one that is at it, not for its neighbour."""
    async with open_fabric(FrontSettings(bounds=Bounds(concurrent_invocations=1))) as fabric:
        other = fabric.credentials.openwhisk["other"]
        await fabric.put("a")
        await fabric.call(
            "PUT",
            "actions/a",
            {"exec": {"kind": "python:3", "code": "def main(a):\n    return a\n"}},
            auth=other,
        )
        fabric.workers.gate.clear()
        held = await fabric.call("POST", "actions/a", {})
        refused = await fabric.call("POST", "actions/a", {})
        assert refused.status == 429
        assert refused.body["error"] == "Too many concurrent requests in flight (count: 1, allowed: 1)."
        assert (await fabric.call("POST", "actions/a", {}, auth=other)).status == 202
        fabric.workers.gate.set()
        await fabric.ended(held.body["activationId"])
        assert (await fabric.call("POST", "actions/a?blocking=true", {})).status == 200


async def test_an_image_may_have_a_kind_that_stands_in_for_it(open_fabric):
    """With code it runs here as it would there; without code there is nothing to run here."""
    code = "def main(args):\n    return {'ran': 1}\n"
    async with open_fabric(FrontSettings(images={"me/python:1": "python:default"})) as fabric:
        body = {"exec": {"kind": "blackbox", "image": "me/python:1", "code": code}}
        made = await fabric.call("PUT", "actions/a", body)
        assert made.body["exec"] == {
            "kind": "blackbox",
            "image": "me/python:1",
            "binary": False,
            "code": code,
        }
        answer = await fabric.call("POST", "actions/a?blocking=true", {})
        assert answer.body["response"]["result"] == {"ran": 1}
        assert {"key": "kind", "value": "blackbox"} in answer.body["annotations"]
        assert fabric.workers.revisions[-1].kind.startswith("python:3.")
        await fabric.call("PUT", "actions/b", {"exec": {"kind": "blackbox", "image": "me/python:1"}})
        refused = await fabric.call("POST", "actions/b?blocking=true&result=true", {})
        assert refused.body == {"error": "Failed to pull container image 'me/python:1'."}
