"""The dictionary over HTTP."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from fedkeeper.clock import FakeClock
from fedkeeper.keeper.api.cluster import Cluster
from fedkeeper.keeper.api.settings import ApiSettings
from fedkeeper.replication.memory import MemoryLog
from tests.keeper.lab import open_lab, until


@pytest.mark.parametrize("value", [None, True, 0, -1.5, 'é\u2028"', [], {"a": [{"b": None}]}, 2**70])
async def test_any_json_is_a_value(lab, value):
    """And comes back as it was, with its version."""
    version = await lab.put("x", value)
    answer = await lab.ask("GET", "/v1/kv/x")
    assert answer.json == {"value": value, "version": version}


@pytest.mark.parametrize(
    "name", ["a/b", "/", "..", ".", "a//b/", "é😀", " ", "a?b#c", "100%", "\x00", "a%2Fb", "x" * 512]
)
async def test_any_text_is_a_name(lab, name):
    """Percent-encoded; different names are different entries."""
    path = f"/v1/kv/{quote(name, safe='').replace('.', '%2E')}"
    await lab.ask("PUT", path, {"value": 1})
    await lab.put("other", 2)
    assert (await lab.ask("GET", path)).json["value"] == 1
    assert sorted((await lab.ask("GET", "/v1/kv")).json["names"]) == sorted([name, "other"])


async def test_slashes_may_stand_as_they_are(lab):
    """So that curl users can type names."""
    await lab.put("a/b", 1)
    assert (await lab.ask("GET", "/v1/kv/a%2Fb")).json["value"] == 1


async def test_an_entry_that_is_not_there(lab):
    """404 for reading and for deleting."""
    assert (await lab.ask("GET", "/v1/kv/x")).error["kind"] == "NotThere"
    answer = await lab.ask("DELETE", "/v1/kv/x")
    assert (answer.status, answer.error["kind"], answer.error["definite"]) == (404, "NotThere", True)


async def test_compare_and_set(lab):
    """Only the expected version is replaced; 0 means that there is none."""
    first = await lab.put("x", "a", expected=0)
    refused = await lab.ask("PUT", "/v1/kv/x", {"value": "b", "expected": 0})
    assert (refused.status, refused.error["kind"]) == (409, "Rejected")
    second = await lab.put("x", "b", expected=first)
    assert second > first
    refused = await lab.ask("DELETE", f"/v1/kv/x?expected={first}")
    assert refused.status == 409
    assert (await lab.ask("DELETE", f"/v1/kv/x?expected={second}")).status == 200
    assert (await lab.ask("GET", "/v1/kv/x")).status == 404


async def test_the_same_request_happens_once(lab):
    """And is answered as the first time, whatever came in between."""
    first = await lab.put("x", "a", request="r1")
    await lab.put("x", "b")
    assert await lab.put("x", "a", request="r1") == first
    assert (await lab.ask("GET", "/v1/kv/x")).json["value"] == "b"
    one = await lab.ask("DELETE", "/v1/kv/x?request=r2")
    two = await lab.ask("DELETE", "/v1/kv/x?request=r2")
    assert (one.status, one.data) == (two.status, two.data) == (200, one.data)


async def test_a_fence_that_has_changed_stops_a_write(lab):
    """A writer that lost its lock changes nothing any more."""
    held = await lab.put("lock", "me")
    await lab.put("x", 1, fence="lock", fence_version=held)
    await lab.put("lock", "another")
    body = {"value": 2, "fence": "lock", "fence_version": held}
    assert (await lab.ask("PUT", "/v1/kv/x", body)).status == 409
    assert (await lab.ask("DELETE", f"/v1/kv/x?fence=lock&fence_version={held}")).status == 409
    assert (await lab.ask("GET", "/v1/kv/x")).json["value"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Put"),
        (b"[]", "Put"),
        (b'{"value": 1, "colour": 2}', "colour"),
        (b"{}", "value"),
        (b'{"value": NaN}', "malformed"),
        (b'{"value": 1, "expected": "1"}', "expected"),
        (b'{"value": 1, "expected": -1}', "expected"),
        (b'{"value": "\xff"}', "UTF-8"),
        (b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (json.dumps({"value": 1, "request": "r" * 513}).encode(), "request"),
    ],
)
async def test_a_bad_body_is_refused_with_its_fault(lab, body, said):
    """And changes nothing."""
    answer = await lab.ask("PUT", "/v1/kv/x", body)
    assert answer.status == 400
    assert said in answer.error["message"]
    assert (await lab.ask("GET", "/v1/kv/x")).status == 404


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/v1/kv/", "characters"),
        (f"/v1/kv/{'x' * 513}", "characters"),
        ("/v1/kv/%ff", "UTF-8"),
        ("/v1/kv/x?consistency=eventual", "consistency"),
        ("/v1/kv/x?colour=red", "colour"),
        ("/v1/kv?limit=0", "limit"),
        ("/v1/kv?limit=1e3", "limit"),
        ("/v1/kv?whole=yes", "whole"),
        ("/v1/kv?prefix=%ff", "query"),
    ],
)
async def test_a_bad_address_is_refused_with_its_fault(lab, target, said):
    """Unknown fields of the query as well: they would be mistakes without effect."""
    answer = await lab.ask("GET", target)
    assert answer.status == 400
    assert said in answer.error["message"]


async def test_a_large_value_is_refused():
    """413, before it is proposed."""
    async with open_lab(settings=ApiSettings(value_bytes_max=100, body_bytes_max=1000)) as lab:
        assert (await lab.ask("PUT", "/v1/kv/x", {"value": "x" * 98})).status == 200
        assert (await lab.ask("PUT", "/v1/kv/x", {"value": "x" * 99})).status == 413
        assert (await lab.ask("PUT", "/v1/kv/x", {"value": "x" * 2000})).status == 413


async def test_a_full_dictionary_takes_nothing_more():
    """409, with the reason."""
    async with open_lab(settings=ApiSettings(kv_bytes_max=100)) as lab:
        await lab.put("x", "x" * 80)
        answer = await lab.ask("PUT", "/v1/kv/y", {"value": "y" * 80})
        assert answer.status == 409
        assert "100" in answer.error["message"]


async def test_names_come_in_pages(lab):
    """In order, with a prefix; `next` leads through all of them once."""
    names = [f"a/{number:03}" for number in range(25)]
    for name in ["A", "a", "a.", *names, "b", "é"]:
        await lab.put(quote(name, safe=""), name)
    found, after = [], ""
    while after is not None:
        page = (await lab.ask("GET", f"/v1/kv?prefix=a/&limit=10&after={quote(after, safe='')}")).json
        found += page["names"]
        after = page["next"]
    assert found == names
    assert (await lab.ask("GET", "/v1/kv?prefix=a")).json["names"] == ["a", "a.", *names]
    assert (await lab.ask("GET", "/v1/kv?after=a/024")).json["names"] == ["b", "é"]
    assert (await lab.ask("GET", "/v1/kv?prefix=nothing")).json["names"] == []


async def test_everything_at_once_is_of_one_moment(lab):
    """With `whole`, however much it is; with `values`, with values."""
    for number in range(50):
        await lab.put(f"x{number:02}", "v" * 5000)
    answer = (await lab.ask("GET", "/v1/kv?whole=true&values=true&limit=1")).json
    assert [entry["name"] for entry in answer["entries"]] == [f"x{number:02}" for number in range(50)]
    assert {entry["value"] for entry in answer["entries"]} == {"v" * 5000}
    assert [entry["version"] for entry in answer["entries"]] == list(range(1, 51))
    assert (answer["next"], answer["version"]) == (None, 50)


async def test_followers_send_to_the_leader(three):
    """Writes, and reads that must be up to date: with the same address below the leader's."""
    target = "/v1/kv/a%2Fb?consistency=linearizable"
    answer = await three.ask("GET", target, at="k2")
    assert (answer.status, answer.headers["Location"]) == (307, three["k1"].url + target)
    answer = await three.ask("PUT", "/v1/kv/x", {"value": 1}, at="k3")
    assert (answer.status, answer.headers["Location"]) == (307, f"{three['k1'].url}/v1/kv/x")
    assert (await three.ask("DELETE", "/v1/kv/x", at="k3")).status == 307
    assert (await three.ask("GET", "/v1/kv?whole=true", at="k3")).status == 307
    assert three.group.state.kv == {}


async def test_a_stale_read_is_what_the_keeper_has(three):
    """On any keeper, without asking another one."""
    await three.put("x", 1)
    three["k2"].log.behind = True
    await three.put("x", 2)
    stale = await three.ask("GET", "/v1/kv/x?consistency=stale", at="k2")
    assert (stale.status, stale.json["value"]) == (200, 1)
    assert (await three.ask("GET", "/v1/kv/x?consistency=stale", at="k3")).json["value"] == 2


async def test_without_a_leader_requests_wait_for_one(three):
    """They are answered by whoever leads then, or sent there."""
    three.group.lead("")
    asking = [three.ask("PUT", "/v1/kv/x", {"value": 1}, at=name) for name in ("k1", "k2", "k3")]
    waiting = [asyncio.create_task(request) for request in asking]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    three.group.lead("k2")
    first, second, third = await asyncio.gather(*waiting)
    assert (first.status, second.status, third.status) == (307, 200, 307)
    assert first.headers["Location"] == f"{three['k2'].url}/v1/kv/x"


async def test_without_a_leader_for_long_they_give_up():
    """503 NoLeader, definite, and when to come back."""
    async with open_lab("k1", "k2", settings=ApiSettings(request_timeout_s=0.1)) as lab:
        lab.group.lead("")
        put = await lab.ask("PUT", "/v1/kv/x", {"value": 1})
        get = await lab.ask("GET", "/v1/kv/x", at="k2")
        for answer in (put, get):
            assert (answer.status, answer.error["kind"], answer.error["definite"]) == (503, "NoLeader", True)
            assert answer.headers["Retry-After"] == "1"
        assert (await lab.ask("GET", "/v1/kv?consistency=stale")).status == 200


async def test_a_leader_whose_address_is_unknown_is_waited_for():
    """It announces it when it starts."""
    async with open_lab("k1", "k2", announce=False, settings=ApiSettings(request_timeout_s=0.1)) as lab:
        assert (await lab.ask("GET", "/v1/kv/x", at="k2")).status == 503


async def test_an_unconfirmed_write_has_an_unknown_outcome(monkeypatch):
    """504, not definite: it may happen yet."""

    async def never(command):
        await asyncio.Event().wait()

    async with open_lab(settings=ApiSettings(request_timeout_s=0.1)) as quick:
        monkeypatch.setattr(quick["k1"].log, "propose", never)
        answer = await quick.ask("PUT", "/v1/kv/x", {"value": 1})
    assert (answer.status, answer.error["kind"], answer.error["definite"]) == (504, "OutcomeUnknown", False)


class GatedLog(MemoryLog):
    """Its barriers wait until they are let, and are counted."""

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.go = asyncio.Event()

    async def barrier(self):
        self.begun += 1
        await self.go.wait()
        return await super().barrier()


async def test_reads_that_come_together_share_a_barrier():
    """And those that come while one is under way share the next: that one may be too old for them."""
    log = GatedLog()
    call = SimpleNamespace(deadline=asyncio.get_running_loop().time() + 20)
    async with Cluster(log, FakeClock()) as cluster:
        early = [asyncio.create_task(cluster.read(call)) for _ in range(10)]
        await until(lambda: log.begun)
        late = [asyncio.create_task(cluster.read(call)) for _ in range(50)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert log.begun == 1
        log.go.set()
        await asyncio.gather(*early, *late)
        assert log.begun == 2
        assert await cluster.read(call) == log.state
        assert log.begun == 3
