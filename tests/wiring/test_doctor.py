"""The doctor's probes one by one, where a whole examination would be too coarse."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from aiohttp import web

from fedkeeper import service
from fedkeeper.config import load
from fedkeeper.wiring.doctor import machine, places, reaching
from fedkeeper.wiring.doctor.findings import Verdict
from fedkeeper.wiring.doctor.needs import Needs, needs_of
from tests.wiring.doctoring import config


@pytest.mark.parametrize(
    ("needs", "verdict", "says"),
    [
        (Needs(), None, ""),
        (Needs(fabric=True, fabric_mb=8192, largest_mb=512, at_once_mb=5120, at_once=10), Verdict.OK, ""),
        (
            Needs(fabric=True, fabric_mb=2048, largest_mb=512, at_once_mb=5120, at_once=10),
            Verdict.NOTE,
            "about 4 of 10 clients",
        ),
        (
            Needs(fabric=True, fabric_mb=512, largest_mb=513, at_once_mb=513, at_once=1),
            Verdict.MISSING,
            "embedded.memory_mb to 513",
        ),
    ],
)
def test_the_memory_budget_against_the_functions(needs, verdict, says):
    """One that never fits is in the way; ones that only wait for each other are worth a note."""
    found = machine.budget(needs)
    assert (found and found.verdict) == verdict
    assert found is None or says in found.way_out


def test_memory_that_is_not_there_is_in_the_way():
    """A function larger than the machine."""
    found = machine.memory(Needs(fabric=True, largest_mb=10**9))
    assert found.verdict is Verdict.MISSING
    assert "MB are needed" in found.way_out
    assert machine.memory(Needs()).verdict is Verdict.OK


def test_what_the_sample_needs(tmp_path):
    """Everything here: both platforms, mongod, three keepers; ten clients of 512 MB at once."""
    needs = needs_of(load(config(tmp_path)))
    assert (needs.fabric, needs.mongod, needs.keepers, needs.tensorflow, needs.google) == (
        True,
        True,
        3,
        True,
        True,
    )
    assert (needs.largest_mb, needs.at_once, needs.at_once_mb) == (512, 10, 5120)


def test_disk_that_does_not_do(tmp_path):
    """Too little room, told for the folder that is or would be made there."""
    needs = Needs(folder=tmp_path / "a" / "b", logs=tmp_path, mongod=True)
    assert machine.disk(needs).verdict is Verdict.OK

    class Endless(Needs):
        disk_mb = 10**12

    fields = {one.name: getattr(needs, one.name) for one in dataclasses.fields(needs)}
    found = machine.disk(Endless(**fields))
    assert found.verdict is Verdict.MISSING
    assert str(tmp_path) in found.found


def test_a_port_served_by_the_experiments_own_service_is_no_fault(tmp_path):
    """A run that goes on beside has it; any other program's is in the way."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def change(tree):
            tree["embedded"] = {"fabric_port": port, "data_dir": str(tmp_path / "here")}

        experiment = load(config(tmp_path, change))
        verdicts = {one.topic: one.verdict for one in places.ports(experiment)}
        assert verdicts["embedded.fabric_port"] is Verdict.MISSING
        folder = tmp_path / "here" / "fabric"
        with service.own(folder, "fabric"):
            service.announce(folder, "fabric", {"url": f"http://127.0.0.1:{port}"})
            verdicts = {one.topic: one.verdict for one in places.ports(experiment)}
        assert verdicts["embedded.fabric_port"] is Verdict.OK


@pytest.fixture
async def platform():
    """An OpenWhisk that answers everything with the status in `answer`."""
    answer = {"status": 200}

    async def handle(_: web.Request) -> web.Response:
        bodies = {200: [], 401: {"error": "The supplied authentication is invalid", "code": "tid"}}
        return web.json_response(bodies[answer["status"]], status=answer["status"])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    answer["url"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield answer
    await runner.cleanup()


async def test_a_cluster_is_asked_whether_it_takes_the_credentials(tmp_path: Path, platform):
    """Its answer is the finding; the key is in none of them."""
    key = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:geheim"

    def change(tree):
        auth = {"ow_api_host": platform["url"], "ow_auth": key}
        tree["providers"]["openwhisk"]["ow_there"] = {"auth": auth}

    experiment = load(config(tmp_path, change))
    for status, verdict, says in ((200, Verdict.OK, "answers"), (401, Verdict.MISSING, "authentication")):
        platform["status"] = status
        (found,) = [one async for one in reaching.platforms(experiment, timeout_s=20)]
        assert (found.topic, found.verdict) == ("cluster ow_there", verdict)
        assert says in found.found
        assert "geheim" not in repr(found)
    assert "uuid:key" in found.way_out
