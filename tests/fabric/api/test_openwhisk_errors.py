"""What the embedded fabric answers is, to FedKeeper's own provider, the same errors as a cluster's answers.

The rows that the fabric can produce; tests/providers/test_openwhisk_contract.py has all of them, canned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from fedkeeper.errors import (
    AuthenticationRefused,
    FunctionMissing,
    Happened,
    ProviderError,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.fabric.front import FrontSettings
from fedkeeper.fabric.openwhisk_entities import Bounds
from fedkeeper.providers.base import Package
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from tests.fabric.api.conftest import HELLO, Fabric, OpenFabric, zipped

PACKAGE = Package(function="f", source="f", archive=zipped(init__py=HELLO), digest="d" * 40)
Act = Callable[[OpenWhisk], Awaitable[Any]]


@asynccontextmanager
async def provider(fabric: Fabric, *, key: str = "", **options: Any) -> AsyncIterator[OpenWhisk]:
    """FedKeeper's provider before the fabric, as `guest`."""
    auth = SecretStr(key or fabric.credentials.openwhisk["guest"])
    async with OpenWhisk.open("ow", api_host=fabric.url, auth=auth, **options) as opened:
        yield opened


def invoke(function: str = "f", **payload: Any) -> Act:
    """An invocation."""
    return lambda whisk: whisk.invoke(function, payload, key="k", timeout_s=5)


def deploy(**changes: Any) -> Act:
    """A deployment."""
    return lambda whisk: whisk.deploy(replace(PACKAGE, **changes))


TABLE: list[tuple[str, Act, type[ProviderError], str]] = [
    ("no such action", invoke("g"), FunctionMissing, "does not exist"),
    ("a payload above 1 MB", invoke(x="y" * 1_100_000), TooLarge, "larger than allowed"),
    ("a parameter that is final", invoke("final", fixed=2), RequestRefused, "not allowed"),
    ("a name with a slash too many", invoke("a/b/c/d"), RequestRefused, "404"),
    ("an unknown kind", deploy(runtime="cobol:1"), RequestRefused, "Valid values"),
    ("too little memory", deploy(memory_mb=1), RequestRefused, "below allowed threshold"),
    ("too much memory", deploy(memory_mb=1 << 20), RequestRefused, "exceeds allowed threshold"),
    ("too short a time", deploy(timeout_s=0.001), RequestRefused, "below allowed threshold"),
    ("too long a name", deploy(function="f" * 257), RequestRefused, "257"),
    ("a name with a wrong character", deploy(function="f#"), RequestRefused, "illegal characters"),
    ("an ID that is none", lambda whisk: whisk.activation("abc"), RequestRefused, "must be 32"),
]


@pytest.mark.parametrize(("what", "act", "kind", "says"), TABLE, ids=[row[0] for row in TABLE])
async def test_a_refusal_is_typed_and_nothing_has_happened(
    fabric: Fabric, what: str, act: Act, kind: type[ProviderError], says: str
) -> None:
    """In the platform's words."""
    await fabric.put(
        "final",
        parameters=[{"key": "fixed", "value": 1}],
        annotations=[{"key": "final", "value": True}],
    )
    async with provider(fabric) as whisk:
        await whisk.deploy(PACKAGE)
        with pytest.raises(ProviderError) as caught:
            await act(whisk)
    if kind is RequestRefused:
        assert isinstance(caught.value, kind)
    else:
        assert type(caught.value) is kind
    assert says in str(caught.value)
    assert caught.value.happened is Happened.NO
    assert fabric.workers.revisions == []


@pytest.mark.parametrize(
    "act", [invoke(), deploy(), lambda w: w.list(), lambda w: w.remove("f"), lambda w: w.check()]
)
async def test_a_wrong_key_and_a_foreign_namespace_are_refused(fabric: Fabric, act: Act) -> None:
    """401 and 403, at every door."""
    wrong = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:" + "0" * 64
    for options, status in (({"key": wrong}, 401), ({"namespace": "other"}, 403)):
        async with provider(fabric, **options) as whisk:
            with pytest.raises(AuthenticationRefused) as caught:
                await act(whisk)
        assert caught.value.status == status


async def test_what_the_minute_allows_is_sent_and_no_more(open_fabric: OpenFabric) -> None:
    """The provider reads /limits: the fabric never has to refuse, and counts what it let in."""
    settings = FrontSettings(bounds=Bounds(invocations_per_minute=3), clock=lambda: 1_800_000_020.0)
    async with open_fabric(settings) as fabric, provider(fabric) as whisk:
        await whisk.deploy(PACKAGE)
        for _ in range(3):
            await whisk.invoke("f", {}, key="k", timeout_s=5)
        with pytest.raises(Throttled, match="not sent") as caught:
            await whisk.invoke("f", {}, key="k", timeout_s=5)
        assert 0 < caught.value.retry_after_s <= 60.5


async def test_a_refusal_of_the_minute_is_waited_out_by_the_platforms_clock(open_fabric: OpenFabric) -> None:
    """Somebody else has used the minute up."""
    settings = FrontSettings(bounds=Bounds(invocations_per_minute=1))
    async with open_fabric(settings) as fabric, provider(fabric) as whisk:
        await whisk.deploy(PACKAGE)
        for _ in range(2):  # a minute may begin between them
            await fabric.call("POST", "actions/f", {})
        with pytest.raises(Throttled, match="last minute") as caught:
            await whisk.invoke("f", {}, key="k", timeout_s=5)
        assert 0 < caught.value.retry_after_s <= 60.5


async def test_a_full_platform_is_told_apart(open_fabric: OpenFabric) -> None:
    """What is in flight, not what the minute has had: a short pause."""
    settings = FrontSettings(bounds=Bounds(concurrent_invocations=1))
    async with open_fabric(settings) as fabric, provider(fabric) as whisk:
        await whisk.deploy(PACKAGE)
        fabric.workers.gate.clear()
        running = await whisk.invoke("f", {}, key="k", timeout_s=5)
        with pytest.raises(Throttled, match="in flight") as caught:
            await whisk.invoke("f", {}, key="k", timeout_s=5)
        assert caught.value.retry_after_s == 1.0
        assert await whisk.activation(running) is None  # young, and no error
        fabric.workers.gate.set()
        assert (await fabric.ended(running))["response"]["success"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"archive": zipped(init__py="def main(args):\n    raise ValueError('boom')\n")},
            "application error: An error has occurred: boom",
        ),
        ({"image": "me/tf:1"}, "Failed to pull container image 'me/tf:1'."),
    ],
)
async def test_what_failed_is_a_record_and_never_an_error_of_the_call(
    fabric: Fabric, changes: dict[str, Any], reason: str
) -> None:
    """The call was taken, the record says why it failed."""
    async with provider(fabric) as whisk:
        await whisk.deploy(replace(PACKAGE, **changes))
        activation_id = await whisk.invoke("f", {}, key="k", timeout_s=5)
        await fabric.ended(activation_id)
        found = await whisk.activation(activation_id)
    assert found is not None
    assert not found.ok
    assert reason in found.reason
