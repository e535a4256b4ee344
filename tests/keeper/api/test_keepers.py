"""Keepers over HTTP: how they are, who conducts, who leads, who belongs to them."""

from __future__ import annotations

import pytest

from fedkeeper.core.model import ClaimConductor, KeeperLost, KeeperMeasured
from fedkeeper.errors import KeeperStopped
from fedkeeper.keeper.api.cluster import Recent
from tests.keeper.lab import Lab, open_lab


async def test_health_says_whether_a_keeper_works(lab):
    """Without a token, and no more than that."""
    answer = await lab.ask("GET", "/v1/health")
    assert answer.json == {"name": "k1", "up": True, "ready": True, "problem": ""}


async def test_status_shows_the_cluster(three):
    """Each keeper with its API, what it measured, whether it is alive; who leads, who conducts and why."""
    log = three["k1"].log
    await log.propose(ClaimConductor(keeper="k2", expected_epoch=0, at_ms=5, why="nearest"))
    await log.propose(KeeperMeasured(keeper="k2", latencies={"keeper/k1": 1.5}, at_ms=5))
    await log.propose(KeeperLost(keeper="k3", reason="not heard of", at_ms=5))
    status = (await three.ask("GET", "/v1/status")).json
    assert (status["name"], status["role"], status["leader"], status["term"]) == ("k1", "leader", "k1", 1)
    assert (status["conductor"], status["conductor_why"], status["epoch"]) == ("k2", "nearest", 1)
    k1, k2, k3 = status["keepers"]
    assert (k1["leads"], k1["conducts"], k1["api"], k1["lag"]) == (True, False, three["k1"].url, 0)
    assert (k2["leads"], k2["conducts"], k2["latencies"]) == (False, True, {"keeper/k1": 1.5})
    assert (k3["alive"], k3["reason"], k3["member"]) == (False, "not heard of", True)


async def test_a_keeper_that_is_behind_shows_by_how_much(three):
    """In its own status."""
    three["k2"].log.behind = True
    for number in range(3):
        await three.put("x", number)
    status = (await three.ask("GET", "/v1/status", at="k2")).json
    assert status["keepers"][1]["lag"] == 3
    assert status["commit_index"] - status["applied_index"] == 3


async def test_diagnostic_counts_what_happened_here(three):
    """Reads and writes of the last ten seconds at this keeper, and the commands that it applied."""
    before = (await three.ask("GET", "/v1/diagnostic", at="k2")).json["appends"]
    for number in range(3):
        await three.put("x", number)
    await three.ask("GET", "/v1/kv/x")
    await three.ask("GET", "/v1/kv/x?consistency=stale", at="k2")
    leader = (await three.ask("GET", "/v1/diagnostic")).json
    follower = (await three.ask("GET", "/v1/diagnostic", at="k2")).json
    assert (leader["status"], leader["reads"], leader["writes"]) == ("leader", 1, 3)
    assert (follower["status"], follower["reads"], follower["writes"]) == ("follower", 1, 0)
    assert follower["appends"] - before == 3
    assert (leader["vote"], leader["leader"], leader["cluster"]) == ("k1", "k1", ["k1", "k2", "k3"])


def test_the_window_is_ten_seconds():
    """What is older no longer counts, also when nothing happens for long."""
    now = 100.0

    def clock():
        return now

    recent = Recent(clock)
    recent.add()
    now = 105.5
    recent.add()
    assert recent.total() == 2
    now = 109.9
    assert recent.total() == 2
    now = 110.0
    assert recent.total() == 1
    now = 10_000.0
    assert recent.total() == 0


async def test_config_is_as_the_keeper_tells_it(three):
    """On every keeper its own."""
    assert (await three.ask("GET", "/v1/config", at="k3")).json == {"keeper": "k3"}


async def test_a_conductor_is_chosen_by_hand(three):
    """And placement gets the choice back with null; a keeper that is not known is refused."""
    answer = await three.ask("POST", "/v1/conductor", {"keeper": "k3"})
    assert (answer.json["conductor"], answer.json["epoch"], answer.json["pinned"]) == ("k3", 1, True)
    answer = await three.ask("POST", "/v1/conductor", {"keeper": None})
    assert (answer.json["conductor"], answer.json["epoch"], answer.json["pinned"]) == ("k1", 2, False)
    assert (await three.ask("POST", "/v1/conductor", {"keeper": "k9"})).status == 404
    assert (await three.ask("POST", "/v1/conductor", {})).status == 400
    assert (await three.ask("POST", "/v1/conductor", {"keeper": "k3"}, at="k2")).status == 307


async def test_a_leader_is_chosen_by_hand(three):
    """409 if it cannot lead."""
    assert (await three.ask("POST", "/v1/leader", {"to": "k2"})).json == {"leader": "k2", "term": 2}
    answer = await three.ask("POST", "/v1/leader", {"to": "k9"}, at="k2")
    assert (answer.status, answer.error["kind"]) == (409, "MembershipRefused")


async def test_members_come_and_go(three):
    """Confirmed with who belongs to it then."""
    answer = await three.ask("POST", "/v1/members", {"name": "k4", "address": "10.0.0.4:7000"})
    assert answer.status == 201
    assert [member["name"] for member in answer.json["members"]] == ["k1", "k2", "k3", "k4"]
    answer = await three.ask("POST", "/v1/members", {"name": "k4", "address": "10.0.0.4:7000"})
    assert (answer.status, answer.error["kind"]) == (409, "MembershipRefused")
    answer = await three.ask("DELETE", "/v1/members/k4")
    assert [member["name"] for member in answer.json["members"]] == ["k1", "k2", "k3"]
    assert (await three.ask("DELETE", "/v1/members/k4")).status == 409
    assert (await three.ask("DELETE", "/v1/members/k2", at="k3")).status == 307


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "../k", "address": "h:1"}, "name"),
        ({"name": "k4", "address": "nowhere"}, "address"),
        ({"name": "k4", "address": "h:99999"}, "address"),
        ({"name": "k4", "address": "h:1 x"}, "address"),
    ],
)
async def test_a_member_that_cannot_be_is_refused(lab, body, said):
    """With the field."""
    answer = await lab.ask("POST", "/v1/members", body)
    assert answer.status == 400
    assert said in answer.error["message"]


async def test_before_the_leader_goes_another_one_leads(three):
    """The caller is sent to that one, which lets it go."""
    answer = await three.ask("DELETE", "/v1/members/k1")
    assert answer.status == 307
    leader = three.group.leader
    assert leader != "k1"
    assert answer.headers["Location"] == f"{three[leader].url}/v1/members/k1"
    answer = await three.ask("DELETE", "/v1/members/k1", at=leader)
    assert "k1" not in [member["name"] for member in answer.json["members"]]


async def test_the_last_keeper_cannot_be_removed(lab: Lab):
    """There would be nobody left."""
    assert (await lab.ask("DELETE", "/v1/members/k1")).status == 409


async def test_a_log_that_has_stopped_takes_nothing():
    """503, with the reason; what it has can still be read."""
    async with open_lab() as lab:
        await lab.put("x", 1)
        lab["k1"].log.failure = KeeperStopped("the disk is full")
        answer = await lab.ask("PUT", "/v1/kv/x", {"value": 2})
        assert (answer.status, answer.error["message"]) == (503, "the disk is full")
        assert (await lab.ask("GET", "/v1/kv/x?consistency=stale")).json["value"] == 1
        assert (await lab.ask("GET", "/v1/status")).json["problem"] == "the disk is full"
