"""What callers send is bounded in sum, from its first byte until the work on it has ended."""

from __future__ import annotations

import asyncio
import contextlib

from fedkeeper.fabric.payloads import STALLED_S
from tests.fabric.api.conftest import Fabric, OpenFabric, zipped
from tests.fabric.api.google import ECHO, Caller
from tests.fabric.api.sockets import (
    LIMIT_S,
    MEGABYTE,
    WHISK,
    assert_serves,
    connected,
    head,
    opened,
    until,
    until_async,
)


async def deploy_to_openfaas(fabric: Fabric, name: str) -> None:
    """A function of the gateway."""
    login = f"admin:{fabric.credentials.openfaas}"
    image = zipped(main__py="def main(request):\n    return {}\n")
    uploaded = await fabric.call("POST", f"/fedkeeper/images/{name}", data=image, auth=login)
    body = {
        "service": name,
        "image": uploaded.body["image"],
        "envProcess": "functions-framework --target=main",
        "envVars": {"mode": "http"},
    }
    answer = await fabric.call("POST", "/system/functions", body, auth=login)
    assert answer.status == 202, answer


async def test_bodies_in_flight_are_bounded_in_sum(open_fabric: OpenFabric) -> None:
    """What is worked on counts until it has ended, whoever still listens; then there is room again."""
    async with opened(open_fabric, payload_bytes_max=2 * MEGABYTE) as fabric:
        fabric.workers.gate.clear()
        payload = {"name": "x" * (MEGABYTE - 2048)}
        begun = [await fabric.call("POST", "actions/hello", payload) for _ in range(2)]
        assert [answer.status for answer in begun] == [202, 202]
        refused = await fabric.call("POST", "actions/hello", payload)
        words = "Too many concurrent requests in flight (count: 3, allowed: 3)."
        assert (refused.status, refused.body["error"]) == (429, words)
        for front, method in (("/async-function/echo", "POST"), ("/function/echo", "POST")):
            answer = await fabric.call(method, front, payload)
            assert answer.status == 429, answer
        small = await fabric.call("POST", "actions/hello", {"name": "small"})
        assert small.status == 202  # it fits beside them
        fabric.workers.gate.set()
        for answer in begun:
            record = await fabric.ended(answer.body["activationId"])
            assert record["response"]["result"]["bytes"] == len(payload["name"])
        assert (await fabric.call("POST", "actions/hello?blocking=true", payload)).status == 200


async def test_a_trigger_is_bounded_with_the_others(open_fabric: OpenFabric) -> None:
    """In Cloud Run's words, while another platform's calls take up the room."""
    async with opened(open_fabric, payload_bytes_max=2 * MEGABYTE) as fabric:
        caller = Caller(fabric)
        made = await asyncio.to_thread(caller.create, "echo", zipped(main__py=ECHO))
        fabric.workers.gate.clear()
        payload = {"name": "x" * (MEGABYTE - 2048)}
        for _ in range(2):
            assert (await fabric.call("POST", "actions/hello", payload)).status == 202
        answer = await asyncio.to_thread(caller.invoke, made.url, payload)
        assert (answer.status_code, answer.text) == (429, "Rate exceeded.")
        fabric.workers.gate.set()
        assert (await asyncio.to_thread(caller.invoke, made.url, {"x": 1})).json()["got"] == {"x": 1}
        caller.close()


async def test_a_queued_call_holds_its_bytes(open_fabric: OpenFabric) -> None:
    """/async-function answers at once; what was sent counts until the call has been made."""
    async with opened(open_fabric, payload_bytes_max=2 * MEGABYTE) as fabric:
        await deploy_to_openfaas(fabric, "echo")
        fabric.workers.gate.clear()
        body = {"name": "x" * (MEGABYTE + MEGABYTE // 2)}
        assert (await fabric.call("POST", "/async-function/echo", body)).status == 202
        await until(lambda: fabric.workers.requests)
        assert (await fabric.call("POST", "/async-function/echo", body)).status == 429
        fabric.workers.gate.set()

        async def accepted() -> bool:
            return (await fabric.call("POST", "/async-function/echo", body)).status == 202

        await until_async(accepted)


async def test_bodies_that_stall_give_way_to_those_that_come(open_fabric: OpenFabric) -> None:
    """Half-sent ones take up all the room; after a moment of silence they do not keep others out."""
    async with (
        opened(open_fabric, payload_bytes_max=2 * MEGABYTE) as fabric,
        contextlib.AsyncExitStack() as all_,
    ):
        half = head(fabric, WHISK, f"Content-Length: {MEGABYTE}") + b" " * (MEGABYTE - 4096)
        for _ in range(4):
            await all_.enter_async_context(connected(fabric, half))
        payload = {"name": "x" * (MEGABYTE - 2048)}
        async with asyncio.timeout(LIMIT_S):
            while True:
                answer = await fabric.call("POST", "actions/hello?blocking=true", payload)
                if answer.status == 200:
                    break
                assert answer.status == 429
                await asyncio.sleep(STALLED_S / 10)
        await assert_serves(fabric)
