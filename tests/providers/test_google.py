"""Cloud Functions' answers, one by one, to the official client and to calls of functions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import google.auth.jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.crypt import RSASigner
from pydantic import SecretStr

from fedkeeper.errors import (
    AuthenticationRefused,
    ConfigError,
    DeploymentFailed,
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
)
from fedkeeper.providers import google_calls
from fedkeeper.providers import google_resources as resources
from fedkeeper.providers.base import Activation, Package
from fedkeeper.providers.google import Google
from tests.providers.conftest import Canned, Seen

PARENT = "projects/p/locations/l"
FUNCTION = f"{PARENT}/functions/client-3"
OPERATION = f"{PARENT}/operations/o1"


@cache
def private_key() -> str:
    """One RSA key for all tests."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def account(url: str) -> dict[str, str]:
    """A service account whose tokens come from the canned platform."""
    return {
        "type": "service_account",
        "client_email": "keeper@p.iam",
        "private_key": private_key(),
        "private_key_id": "k1",
        "token_uri": f"{url}/token",
    }


def open_to(url: str, **options: Any) -> Any:
    """A provider with short limits."""
    limits = {"connect_timeout_s": 2.0, "request_timeout_s": 5.0, "deploy_timeout_s": 10.0}
    given = {"project": "p", "region": "l", "service_account": account(url), "api_endpoint": url}
    return Google.open("gcf", **{**limits, **given, **options})


def function(url: str, **changes: Any) -> dict[str, Any]:
    """A Function as the API gives it."""
    whole = {
        "name": FUNCTION,
        "state": "ACTIVE",
        "environment": "GEN_2",
        "url": f"{url}/fn/client-3",
        "updateTime": "2026-11-22T00:00:00.5Z",
        "labels": {"fedkeeper-function": "client_3", "fedkeeper-digest": "abc"},
        "serviceConfig": {
            "availableMemory": "512Mi",
            "revision": "client-3-00002",
            "environmentVariables": {"STORE": "geheim"},
        },
        "buildConfig": {"runtime": "python312", "entryPoint": "main"},
    }
    return {**whole, **changes}


def operation(url: str, *, error: dict[str, Any] | None = None, done: bool = True) -> dict[str, Any]:
    """A long-running operation on the function."""
    plain: dict[str, Any] = {"name": OPERATION, "done": done}
    if not done:
        return plain
    if error:
        return {**plain, "error": error}
    kind = "type.googleapis.com/google.cloud.functions.v2.Function"
    return {**plain, "response": {"@type": kind, **function(url)}}


def refused(code: int, status: str, message: str = "because") -> dict[str, Any]:
    """The API's error body."""
    return {"error": {"code": code, "status": status, "message": message}}


def token_for(seen: Seen) -> tuple[int, Any, dict[str, str]]:
    """An ID token as Google's endpoint would give it, valid for an hour."""
    now = int(time.time())
    token = google.auth.jwt.encode(
        RSASigner.from_string(private_key()), {"iat": now, "exp": now + 3600, "aud": "x"}
    ).decode()
    return 200, {"id_token": token}, {}


@pytest.fixture
async def cloud(canned: Canned) -> Canned:
    """A canned platform where everything goes well; tests put their own answer in front."""
    url = canned.url
    canned.rules.append(("POST", "/token", token_for))
    canned.reply(404, refused(404, "NOT_FOUND", "canned: no rule"))
    canned.when("GET", "/functions", 200, {"functions": [function(url)]})
    canned.when("GET", "/functions/client-3", 200, function(url))
    canned.when("POST", "/functions", 200, operation(url))
    canned.when("PATCH", "/functions/client-3", 200, operation(url))
    gone = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    canned.when("DELETE", "/functions/client-3", 200, {**operation(url), "response": gone})
    canned.when(
        "POST",
        ":generateUploadUrl",
        200,
        {"uploadUrl": f"{url}/upload/s%2Fecret?sig=a%2Bb", "storageSource": {"bucket": "b", "object": "o"}},
    )
    canned.when("PUT", "ecret", 200, {})
    canned.when("POST", "/fn/client-3", 200, {"hello": 1})
    return canned


@pytest.fixture
async def google_cloud(cloud: Canned) -> AsyncIterator[Google]:
    """A provider that talks to it."""
    async with open_to(cloud.url) as provider:
        yield provider


def package(**changes: Any) -> Package:
    """A package with a secret."""
    values: dict[str, Any] = {
        "function": "client_3",
        "source": "fl_client",
        "archive": b"zip",
        "digest": "D" * 40,
        "environment": {"STORE": SecretStr("geheim")},
        "timeout_s": 1.5,
        "memory_mb": 512,
    }
    return Package(**{**values, **changes})


async def act(provider: Google, what: str) -> Any:
    """One call by name."""
    match what:
        case "invoke":
            return await provider.invoke("client_3", {"a": 1}, key="r1/c3/a0", timeout_s=5)
        case "deploy":
            return await provider.deploy(package())
        case "remove":
            return await provider.remove("client_3")
        case "list":
            return await provider.list()
        case _:
            return await provider.check()


async def ending(provider: Google, activation_id: str) -> Activation:
    """The activation, once it has ended."""
    async with asyncio.timeout(10):
        while True:
            ended = await provider.ended([activation_id], since_ms=0)
            if ended:
                return ended[activation_id]
            await asyncio.sleep(0.01)


def paths(cloud: Canned) -> list[tuple[str, str]]:
    """What was asked for, without the tokens."""
    return [(seen.method, seen.path) for seen in cloud.seen if seen.path != "/token"]


REFUSALS = [
    ("list", "GET", "/functions", 400, "INVALID_ARGUMENT", RequestRefused),
    ("list", "GET", "/functions", 403, "PERMISSION_DENIED", AuthenticationRefused),
    ("list", "GET", "/functions", 404, "NOT_FOUND", RequestRefused),  # the project or region, not a function
    ("list", "GET", "/functions", 429, "RESOURCE_EXHAUSTED", Throttled),
    ("check", "GET", "/functions", 500, "INTERNAL", ProviderUnavailable),
    ("check", "GET", "/functions", 503, "UNAVAILABLE", ProviderUnavailable),
    ("deploy", "GET", "/functions/client-3", 403, "PERMISSION_DENIED", AuthenticationRefused),
    ("deploy", "POST", ":generateUploadUrl", 404, "NOT_FOUND", RequestRefused),
    ("deploy", "PATCH", "/functions/client-3", 400, "INVALID_ARGUMENT", RequestRefused),
    ("deploy", "PATCH", "/functions/client-3", 404, "NOT_FOUND", FunctionMissing),
    ("deploy", "PATCH", "/functions/client-3", 409, "ABORTED", RequestRefused),
    ("deploy", "PATCH", "/functions/client-3", 429, "RESOURCE_EXHAUSTED", Throttled),
    ("deploy", "PATCH", "/functions/client-3", 500, "INTERNAL", InvocationUnknown),
    ("deploy", "PATCH", "/functions/client-3", 504, "DEADLINE_EXCEEDED", InvocationUnknown),
    ("deploy", "PUT", "ecret", 403, "DENIED", RequestRefused),
    ("deploy", "PUT", "ecret", 503, "UNAVAILABLE", ProviderUnavailable),
    ("remove", "DELETE", "/functions/client-3", 403, "PERMISSION_DENIED", AuthenticationRefused),
    ("remove", "DELETE", "/functions/client-3", 503, "UNAVAILABLE", InvocationUnknown),
    ("invoke", "GET", "/functions/client-3", 404, "NOT_FOUND", FunctionMissing),
    ("invoke", "GET", "/functions/client-3", 503, "UNAVAILABLE", ProviderUnavailable),
    ("invoke", "POST", "/token", 400, "invalid_grant", AuthenticationRefused),
]


@pytest.mark.parametrize(("what", "method", "end", "status", "word", "kind"), REFUSALS)
async def test_every_refusal_is_one_typed_error(
    google_cloud: Google, cloud: Canned, what: str, method: str, end: str, status: int, word: str, kind: type
) -> None:
    """Its class says what to do and whether it may have happened; it is sent once; no secret in it."""
    body = {"error": word} if end == "/token" else refused(status, word)
    cloud.when(method, end, status, body)
    with pytest.raises(ProviderError) as caught:
        await act(google_cloud, what)
    assert type(caught.value) is kind
    assert caught.value.definite is (kind is not InvocationUnknown)
    assert len([seen for seen in cloud.seen if (seen.method, seen.path[-len(end) :]) == (method, end)]) == 1
    assert "sig=" not in repr(caught.value)
    assert "geheim" not in repr(caught.value)


async def test_a_login_that_the_api_refuses_is_named(google_cloud: Google, cloud: Canned) -> None:
    """The SDK answers a 401 by renewing its credentials; what comes out is still AuthenticationRefused."""
    cloud.when("GET", "/functions", 401, refused(401, "UNAUTHENTICATED"))
    with pytest.raises(AuthenticationRefused):
        await google_cloud.check()


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


async def test_a_call_carries_token_and_execution_id(google_cloud: Google, cloud: Canned) -> None:
    """URL and token are fetched once; the activation ID follows from the key."""
    one = await act(google_cloud, "invoke")
    ended = await ending(google_cloud, one)
    other = await google_cloud.invoke("client_3", {}, key="r1/c3/a1", timeout_s=5)
    await ending(google_cloud, other)
    assert one == resources.activation_id("r1/c3/a0") != other
    assert one.isalnum()
    assert len(one) == 32
    calls = [seen for seen in cloud.seen if seen.path == "/fn/client-3"]
    assert calls[0].headers["Function-Execution-Id"] == one
    assert calls[0].headers["Authorization"].startswith("Bearer ey")
    assert calls[0].json == {"a": 1}
    assert (ended.ok, ended.result, ended.memory_mb, ended.reason) == (True, {"hello": 1}, 512, "")
    assert ended.end_ms >= ended.start_ms > 0
    assert len([seen for seen in cloud.seen if seen.path == "/token"]) == 1
    assert paths(cloud).count(("GET", f"/v2/{FUNCTION}")) == 1
    assert await google_cloud.activation(one) == ended


async def test_the_call_returns_while_the_function_runs(google_cloud: Google, cloud: Canned) -> None:
    """Taken as soon as the request is written; the same key is not posted a second time meanwhile."""
    cloud.hold, cloud.held = asyncio.Event(), "/fn/"
    one = await act(google_cloud, "invoke")
    assert await act(google_cloud, "invoke") == one
    assert await google_cloud.ended([one], since_ms=0) == {}
    cloud.hold.set()
    assert (await ending(google_cloud, one)).ok
    assert paths(cloud).count(("POST", "/fn/client-3")) == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"<html>", "HTTP 401 unauthenticated: <html>"),
        (403, b"", "HTTP 403 permission denied"),
        (404, b"", "HTTP 404 not found"),
        (429, b"Rate exceeded.", "HTTP 429 resource exhausted: Rate exceeded."),
        (500, {"error": "boom"}, "HTTP 500 function error: boom"),
        (503, b"", "HTTP 503 unavailable"),
        (504, b"upstream request timeout", "HTTP 504 deadline exceeded: upstream request timeout"),
        (302, b"", "HTTP 302 refused"),
    ],
)
async def test_what_a_call_came_to_is_told_by_ended(
    google_cloud: Google, cloud: Canned, status: int, body: Any, reason: str
) -> None:
    """After sending, a refusal is an activation that failed, with the reason."""
    cloud.when("POST", "/fn/client-3", status, body)
    ended = await ending(google_cloud, await act(google_cloud, "invoke"))
    assert (ended.ok, ended.reason) == (False, reason)


@pytest.mark.parametrize(("status", "again"), [(401, True), (500, False)])
async def test_a_refused_token_is_fetched_anew(
    google_cloud: Google, cloud: Canned, status: int, *, again: bool
) -> None:
    """The next attempt asks for URL and token again; after another fault it does not."""
    cloud.when("POST", "/fn/client-3", status, b"")
    await ending(google_cloud, await act(google_cloud, "invoke"))
    await google_cloud.invoke("client_3", {}, key="next", timeout_s=5)
    assert len([seen for seen in cloud.seen if seen.path == "/token"]) == 1 + again


async def test_a_connection_lost_while_it_runs_is_not_a_failure(google_cloud: Google, cloud: Canned) -> None:
    """It may be running all the same: absent, until its deadline or its update decides."""
    cloud.rules.insert(0, ("POST", "/fn/client-3", None))
    one = await act(google_cloud, "invoke")
    async with asyncio.timeout(5):
        await asyncio.gather(*google_cloud._calls._running.values())
    assert await google_cloud.ended([one], since_ms=0) == {}


async def test_a_function_that_cannot_be_reached_was_not_called(
    google_cloud: Google, cloud: Canned, unused_tcp_port: int
) -> None:
    """Definite: nothing was sent."""
    gone = {**function(cloud.url), "url": f"http://127.0.0.1:{unused_tcp_port}/fn"}
    cloud.when("GET", "/functions/client-3", 200, gone)
    with pytest.raises(ProviderUnavailable, match="not sent") as caught:
        await act(google_cloud, "invoke")
    assert caught.value.definite


async def test_calls_in_flight_have_a_bound(cloud: Canned) -> None:
    """One more is throttled, and taken once there is room."""
    cloud.hold, cloud.held = asyncio.Event(), "/fn/"
    async with open_to(cloud.url, calls_in_flight_max=1) as provider:
        one = await act(provider, "invoke")
        with pytest.raises(Throttled):
            await provider.invoke("client_3", {}, key="other", timeout_s=5)
        cloud.hold.set()
        await ending(provider, one)
        await provider.invoke("client_3", {}, key="other", timeout_s=5)


async def test_a_key_that_comes_again_has_a_new_end(google_cloud: Google, cloud: Canned) -> None:
    """A run of the same name, later: what the first one came to is not taken for the second's."""
    one = await act(google_cloud, "invoke")
    assert (await ending(google_cloud, one)).ok
    cloud.hold, cloud.held = asyncio.Event(), "/fn/"
    assert await act(google_cloud, "invoke") == one
    assert await google_cloud.ended([one], since_ms=0) == {}


async def test_closing_while_a_request_is_being_sent_says_how_far_it_got(cloud: Canned) -> None:
    """A body that the platform does not read: whoever waits for it is told, not left waiting."""
    cloud.hold = asyncio.Event()

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        headers_read.set()
        await cloud.hold.wait() if cloud.hold else None
        writer.close()

    headers_read = asyncio.Event()
    server = await asyncio.start_server(never_read, "127.0.0.1", 0, limit=2**16)
    port = server.sockets[0].getsockname()[1]
    slow = {**function(cloud.url), "url": f"http://127.0.0.1:{port}/fn"}
    cloud.held = "/never"
    cloud.when("GET", "/functions/client-3", 200, slow)
    async with open_to(cloud.url) as provider:
        waiting = asyncio.create_task(provider.invoke("client_3", {"a": "x" * 2**25}, key="k", timeout_s=60))
        async with asyncio.timeout(10):
            await headers_read.wait()
    with pytest.raises(InvocationUnknown, match="the provider was closed"):
        await waiting
    cloud.hold.set()
    server.close()
    await server.wait_closed()


async def test_closing_with_calls_in_flight_leaks_nothing(cloud: Canned) -> None:
    """Unclosed sockets and tasks are errors in these tests."""
    cloud.hold, cloud.held = asyncio.Event(), "/fn/"
    async with open_to(cloud.url) as provider:
        await act(provider, "invoke")


async def test_answers_are_kept_within_bounds(
    google_cloud: Google, cloud: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first; one that is too large is told as a failure."""
    monkeypatch.setattr(google_calls, "KEPT_BYTES_MAX", 250)
    monkeypatch.setattr(google_calls, "ANSWER_BYTES_MAX", 150)
    cloud.when("POST", "/fn/client-3", 200, {"x": "y" * 100})
    ids = []
    for key in "abc":
        ids.append(await google_cloud.invoke("client_3", {}, key=key, timeout_s=5))
        await ending(google_cloud, ids[-1])
    assert [one in await google_cloud.ended(ids, since_ms=0) for one in ids] == [False, True, True]
    cloud.when("POST", "/fn/client-3", 200, b"x" * 200)
    ended = await ending(google_cloud, await google_cloud.invoke("client_3", {}, key="d", timeout_s=5))
    assert (ended.ok, ended.status) == (False, "answer too large")


async def test_a_payload_that_is_no_json_is_not_sent(google_cloud: Google, cloud: Canned) -> None:
    """NaN has no place in JSON."""
    with pytest.raises(RequestRefused, match="payload of k"):
        await google_cloud.invoke("client_3", {"loss": float("nan")}, key="k", timeout_s=1)
    assert cloud.seen == []


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
