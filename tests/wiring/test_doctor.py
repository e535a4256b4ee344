"""The doctor's probes one by one, where a whole examination would be too coarse."""

from __future__ import annotations

import dataclasses
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from fedkeeper import service
from fedkeeper.config import load
from fedkeeper.errors import RequestRefused
from fedkeeper.fabric.launch import open_fabric
from fedkeeper.providers.base import Package, PlatformLimits
from fedkeeper.wiring.clusters import open_clusters
from fedkeeper.wiring.doctor import limits, machine, places, reaching
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

    async def handle(request: web.Request) -> web.Response:
        if request.path.endswith("/limits"):
            return web.json_response({}, status=answer.get("limits", 200))
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
        found, *_ = [one async for one in reaching.platforms(experiment, timeout_s=20)]
        assert (found.topic, found.verdict) == ("cluster ow_there", verdict)
        assert says in found.found
        assert "geheim" not in repr(found)
    assert "uuid:key" in found.way_out


FABRIC_LIMITS = {"memory_mb": 512, "invocations_per_minute": 3}


async def test_what_a_cluster_would_refuse_is_told_beforehand(tmp_path: Path):
    """Each function outside of a limit is named with both numbers; and it is refused there indeed."""
    running = await open_fabric(
        tmp_path / "there", namespaces=["lab"], projects=[], linger_s=1, **FABRIC_LIMITS
    )

    def change(tree):
        key = running.address.openwhisk_auth["lab"].get_secret_value()
        auth = {"ow_api_host": running.address.url, "ow_auth": key}
        tree["providers"] = {"openwhisk": {"lab": {"auth": auth}}}
        learning = tree["scenarios"]["federated_learning"]
        learning["server_config"]["server_cluster_name"] = "lab"
        learning["clients_info"] |= {"ow_clients_count": 10, "gcf_clients_count": 0}
        learning["functions"] = {
            "fl_client": {"openwhisk": {"memory": 1024, "timeout": "2h"}},
            "fl_server_init": {"openwhisk": {"concurrency": 4}},
        }
        tree["scenarios"].pop("test")

    experiment = load(config(tmp_path, change))
    try:
        found = [one async for one in reaching.platforms(experiment, timeout_s=60)]
        async with AsyncExitStack() as stack:
            clusters = await open_clusters(experiment, ["lab"], stack)
            lab = clusters.providers["lab"]
            with pytest.raises(RequestRefused, match="memory size 1024 MB exceeds allowed threshold of 512"):
                await lab.deploy(
                    Package(function="f", source="f", archive=b"zip", digest="d", memory_mb=1024)
                )
    finally:
        await running.close()
    assert [one.verdict for one in found] == [Verdict.OK, *[Verdict.MISSING] * 3, Verdict.NOTE]
    assert {one.topic for one in found} == {"cluster lab"}
    assert [one.found.partition(":")[0] for one in found[1:]] == [
        "fl_server_init asks for concurrency 4, and 1 to 1 are allowed",
        "fl_client asks for memory 1024 MB, and 128 to 512 MB are allowed",
        "fl_client asks for timeout 7200 s, and 0.1 to 3600 s are allowed",
        "a round invokes 10 functions at once, and 3 invocations per minute are allowed",
    ]
    at = "scenarios.federated_learning.functions"
    assert f"{at}.fl_server_init.openwhisk.concurrency" in found[1].way_out
    assert f"{at}.fl_client.openwhisk.memory" in found[2].way_out


@pytest.mark.parametrize(
    ("settings", "runtimes", "key"),
    [
        ({}, ("python:3.11",), ""),
        ({"runtime": "python:default"}, ("nodejs:20", "python:3.11"), ""),
        ({"runtime": "python:3.11"}, ("nodejs:20", "python:3.11"), ""),
        ({"runtime": "python:3.12"}, ("nodejs:20", "python:3.11"), "runtime"),
        ({"runtime": "python:default"}, ("nodejs:20",), "runtime"),
        ({"docker_image": "lab/tf:1"}, ("python:3.11", "blackbox"), ""),
        ({"docker_image": "lab/tf:1"}, ("python:3.11",), "docker_image"),
    ],
)
def test_a_kind_that_a_namespace_may_not_use_is_told(tmp_path: Path, settings, runtimes, key):
    """Some operators allow some kinds only."""

    def change(tree):
        tree["scenarios"] = {"mine": {"functions": {"nodeinfo": {"openwhisk": settings}}}}

    experiment = load(config(tmp_path, change))
    found = list(limits.refusals(experiment, "ow_here", PlatformLimits(runtimes=runtimes)))
    assert bool(found) is bool(key)
    assert all(one.way_out.endswith(f"nodeinfo.openwhisk.{key}") for one in found)


async def test_a_cluster_that_does_not_tell_its_limits_is_no_fault(tmp_path: Path, platform):
    """Worth a note: then a deployment tells."""
    platform["limits"] = 404

    def change(tree):
        auth = {"ow_api_host": platform["url"], "ow_auth": "uuid:geheim"}
        tree["providers"]["openwhisk"]["ow_there"] = {"auth": auth}

    experiment = load(config(tmp_path, change))
    found = [one async for one in reaching.platforms(experiment, timeout_s=20)]
    assert [one.verdict for one in found] == [Verdict.OK, Verdict.NOTE]
    assert "does not tell its limits" in found[1].found


def test_what_an_embedded_cluster_would_refuse_is_told_without_asking(tmp_path: Path):
    """The ancestor's files ask for 100 activations in one container; and users may set a bound."""

    def change(tree):
        tree["embedded"] = {"invocations_per_minute": 3}
        functions = tree["scenarios"]["federated_learning"].setdefault("functions", {})
        functions["fl_client"] = {"openwhisk": {"concurrency": "100"}}

    found = list(limits.of_embedded(load(config(tmp_path, change))))
    assert [one.verdict for one in found] == [Verdict.MISSING, Verdict.NOTE]
    assert "fl_client asks for concurrency 100, and 1 to 1 are allowed" in found[0].found
    assert found[0].way_out == "change scenarios.federated_learning.functions.fl_client.openwhisk.concurrency"
    assert "3 invocations per minute" in found[1].found
    assert "embedded.invocations_per_minute" in found[1].way_out
    assert not list(limits.of_embedded(load(config(tmp_path))))
