"""Cloud Functions' answers, one by one, to the official client and to calls of functions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedkeeper.errors import (
    ConfigError,
    DeploymentFailed,
    InvocationUnknown,
    ProviderUnavailable,
    RequestRefused,
)
from fedkeeper.providers.google import resources
from fedkeeper.providers.google.provider import Google
from tests.providers.canned import Canned, Seen
from tests.providers.canned_google import (
    FUNCTION,
    OPERATION,
    PARENT,
    account,
    act,
    ending,
    function,
    open_to,
    operation,
    package,
    paths,
    refused,
)


async def test_the_api_away_is_nothing_sent(unused_tcp_port: int, cloud: Canned) -> None:
    """A port where nobody listens: definite, for reads and writes."""
    async with open_to(f"http://127.0.0.1:{unused_tcp_port}", service_account=account(cloud.url)) as provider:
        for what in ("check", "remove", "deploy"):
            with pytest.raises(ProviderUnavailable):
                await act(provider, what)


async def test_the_api_silent_leaves_a_removal_open(cloud: Canned) -> None:
    """Sent, no answer within the limit."""
    cloud.hold = asyncio.Event()
    async with open_to(cloud.url, request_timeout_s=0.2) as provider:
        with pytest.raises(InvocationUnknown):
            await provider.remove("client_3")
        with pytest.raises(ProviderUnavailable):
            await provider.check()


async def test_a_first_deployment_creates(google_cloud: Google, cloud: Canned) -> None:
    """Upload without credentials, then the function with its limits, secrets and labels."""
    cloud.when("GET", "/functions/client-3", 404, refused(404, "NOT_FOUND"))
    archive = b"zip" * 2**20  # large enough to go out piece by piece
    deployed = await google_cloud.deploy(package(archive=archive))
    assert paths(cloud) == [
        ("GET", f"/v2/{FUNCTION}"),
        ("POST", f"/v2/{PARENT}/functions:generateUploadUrl"),
        ("PUT", "/upload/s/ecret"),
        ("POST", f"/v2/{PARENT}/functions"),
    ]
    upload = next(seen for seen in cloud.seen if seen.method == "PUT")
    assert (upload.body, upload.headers["Content-Type"]) == (archive, "application/zip")
    assert "Authorization" not in upload.headers
    assert upload.headers["Content-Length"] == str(len(archive))
    assert upload.query == {"sig": "a+b"}
    create = cloud.seen[-1]
    assert create.query["functionId"] == "client-3"
    assert create.headers["Authorization"].startswith("Bearer ")
    sent = create.json
    assert sent["labels"] == {"fedkeeper-function": "client_3", "fedkeeper-digest": "d" * 40}
    assert sent["serviceConfig"] == {
        "availableMemory": "512Mi",
        "timeoutSeconds": 2,
        "maxInstanceRequestConcurrency": 1,
        "environmentVariables": {"STORE": "geheim"},
    }
    assert sent["buildConfig"]["runtime"] == "python312"
    assert sent["buildConfig"]["source"]["storageSource"] == {"bucket": "b", "object": "o"}
    assert (deployed.function, deployed.state, deployed.digest) == ("client_3", "active", "abc")
    assert (deployed.url, deployed.updated_ms) == (f"{cloud.url}/fn/client-3", 1_795_305_600_500)
    assert "geheim" not in repr(deployed)


async def test_a_later_deployment_updates_what_it_sets_and_nothing_else(
    google_cloud: Google, cloud: Canned
) -> None:
    """The mask leaves scaling and ingress alone; other labels stay."""
    labels = {"team": "blue", "fedkeeper-function": "client_3"}
    cloud.when("GET", "/functions/client-3", 200, function(cloud.url, labels=labels))
    await google_cloud.deploy(package(concurrency=4))
    update = cloud.seen[-1]
    assert (update.method, update.path) == ("PATCH", f"/v2/{FUNCTION}")
    mask = update.query["updateMask"].split(",")
    assert "serviceConfig.environmentVariables" in mask
    assert "serviceConfig" not in mask
    assert update.json["labels"]["team"] == "blue"
    assert update.json["serviceConfig"]["availableCpu"] == "1"


async def test_a_build_that_fails_says_why(google_cloud: Google, cloud: Canned) -> None:
    """The platform took it and could not make it run."""
    failed = operation(cloud.url, error={"code": 3, "message": "Build failed: no main.py"})
    cloud.when("PATCH", "/functions/client-3", 200, failed)
    with pytest.raises(DeploymentFailed, match=r"Build failed: no main\.py"):
        await google_cloud.deploy(package())


async def test_a_build_is_waited_for(google_cloud: Google, cloud: Canned) -> None:
    """The operation is asked for until it is done."""
    cloud.when("PATCH", "/functions/client-3", 200, operation(cloud.url, done=False))
    answers = iter([operation(cloud.url, done=False), operation(cloud.url)])
    cloud.rules.insert(0, ("GET", "/operations/o1", lambda _: (200, next(answers), {})))
    assert (await google_cloud.deploy(package())).state == "active"
    assert paths(cloud)[-2:] == [("GET", f"/v2/{OPERATION}")] * 2


async def test_a_build_without_end_is_left_after_its_limit(cloud: Canned) -> None:
    """It is still going on: not definite."""
    cloud.when("PATCH", "/functions/client-3", 200, operation(cloud.url, done=False))
    cloud.when("GET", "/operations/o1", 200, operation(cloud.url, done=False))
    async with open_to(cloud.url, deploy_timeout_s=0.3) as provider:
        with pytest.raises(InvocationUnknown, match="still going on"):
            await provider.deploy(package())


async def test_two_names_that_become_one_are_refused(google_cloud: Google, cloud: Canned) -> None:
    """client_3 and client-3 are the same to Cloud Functions: the second does not replace the first."""
    with pytest.raises(RequestRefused, match="client-3 is function 'client_3' already"):
        await google_cloud.deploy(package(function="client-3"))
    assert len(paths(cloud)) == 1


@pytest.mark.parametrize("name", ["Client", "3c", "c" * 64, "c_", "c.d", "", "../x"])
async def test_names_that_the_platform_does_not_take_are_refused(google_cloud: Google, name: str) -> None:
    """Before anything is sent."""
    with pytest.raises(RequestRefused, match="does not take this name"):
        await google_cloud.deploy(package(function=name))


async def test_the_list_goes_through_all_pages(google_cloud: Google, cloud: Canned) -> None:
    """Others' functions keep the platform's name; a failed build says why."""
    stranger = {
        "name": f"{PARENT}/functions/other-one",
        "state": "FAILED",
        "stateMessages": [{"severity": "ERROR", "message": "no main.py"}],
    }

    def page(seen: Seen) -> Any:
        if "pageToken" in seen.query:
            return 200, {"functions": [stranger]}, {}
        return 200, {"functions": [function(cloud.url)], "nextPageToken": "2"}, {}

    cloud.rules.insert(0, ("GET", "/functions", page))
    first, second = await google_cloud.list()
    assert (first.function, first.details["available_memory"]) == ("client_3", "512Mi")
    assert (second.function, second.state, second.message) == ("other-one", "failed", "no main.py")
    assert "geheim" not in repr(first)


async def test_remove_tells_whether_there_was_one(google_cloud: Google, cloud: Canned) -> None:
    """A second removal is no error."""
    assert await google_cloud.remove("client_3") is True
    cloud.when("DELETE", "/functions/client-3", 404, refused(404, "NOT_FOUND"))
    assert await google_cloud.remove("client_3") is False


@pytest.mark.parametrize("broken", [{}, {"private_key": "nonsense-geheim"}, {"token_uri": None}])
async def test_a_service_account_that_is_none_is_refused(broken: dict[str, Any]) -> None:
    """Without its contents in the text."""
    info = {**account("http://127.0.0.1:1"), **broken} if broken else {}
    if broken.get("token_uri", "") is None:
        del info["token_uri"]
    with pytest.raises(ConfigError, match="service account") as caught:
        async with open_to("http://127.0.0.1:1", service_account=info):
            raise AssertionError
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mb"), [("256M", 244), ("512Mi", 512), ("1Gi", 1024), ("1.5Gi", 1536), ("", 0), ("?", 0)]
)
def test_memory_is_read_in_every_unit(text: str, mb: int) -> None:
    """k8s quantities, as the API gives them; what it does not say is 0."""
    assert resources.memory_mb(text) == mb


async def test_a_proxy_in_the_environment_is_not_used_on_loopback(
    cloud: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the SDK, nor for tokens, nor for calls."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with open_to(cloud.url) as provider:
        await provider.deploy(package())
        assert (await ending(provider, await act(provider, "invoke"))).ok


def test_keys_make_ids_that_never_change() -> None:
    """A newer version must recognise what an older one started."""
    assert resources.activation_id("mnist-1/r3/client_7/a0") == "bad5f1d87c58e099298032cdce0a5b2f"
