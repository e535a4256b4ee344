"""What an OpenFaaS provider sends, waits for and believes."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from fedkeeper.errors import InvocationUnknown, RequestRefused
from fedkeeper.providers.openfaas import resources
from fedkeeper.providers.openfaas.provider import OpenFaas
from tests.providers.canned import Canned
from tests.providers.canned_openfaas import open_to, package, status

LOOK = ("GET", "/system/function/client-3")


@pytest.fixture
def gateway(canned: Canned) -> Canned:
    """A canned gateway that has the function and queues calls of it."""
    canned.reply(404, b"404 page not found")
    canned.when(*LOOK, 200, status())
    canned.when("POST", "/async-function/client-3", 202, b"")
    return canned


async def tell(edge: OpenFaas, call_id: str, code: str = "200", **headers: str) -> int:
    """POST to where outcomes are told, as whoever knows the address may; the answer's status."""
    named = {"X-Call-Id": call_id, "X-Function-Status": code}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(edge.callbacks.url, data=b'{"n": 1}', headers=named) as answer,
    ):
        return answer.status


async def test_a_callback_ends_the_call_that_it_names(gateway: Canned) -> None:
    """Once, with what the function answered and how long it took."""
    async with open_to(gateway.url, callback_port=0) as edge:
        one = await edge.invoke("client_3", {}, key="k", timeout_s=1)
        assert gateway.seen[-1].headers["X-Callback-Url"] == edge.callbacks.url
        assert await edge.ended([one], since_ms=0) == {}
        assert await tell(edge, one, X_Duration_Seconds="0.5") == 204
        ended = (await edge.ended([one], since_ms=0))[one]
        assert (ended.ok, ended.function, ended.result, ended.memory_mb) == (True, "client_3", {"n": 1}, 512)
        assert await tell(edge, one, "500") == 404
        assert (await edge.ended([one], since_ms=0))[one].ok


@pytest.mark.parametrize("code", ["", "2oo", "-1", "200 OK"])
async def test_a_callback_without_a_status_is_refused(gateway: Canned, code: str) -> None:
    """The call goes on."""
    async with open_to(gateway.url, callback_port=0) as edge:
        one = await edge.invoke("client_3", {}, key="k", timeout_s=1)
        assert await tell(edge, one, code) == 404
        assert await edge.ended([one], since_ms=0) == {}
        assert await tell(edge, one, "504") == 204
        assert (await edge.ended([one], since_ms=0))[one].status == "deadline exceeded"


async def test_a_forged_callback_is_refused(gateway: Canned) -> None:
    """Of a call that was not made here, of one that was not taken, and of one that nobody names."""
    async with open_to(gateway.url, callback_port=0) as edge:
        one = await edge.invoke("client_3", {}, key="k", timeout_s=1)
        assert await tell(edge, resources.call_id("another key")) == 404
        assert await tell(edge, "") == 404
        gateway.when("POST", "/async-function/client-3", 413, b"")
        with pytest.raises(RequestRefused):
            await edge.invoke("client_3", {}, key="refused", timeout_s=1)
        assert await tell(edge, resources.call_id("refused")) == 404
        assert await edge.ended([one, resources.call_id("refused")], since_ms=0) == {}


async def test_an_answer_that_was_lost_may_still_be_called_back(gateway: Canned) -> None:
    """The queue had taken it after all: its end is known, and nothing is sent again for it."""
    async with open_to(gateway.url, callback_port=0) as edge:
        gateway.rules.insert(0, ("POST", "/async-function/client-3", None))
        with pytest.raises(InvocationUnknown):
            await edge.invoke("client_3", {}, key="k", timeout_s=1)
        assert await tell(edge, resources.call_id("k")) == 204
        assert resources.call_id("k") in await edge.ended([resources.call_id("k")], since_ms=0)


async def test_without_a_port_nobody_is_told_an_address(gateway: Canned) -> None:
    """Only the store tells then."""
    async with open_to(gateway.url) as edge:
        await edge.invoke("client_3", {}, key="k", timeout_s=1)
    assert "X-Callback-Url" not in gateway.seen[-1].headers


async def test_a_deployment_says_all_that_the_config_says(gateway: Canned) -> None:
    """Image, limits, requests, secrets, placement, the watchdog's time limits and our notes."""
    gateway.when("PUT", "/system/functions", 202, b"")
    extras = {
        "max_inflight": 4,
        "cpu": "500m",
        "memory_request_mb": 256,
        "secrets": ["registry"],
        "constraints": ["node.role == edge"],
    }
    async with open_to(gateway.url) as edge:
        done = await edge.deploy(package(extras=extras, concurrency=3, owner="mine"))
    assert (done.function, done.state, done.digest) == ("client_3", "active", "d" * 40)
    sent = next(seen for seen in gateway.seen if seen.method == "PUT").json
    variables: dict[str, Any] = sent.pop("envVars")
    assert variables["exec_timeout"] == "1.5s"
    assert variables["write_timeout"] == "6.5s"
    assert (variables["max_inflight"], variables["THREADS"], variables["STORE"]) == ("4", "3", "geheim")
    assert sent["service"] == "client-3"
    assert sent["image"] == "lab/fl_client:1"
    assert sent["limits"] == {"memory": "512Mi", "cpu": "500m"}
    assert sent["requests"] == {"memory": "256Mi", "cpu": "500m"}
    assert sent["secrets"] == ["registry"]
    assert sent["constraints"] == ["node.role == edge"]
    assert sent["annotations"]["fedkeeper-function"] == "client_3"
    assert sent["annotations"]["fedkeeper-experiment"] == "mine"


async def test_a_function_scaled_to_nothing_is_scaled_up_for_a_deployment(gateway: Canned) -> None:
    """It would never get ready by itself."""
    scaled = False

    def look(_: Any) -> tuple[int, Any, dict[str, str]]:
        return 200, status(replicas=int(scaled), availableReplicas=int(scaled)), {}

    def scale(seen: Any) -> tuple[int, Any, dict[str, str]]:
        nonlocal scaled
        scaled = seen.json["replicas"] == 1
        return 202, b"", {}

    gateway.rules.insert(0, (*LOOK, look))
    gateway.rules.insert(0, ("POST", "/system/scale-function/client-3", scale))
    gateway.when("PUT", "/system/functions", 202, b"")
    async with open_to(gateway.url) as edge:
        assert (await edge.deploy(package())).state == "active"
    assert scaled


async def test_a_function_that_never_gets_ready_ends_by_the_limit(gateway: Canned) -> None:
    """It may still come up: that is not known, and the text says where to look."""
    gateway.when(*LOOK, 200, status(availableReplicas=0))
    gateway.when("PUT", "/system/functions", 202, b"")
    async with open_to(gateway.url, deploy_timeout_s=0.2) as edge:
        with pytest.raises(InvocationUnknown, match="is lab/fl_client:1 built and pushed"):
            await edge.deploy(package())


async def test_two_names_that_are_one_there_do_not_replace_each_other(gateway: Canned) -> None:
    """client_3 and client-3 are both client-3 to DNS."""
    async with open_to(gateway.url) as edge:
        with pytest.raises(RequestRefused, match="client-3 is function 'client_3' already"):
            await edge.deploy(package(function="client-3"))
    assert not [seen for seen in gateway.seen if seen.method != "GET"]


async def test_a_function_without_an_image_is_refused_with_the_way_out(gateway: Canned) -> None:
    """A real gateway runs nothing else."""
    async with open_to(gateway.url) as edge:
        with pytest.raises(RequestRefused, match="has no image") as refused:
            await edge.deploy(package(image=""))
    assert "--images" in refused.value.hint
