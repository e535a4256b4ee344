"""The answers of test_google_contract that the embedded fabric gives, by its process and real instances."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.oauth2 import service_account

from fedkeeper import deployment
from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    DeploymentFailed,
    FunctionMissing,
    Happened,
    ProviderError,
    RequestRefused,
)
from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.providers.base import Package
from fedkeeper.providers.google.login import SCOPE, Limits, open_client
from fedkeeper.providers.google.provider import Google
from tests.providers.canned_google import ending

MAIN = """
import os, pathlib, time

def wait_for(path):
    until = time.monotonic() + 60
    while not pathlib.Path(path).exists() and time.monotonic() < until:
        time.sleep(0.01)

def main(request):
    asked = request.get_json(silent=True) or {}
    if asked.get("arrived"):
        pathlib.Path(asked["arrived"]).touch()
    if asked.get("gate"):
        wait_for(asked["gate"])
    what = asked.get("do")
    if what == "raise":
        raise ValueError("boom")
    if what == "die":
        os._exit(3)
    if what == "refuse":
        return {"error": "not today"}, 400
    return {"pid": os.getpid()}
"""
NO = Happened.NO
PARENT = "projects/proj/locations/europe-west3"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fabric(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricAddress]:
    """One for all tests of this file, with two projects."""
    folder = tmp_path_factory.mktemp("fabric")
    running = await open_fabric(folder, namespaces=[], projects=["proj", "other"], linger_s=5)
    yield running.address
    await running.close()


def open_as(fabric: FabricAddress, account: str = "proj") -> Any:
    """A provider for `proj` with the service account of that project."""
    return Google.open(
        "gcf",
        project="proj",
        region="europe-west3",
        service_account=fabric.service_accounts[account],
        api_endpoint=fabric.url,
    )


@pytest.fixture
async def provider(fabric: FabricAddress) -> AsyncIterator[Google]:
    """With the right account."""
    async with open_as(fabric) as provider:
        yield provider


def make(function: str, source: str = MAIN, requirements: str = "", **changes: Any) -> Package:
    """A package of one file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("main.py", source)
        bundle.writestr("requirements.txt", requirements)
    plain: dict[str, Any] = {"source": "x", "digest": "d", "timeout_s": 60, "archive": archive.getvalue()}
    return Package(function=function, **{**plain, **changes})


@pytest.fixture
async def door(provider: Google, request: Any) -> AsyncIterator[str]:
    """A deployed function."""
    await provider.deploy(make("door", timeout_s=getattr(request, "param", 60)))
    yield "door"
    await provider.remove("door")


def arrives(path: Path) -> None:
    """Wait until a function has made this file."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, "the function did not start"
        time.sleep(0.02)


async def test_another_projects_account_is_refused(fabric: FabricAddress) -> None:
    """403, and not a word of what there is."""
    async with open_as(fabric, "other") as stranger:
        for act in (stranger.check(), stranger.deploy(make("door")), stranger.remove("door")):
            with pytest.raises(AuthenticationRefused, match=r"HTTP 403: Permission denied") as caught:
                await act
            assert caught.value.happened is NO


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_mb": 64 * 1024}, "service_config.available_memory"),
        ({"memory_mb": 64}, "service_config.available_memory"),
        ({"timeout_s": 3601}, "service_config.timeoutSeconds"),
        ({"runtime": "cobol85"}, "build_config.runtime"),
        ({"concurrency": 1001}, "service_config.maxInstanceRequestConcurrency"),
        ({"entry": "no-name"}, "build_config.entry_point"),
    ],
)
async def test_what_the_platform_cannot_run_is_refused(
    provider: Google, changes: dict[str, Any], says: str
) -> None:
    """400 names the field; nothing is left of it."""
    with pytest.raises(RequestRefused, match=f"HTTP 400: {says}") as caught:
        await provider.deploy(make("refused", **changes))
    assert type(caught.value) is RequestRefused
    assert caught.value.happened is NO
    assert not [one for one in await provider.list() if one.function == "refused"]


@pytest.mark.parametrize(
    ("source", "requirements", "says", "hint"),
    [
        ("def main(:", "", "SyntaxError", "the build's log: file://"),
        (MAIN, "no-such-distribution-at-all", "No matching distribution found", "the build's log: file://"),
        ("import no_such_module", "", "No module named 'no_such_module'", ""),  # the service's words are all
        ("def other(request): ...", "", "MissingTargetException", ""),
    ],
)
async def test_what_does_not_come_up_fails_with_its_log(
    provider: Google, source: str, requirements: str, says: str, hint: str
) -> None:
    """A build and a service that fail: the platform's message, and of a build where the log is."""
    with pytest.raises(DeploymentFailed, match=says) as caught:
        await provider.deploy(make("broken", source, requirements))
    assert caught.value.happened is NO
    assert caught.value.hint.startswith(hint)
    assert bool(caught.value.hint) is bool(hint)
    assert await provider.remove("broken") is True


async def test_what_another_operation_works_on_is_a_conflict(provider: Google, tmp_path: Path) -> None:
    """409: neither updated nor removed while its deployment goes on; afterwards both."""
    gate = tmp_path / "gate"
    slow = f"{MAIN}\nwait_for({str(gate)!r})\n"
    deploying = asyncio.create_task(provider.deploy(make("busy", slow)))
    async with asyncio.timeout(60):
        while not [
            one for one in await provider.list() if (one.function, one.state) == ("busy", "deploying")
        ]:
            assert not deploying.done()
            await asyncio.sleep(0.02)
    for act in (provider.deploy(make("busy")), provider.remove("busy")):
        with pytest.raises(Changing, match="already in progress") as caught:
            await act
        assert caught.value.happened is NO
    gate.touch()
    assert (await deploying).state == "active"
    assert (await provider.deploy(make("busy"))).state == "active"
    assert await provider.remove("busy") is True


async def test_two_who_deploy_the_same_at_once_both_have_it(provider: Google, tmp_path: Path) -> None:
    """As a conductor and its successor: the second waits for the first one, and deploys nothing."""
    gate = tmp_path / "gate"
    package = make("both", f"{MAIN}\nwait_for({str(gate)!r})\n")
    first = asyncio.create_task(provider.deploy(package))
    told = asyncio.Event()

    def progress(line: deployment.Line) -> None:
        if "somebody else is changing it" in line.problem:
            told.set()

    second = asyncio.create_task(
        deployment.deploy(
            [deployment.Wanted(cluster=provider.cluster, package=package)],
            {provider.cluster: provider},
            in_flight_max=8,
            progress=progress,
        )
    )
    async with asyncio.timeout(60):
        await told.wait()
    gate.touch()
    version = (await first).version
    [line] = await second
    assert (line.state, line.problem) == (deployment.LineState.CREATED, "")
    [now] = [one for one in await provider.list() if one.function == "both"]
    assert (now.state, now.version) == ("active", version)
    assert await provider.remove("both") is True


@pytest.mark.parametrize(
    ("payload", "word", "says"),
    [
        ({"do": "raise"}, "function error", "HTTP 500 function error: "),
        ({"do": "die"}, "function error", "connection to the instance had an error"),
        ({"do": "refuse"}, "refused", "HTTP 400 refused: not today"),
        ({"large": "x" * (32 << 20)}, "payload too large", "HTTP 413 payload too large"),
    ],
    ids=["raise", "die", "refuse", "large"],
)
async def test_a_call_that_fails_is_told_by_ended(
    provider: Google, door: str, payload: dict[str, Any], word: str, says: str
) -> None:
    """What the instance or the front end answers; the next call is served."""
    ended = await ending(provider, await provider.invoke(door, payload, key=word, timeout_s=60))
    assert (ended.ok, ended.status) == (False, word)
    assert says in ended.reason
    assert (await ending(provider, await provider.invoke(door, {}, key="next", timeout_s=60))).ok


@pytest.mark.parametrize("door", [1], indirect=True)
async def test_a_call_that_takes_too_long_is_told_by_ended(
    provider: Google, door: str, tmp_path: Path
) -> None:
    """504 at the function's own time limit."""
    one = await provider.invoke(door, {"gate": str(tmp_path / "never")}, key="k", timeout_s=60)
    ended = await ending(provider, one)
    assert (ended.ok, ended.reason) == (False, "HTTP 504 deadline exceeded: upstream request timeout")


async def test_a_call_that_finds_no_instance_is_told_by_ended(
    fabric: FabricAddress, provider: Google, door: str, tmp_path: Path
) -> None:
    """429 once the platform has held it for its ten seconds; the one that runs is not disturbed."""

    def allow_one_instance() -> None:
        info = fabric.service_accounts["proj"]
        credentials = service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])
        client = open_client(credentials, fabric.url, Limits(connect_s=10, answer_s=60))
        function = client.get_function({"name": f"{PARENT}/functions/{door}"})
        function.service_config.max_instance_count = 1
        mask = {"paths": ["service_config.max_instance_count"]}
        client.update_function({"function": function, "update_mask": mask}).result(timeout=60)
        for transport in (client.transport, client.transport.operations_client.transport):
            transport._session.close()

    await asyncio.to_thread(allow_one_instance)
    arrived, gate = tmp_path / "arrived", tmp_path / "gate"
    held = {"arrived": str(arrived), "gate": str(gate)}
    first = await provider.invoke(door, held, key="first", timeout_s=90)
    await asyncio.to_thread(arrives, arrived)
    second = await ending(provider, await provider.invoke(door, {}, key="second", timeout_s=90))
    assert (second.ok, second.reason) == (False, "HTTP 429 resource exhausted: Rate exceeded.")
    gate.touch()
    assert (await ending(provider, first)).ok


async def test_a_function_that_went_away_is_asked_for_again(fabric: FabricAddress, provider: Google) -> None:
    """Its URL answers 404, which ends that call; the next one looks for it and finds that it is missing."""
    await provider.deploy(make("gone"))
    assert (await ending(provider, await provider.invoke("gone", {}, key="a", timeout_s=60))).ok
    async with open_as(fabric) as another:
        assert await another.remove("gone") is True
    ended = await ending(provider, await provider.invoke("gone", {}, key="b", timeout_s=60))
    assert (ended.ok, ended.status) == (False, "not found")
    with pytest.raises(FunctionMissing) as caught:
        await provider.invoke("gone", {}, key="c", timeout_s=60)
    assert isinstance(caught.value, ProviderError)
    assert caught.value.happened is NO
