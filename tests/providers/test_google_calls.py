"""Calls of HTTP functions: when they count as taken, and what they came to."""

from __future__ import annotations

import asyncio

import pytest

from fedkeeper.errors import (
    InvocationUnknown,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
)
from fedkeeper.providers import calls as google_calls
from fedkeeper.providers.google import resources
from fedkeeper.providers.google.provider import Google
from tests.providers.canned import Canned
from tests.providers.canned_google import FUNCTION, act, ending, function, open_to, paths


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
