"""Runs over HTTP."""

from __future__ import annotations

import msgspec
import pytest

from fedkeeper.core.model import ClaimConductor, Phase, Run
from fedkeeper.errors import ConfigError, StoreUnavailable
from fedkeeper.keeper.api.control import LogControl
from tests.keeper.lab import open_lab
from tests.keeper.world import spec


def submission(run: str = "exp-1", **changes):
    """The body of a submission."""
    return {"spec": msgspec.to_builtins(spec(run, **changes)), "config": {"a": 1}, "fingerprint": {"b": 2}}


async def test_a_submitted_run_is_there(lab):
    """201 with the run, which decodes into the core's own type."""
    answer = await lab.ask("POST", "/v1/runs", submission())
    assert answer.status == 201
    run = msgspec.json.decode(answer.data, type=Run)
    assert run == lab.group.state.runs["exp-1"]
    assert run.spec == spec()
    assert msgspec.json.decode((await lab.ask("GET", "/v1/runs/exp-1")).data, type=Run) == run


async def test_the_same_run_again_is_harmless(lab):
    """200; with another config it is another run, and refused."""
    await lab.ask("POST", "/v1/runs", submission())
    assert (await lab.ask("POST", "/v1/runs", submission())).status == 200
    answer = await lab.ask("POST", "/v1/runs", submission(digest="another"))
    assert (answer.status, answer.error["kind"]) == (409, "RunChanged")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": "seven"}, "seed"),
        ({"clients": 3}, "clients"),
        (
            {"clients": [{"client": "c", "cluster": "lab", "route": "direct", "colour": 1}]},
            "clients[].colour",
        ),
        ({"colour": "red"}, "spec.colour"),
        ({"rounds_max": 0}, "rounds_max"),
        ({"min_updates": 99}, "min_updates"),
    ],
)
async def test_a_spec_that_does_not_fit_is_refused_by_its_field(lab, changes, said):
    """And nothing is submitted."""
    body = submission()
    body["spec"] |= changes
    answer = await lab.ask("POST", "/v1/runs", body)
    assert answer.status == 400
    assert said in answer.error["message"]
    assert lab.group.state.runs == {}


class Keeping(LogControl):
    """Remembers what it was asked, and fails when it is told to."""

    problem: Exception | None = None

    def __init__(self, log, config):
        super().__init__(log, config)
        self.asked = []

    async def submit(self, spec, config, fingerprint):
        self.asked.append(("submit", spec.run, dict(config), dict(fingerprint)))
        if self.problem:
            raise self.problem

    async def forget(self, run):
        self.asked.append(("forget", run))
        if self.problem:
            raise self.problem


async def test_the_keeper_is_asked_before_a_run_is_submitted():
    """With the config and what the digest covers; not again for a run that is there."""
    async with open_lab(control=Keeping) as lab:
        await lab.ask("POST", "/v1/runs", submission())
        await lab.ask("POST", "/v1/runs", submission())
        assert lab["k1"].control.asked == [("submit", "exp-1", {"a": 1}, {"b": 2})]


async def test_what_the_keeper_refuses_is_not_submitted():
    """The caller gets its error."""
    async with open_lab(control=Keeping) as lab:
        lab["k1"].control.problem = ConfigError("no cluster 'gcf'", hint="known: lab")
        answer = await lab.ask("POST", "/v1/runs", submission())
        assert (answer.status, answer.error["kind"]) == (400, "ConfigError")
        assert (answer.error["message"], answer.error["hint"]) == ("no cluster 'gcf'", "known: lab")
        assert lab.group.state.runs == {}


async def test_a_run_is_stopped_with_a_reason(lab):
    """Again, it stays as it is."""
    await lab.ask("POST", "/v1/runs", submission())
    answer = await lab.ask("POST", "/v1/runs/exp-1/stop", {"reason": "enough"})
    assert (answer.status, answer.json["phase"], answer.json["reason"]) == (200, Phase.STOPPED, "enough")
    answer = await lab.ask("POST", "/v1/runs/exp-1/stop", {"reason": "more than enough"})
    assert (answer.status, answer.json["reason"]) == (200, "enough")
    assert (await lab.ask("POST", "/v1/runs/other/stop", {})).status == 404


async def test_an_ended_run_is_forgotten_with_what_is_stored():
    """Only then: first what is stored, then the run itself."""
    async with open_lab(control=Keeping) as lab:
        control = lab["k1"].control
        await lab.ask("POST", "/v1/runs", submission())
        answer = await lab.ask("DELETE", "/v1/runs/exp-1")
        assert (answer.status, answer.error["kind"]) == (409, "Rejected")
        await lab.ask("POST", "/v1/runs/exp-1/stop", {})
        control.problem = StoreUnavailable("no primary")
        answer = await lab.ask("DELETE", "/v1/runs/exp-1")
        assert (answer.status, answer.error["definite"]) == (503, False)
        assert "exp-1" in lab.group.state.runs
        control.problem = None
        assert (await lab.ask("DELETE", "/v1/runs/exp-1")).status == 200
        assert lab.group.state.runs == {}
        assert (await lab.ask("DELETE", "/v1/runs/exp-1")).status == 404


async def test_runs_in_short(lab):
    """In the order of their submission."""
    await lab["k1"].log.propose(ClaimConductor(keeper="k1", expected_epoch=0, at_ms=1))
    for name in ("b", "a"):
        await lab.ask("POST", "/v1/runs", submission(name))
    found = (await lab.ask("GET", "/v1/runs")).json
    assert [run["run"] for run in found["runs"]] == ["b", "a"]
    assert found["runs"][0]["rounds_max"] == 2
    assert found["applied_index"] == lab["k1"].log.status.applied_index


async def test_followers_submit_and_stop_nothing(three):
    """They send to the leader; what they have of runs they tell."""
    await three.ask("POST", "/v1/runs", submission())
    assert (await three.ask("POST", "/v1/runs", submission("b"), at="k2")).status == 307
    assert (await three.ask("POST", "/v1/runs/exp-1/stop", {}, at="k2")).status == 307
    assert (await three.ask("DELETE", "/v1/runs/exp-1", at="k2")).status == 307
    assert (await three.ask("GET", "/v1/runs/exp-1", at="k2")).status == 200
    assert (await three.ask("GET", "/v1/runs?consistency=linearizable", at="k2")).status == 307
    assert (await three.ask("GET", "/v1/runs/none")).status == 404
