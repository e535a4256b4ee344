"""A gateway's answers, row by row (openfaas/faas, faas-netes, nats-queue-worker, and what stands in front).

Each row is one answer to one request, the error that it becomes, and whether the act has happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    FunctionMissing,
    Happened,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.providers.base import Activation
from fedkeeper.providers.openfaas.provider import OpenFaas
from tests.providers.canned import Canned, Row
from tests.providers.canned_openfaas import PASSWORD, open_to, package, status

NO, UNKNOWN = Happened.NO, Happened.UNKNOWN
LOOK = ("GET", "/system/function/client-3")
ACTS = {  # what an act sends last: the answer under test
    "invoke": ("POST", "/async-function/client-3"),
    "look": LOOK,
    "create": ("POST", "/system/functions"),
    "update": ("PUT", "/system/functions"),
    "remove": ("DELETE", "/system/functions"),
    "list": ("GET", "/system/functions"),
    "check": ("GET", "/system/functions"),
}


def row(act: str, status: int, body: Any, kind: type[ProviderError], happened: Happened, says: str) -> Row:
    """One of the table."""
    return Row(act=act, status=status, body=body, kind=kind, happened=happened, says=says)


THERE = b'unable create Deployment: deployments.apps "client-3" already exists'
GONE = b'unable update Deployment: client-3.openfaas-fn, error: deployments.apps "client-3" not found'
SPEC = b"failed create Deployment spec: quantities must match the regular expression"
QUEUE = b"Error queuing request: nats: timeout"
NGINX = b"<html><head><title>502</title></head><body>Bad Gateway</body></html>"

TABLE = [
    # an asynchronous call: 202, and nothing else is a yes
    row("invoke", 400, b"no", RequestRefused, NO, "HTTP 400: no"),
    row("invoke", 401, b"invalid credentials", AuthenticationRefused, NO, "invalid credentials"),
    row("invoke", 403, b"", AuthenticationRefused, NO, "403"),
    row("invoke", 404, b"404 page not found", RequestRefused, NO, "page not found"),
    row("invoke", 409, b"changing", Changing, NO, "changing"),
    row("invoke", 413, b"http: request body too large", TooLarge, NO, "too large"),
    row("invoke", 429, b"Concurrent request limit exceeded.", Throttled, NO, "limit exceeded"),
    row("invoke", 500, QUEUE, InvocationUnknown, UNKNOWN, "Error queuing"),
    row("invoke", 502, NGINX, InvocationUnknown, UNKNOWN, "Bad Gateway"),
    row("invoke", 503, b"", InvocationUnknown, UNKNOWN, "503"),
    row("invoke", 504, b"", InvocationUnknown, UNKNOWN, "504"),
    row("invoke", 302, b"", RequestRefused, NO, "redirected"),
    row("invoke", 200, {"ok": True}, InvocationUnknown, UNKNOWN, "202 was expected"),
    # each function is asked for before it is called for the first time
    row("look", 401, b"invalid credentials", AuthenticationRefused, NO, "invalid credentials"),
    row("look", 404, b"", FunctionMissing, NO, "no such function"),
    row("look", 500, b"x", ProviderUnavailable, NO, "500"),
    row("look", 200, b"<html>", ProviderError, NO, "not JSON"),
    # a deployment
    row("create", 400, SPEC, RequestRefused, NO, "quantities"),
    row("create", 401, b"", AuthenticationRefused, NO, "401"),
    row("create", 403, b"namespace not allowed", AuthenticationRefused, NO, "not allowed"),
    row("create", 409, b"", Changing, NO, "409"),
    row("create", 413, b"", TooLarge, NO, "413"),
    row("create", 429, b"slow down", Throttled, NO, "slow down"),
    row("create", 500, THERE, InvocationUnknown, UNKNOWN, "already exists"),
    row("create", 502, NGINX, InvocationUnknown, UNKNOWN, "Bad Gateway"),
    row("create", 301, b"", RequestRefused, NO, "redirected"),
    row("update", 400, SPEC, RequestRefused, NO, "quantities"),
    row("update", 404, GONE, FunctionMissing, NO, "not found"),
    row("update", 500, b"unable", InvocationUnknown, UNKNOWN, "unable"),
    # a removal; 404 is none
    row("remove", 401, b"", AuthenticationRefused, NO, "401"),
    row("remove", 500, b"unable", InvocationUnknown, UNKNOWN, "unable"),
    # reads can always be asked again: nothing happens by them
    row("list", 401, b"invalid credentials", AuthenticationRefused, NO, "invalid credentials"),
    row("list", 404, b"404 page not found", RequestRefused, NO, "edge: HTTP 404"),
    row("list", 429, b"", Throttled, NO, "429"),
    row("list", 500, b"no provider", ProviderUnavailable, NO, "no provider"),
    row("list", 503, b"", ProviderUnavailable, NO, "503"),
    row("list", 200, {"not": "a list"}, ProviderError, NO, "list of functions was expected"),
    row("list", 200, b"<html>", ProviderError, NO, "not JSON"),
    row("check", 403, b"", AuthenticationRefused, NO, "403"),
]


@pytest.fixture
async def edge(canned: Canned) -> AsyncIterator[OpenFaas]:
    """A provider that talks to the canned gateway, where the function is."""
    canned.reply(404, b"404 page not found")
    canned.when(*LOOK, 200, status())
    async with open_to(canned.url) as provider:
        yield provider


async def act(edge: OpenFaas, what: str) -> Any:
    """One read or write by name."""
    match what:
        case "invoke" | "look":
            return await edge.invoke("client_3", {"a": 1}, key="k", timeout_s=1)
        case "create" | "update":
            return await edge.deploy(package())
        case "remove":
            return await edge.remove("client_3")
        case "list":
            return await edge.list()
        case _:
            return await edge.check()


@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_every_answer_is_one_typed_error(edge: OpenFaas, canned: Canned, case: Row) -> None:
    """Its class says what to do, its text what the gateway said; nothing is sent twice; no password in it."""
    if case.act == "create":
        canned.when(*LOOK, 404, b"")
    method, path = ACTS[case.act]
    canned.when(method, path, case.status, case.body, **case.headers)
    with pytest.raises(ProviderError) as caught:
        await act(edge, case.act)
    assert type(caught.value) is case.kind
    assert caught.value.happened is case.happened
    assert caught.value.definite is (case.happened is not UNKNOWN)
    assert case.says in str(caught.value)
    assert len([seen for seen in canned.seen if (seen.method, seen.path) == (method, path)]) == 1
    assert PASSWORD not in repr(caught.value)


@pytest.mark.parametrize(("headers", "wait_s"), [({}, 3.0), ({"Retry-After": "7"}, 7.0)])
async def test_a_throttled_call_says_when_to_come_back(
    canned: Canned, headers: dict[str, str], wait_s: float
) -> None:
    """As the gateway says; where it says nothing, as configured."""
    canned.when(*LOOK, 200, status())
    canned.when(*ACTS["invoke"], 429, b"", **headers)
    async with open_to(canned.url, busy_wait_s=3.0) as edge:
        with pytest.raises(Throttled) as caught:
            await act(edge, "invoke")
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("code", "body", "word", "reason"),
    [
        (200, {"n": 1}, "ok", ""),
        (202, b"", "ok", ""),
        (400, b"bad", "refused", "HTTP 400 refused: bad"),
        (401, b"", "unauthenticated", "HTTP 401 unauthenticated"),
        (404, b"gone", "not found", "HTTP 404 not found: gone"),
        (413, b"", "payload too large", "HTTP 413 payload too large"),
        (429, b"max_inflight", "resource exhausted", "HTTP 429 resource exhausted: max_inflight"),
        (500, b"Traceback", "function error", "HTTP 500 function error: Traceback"),
        (502, NGINX, "unavailable", "HTTP 502 unavailable: Bad Gateway"),
        (503, b"", "unavailable", "HTTP 503 unavailable"),
        (504, b"", "deadline exceeded", "HTTP 504 deadline exceeded"),
    ],
)
async def test_a_synchronous_call_ends_as_the_function_answers(
    canned: Canned, code: int, body: Any, word: str, reason: str
) -> None:
    """It was taken when it was written; what it answers, or what is answered for it, is its outcome."""
    canned.when(*LOOK, 200, status())
    canned.when("POST", "/function/client-3", code, body)
    async with open_to(canned.url, asynchronous=False) as edge:
        one = await act(edge, "invoke")
        ended = await outcome(edge, one)
    assert (ended.ok, ended.status, ended.reason) == (word == "ok", word, reason)
    assert len([seen for seen in canned.seen if seen.method == "POST"]) == 1


async def outcome(edge: OpenFaas, activation_id: str) -> Activation:
    """How it ended, waited for."""
    async with asyncio.timeout(20):
        while not (ended := await edge.ended([activation_id], since_ms=0)):  # noqa: ASYNC110 - as keepers do
            await asyncio.sleep(0.01)
    return ended[activation_id]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_gateway_that_is_not_there_has_done_nothing(canned: Canned, asynchronous: bool) -> None:
    """Nothing left this machine: it may be sent again."""
    async with open_to("http://127.0.0.1:1", asynchronous=asynchronous) as edge:
        edge.known["client_3"] = 512
        with pytest.raises(ProviderUnavailable, match="not sent") as caught:
            await act(edge, "invoke")
    assert caught.value.definite


async def test_a_lost_answer_to_a_queued_call_is_not_known(edge: OpenFaas, canned: Canned) -> None:
    """The queue may have it."""
    canned.rules.insert(0, (*ACTS["invoke"], None))
    with pytest.raises(InvocationUnknown, match="sent, no answer") as caught:
        await act(edge, "invoke")
    assert not caught.value.definite


async def test_calls_carry_their_id_and_never_the_password(edge: OpenFaas, canned: Canned) -> None:
    """The gateway's API gets it, functions do not; the same key has the same ID."""
    canned.when(*ACTS["invoke"], 202, b"")
    first = await act(edge, "invoke")
    assert await act(edge, "invoke") == first
    looked, *called = canned.seen
    assert looked.headers["Authorization"].startswith("Basic ")
    assert [seen.path for seen in called] == ["/async-function/client-3"] * 2
    assert {seen.headers["X-Call-Id"] for seen in called} == {first}
    assert not any("Authorization" in seen.headers for seen in called)
