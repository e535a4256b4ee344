"""The OpenFaaS gateway over real workers: limits, call IDs, the queue, its callbacks, scaling, restarts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fedkeeper.fabric.credentials import make_credentials
from fedkeeper.fabric.front import listen, open_front
from fedkeeper.fabric.pool import Pool
from tests.fabric.api.conftest import zipped

ECHO = """
import pathlib, time

def main(request):
    asked = request.get_json(silent=True) or {}
    print("asked for", asked.get("n"))
    if asked.get("began"):
        pathlib.Path(asked["began"]).touch()
    until = time.monotonic() + 60
    while asked.get("gate") and not pathlib.Path(asked["gate"]).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return {"n": asked.get("n"), "id": request.headers.get("X-Call-Id"), "path": request.path,
            "edition": EDITION}

EDITION = 1
"""


@dataclass
class Answer:
    """Of the gateway."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Gateway:
    """A client of the gateway, with its password."""

    url: str
    password: str = field(repr=False)
    http: aiohttp.ClientSession = field(repr=False)

    async def system(self, method: str, path: str, body: Any = None, *, password: str = "") -> Answer:
        """A call of its management."""
        pair = base64.b64encode(f"admin:{password or self.password}".encode()).decode()
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        return await self.send(method, path, data, {"Authorization": f"Basic {pair}"})

    async def call(self, path: str, headers: Mapping[str, str] | None = None, **asked: Any) -> Answer:
        """A POST to a function."""
        named = {"Content-Type": "application/json", **(headers or {})}
        return await self.send("POST", path, json.dumps(asked).encode(), named)

    async def send(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        async with self.http.request(method, f"{self.url}/{path}", data=data, headers=headers) as answer:
            return Answer(answer.status, await answer.text(), dict(answer.headers))

    async def deploy(
        self, name: str, code: str = ECHO, *, method: str = "POST", threads: int = 4, **variables: str
    ) -> Answer:
        """Upload a package in place of an image, and create or update a function of it."""
        archive = zipped(main__py=code)
        stored = await self.system("POST", "fedkeeper/images/echo", archive)
        assert stored.status == 200, stored.text
        settings = {"mode": "http", "exec_timeout": "30s", "THREADS": str(threads), **variables}
        body = {
            "service": name,
            "image": stored.json["image"],
            "envProcess": "functions-framework --target=main --port=5000",
            "envVars": settings,
        }
        return await self.system(method, "system/functions", body)

    async def ready(self, name: str, **settings: Any) -> None:
        """Deploy it; it must serve."""
        answer = await self.deploy(name, **settings)
        assert answer.status == 202, answer.text

    async def status(self, name: str) -> Any:
        """Its FunctionStatus."""
        return (await self.system("GET", f"system/function/{name}")).json


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Gateway]:
    """A fabric on `folder`."""
    with listen(0, fallback=False) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
        credentials = make_credentials(folder, namespaces=[], projects=[], url=url)
        async with (
            Pool.open(folder / "pool", memory_mb=4096, queue_max=1000, idle_s=60.0) as workers,
            open_front(folder, workers, credentials, listener),
            aiohttp.ClientSession() as http,
        ):
            yield Gateway(url, credentials.openfaas, http)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """One for the test."""
    async with opened(tmp_path / "fabric") as one:
        yield one


async def appears(path: Path) -> None:
    """Wait for a file."""
    async with asyncio.timeout(60):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)


async def held(gateway: Gateway, folder: Path, count: int, path: str = "function/echo") -> Any:
    """`count` calls that are being worked on, and what lets them end: (tasks, the gate's file)."""
    gate = folder / "gate"
    tasks = []
    for n in range(count):
        began = folder / f"began{n}"
        tasks.append(asyncio.create_task(gateway.call(path, n=n, gate=str(gate), began=str(began))))
        await appears(began)
    return tasks, gate


async def test_more_than_max_inflight_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    """429 in the watchdog's words; those at work end undisturbed, and then there is room again."""
    await gateway.ready("echo", max_inflight="2")
    tasks, gate = await held(gateway, tmp_path, 2)
    refused = await gateway.call("function/echo", n=9)
    assert refused.status == 429
    assert refused.text == "Concurrent request limit exceeded. Max concurrent requests: 2\n"
    gate.touch()
    assert [(await task).json["n"] for task in tasks] == [0, 1]
    assert (await gateway.call("function/echo", n=3)).json["n"] == 3


async def test_more_replicas_take_more_at_once(gateway: Gateway, tmp_path: Path) -> None:
    """max_inflight is of a replica; scaling stays within 0 and 100."""
    await gateway.ready("echo", max_inflight="1")
    scaled = await gateway.system(
        "POST", "system/scale-function/echo", {"serviceName": "echo", "replicas": 3}
    )
    assert scaled.status == 202
    status = await gateway.status("echo")
    assert (status["replicas"], status["availableReplicas"]) == (3, 3)
    tasks, gate = await held(gateway, tmp_path, 3)
    assert (await gateway.call("function/echo", n=9)).status == 429
    gate.touch()
    assert [(await task).status for task in tasks] == [200, 200, 200]
    for wrong in (-1, 101, "2", True, 1.5):
        answer = await gateway.system("POST", "system/scale-function/echo", {"replicas": wrong})
        assert (answer.status, answer.text) == (400, "replicas must be a number from 0 to 100\n")
    assert (await gateway.status("echo"))["replicas"] == 3
    assert (await gateway.system("POST", "system/scale-function/none", {"replicas": 1})).status == 404


async def test_a_call_scales_up_from_nothing(gateway: Gateway) -> None:
    """A function without replicas says so, and has one again when it is called; an update keeps the count."""
    await gateway.ready("echo")
    await gateway.system("POST", "system/scale-function/echo", {"replicas": 0})
    status = await gateway.status("echo")
    assert (status.get("replicas", 0), status.get("availableReplicas", 0)) == (0, 0)
    assert (await gateway.call("function/echo", n=1)).json["n"] == 1
    assert (await gateway.status("echo"))["availableReplicas"] == 1
    await gateway.system("POST", "system/scale-function/echo", {"replicas": 2})
    await gateway.ready("echo", method="PUT")
    assert (await gateway.status("echo"))["replicas"] == 2


async def test_a_call_beyond_its_time_is_ended(gateway: Gateway) -> None:
    """504 without a body, as of-watchdog answers for the function; the next call is served."""
    await gateway.ready("echo", exec_timeout="500ms")
    late = await gateway.call("function/echo", gate="/nonexistent/gate")
    assert (late.status, late.text) == (504, "")
    assert late.headers["X-OpenFaaS-Internal"] == "of-watchdog"
    assert float(late.headers["X-Duration-Seconds"]) >= 0.5
    assert (await gateway.call("function/echo", n=2)).json["n"] == 2


async def test_every_call_has_an_id(gateway: Gateway) -> None:
    """The caller's, which the function sees; or a new one, which the caller is told."""
    await gateway.ready("echo")
    named = await gateway.call("function/echo/deep/path?q=1", {"X-Call-Id": "mine"}, n=1)
    assert (named.json["id"], named.json["path"]) == ("mine", "/deep/path")
    assert "X-Call-Id" not in named.headers
    first, second = [await gateway.call("function/echo", n=2) for _ in range(2)]
    assert first.headers["X-Call-Id"] == first.json["id"] != second.json["id"]
    assert (await gateway.status("echo"))["invocationCount"] == 3


@asynccontextmanager
async def callbacks() -> AsyncIterator[tuple[str, asyncio.Queue[tuple[Mapping[str, str], bytes]]]]:
    """An address for callbacks, and what came there."""
    came: asyncio.Queue[tuple[Mapping[str, str], bytes]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await came.put((request.headers, await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/told", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/told", came
    await runner.cleanup()


async def test_the_queue_tells_how_a_call_ended(gateway: Gateway) -> None:
    """202 at once; then status, call ID, function and answer: of successes, failures, and what is missing."""
    await gateway.ready("echo", exec_timeout="500ms")
    async with callbacks() as (url, came), asyncio.timeout(60):
        for call_id, function, asked, status in (
            ("a", "echo", {"n": 1}, "200"),
            ("b", "echo", {"gate": "/nonexistent/gate"}, "504"),
            ("c", "none", {}, "404"),
        ):
            headers = {"X-Call-Id": call_id, "X-Callback-Url": url}
            queued = await gateway.call(f"async-function/{function}", headers, **asked)
            assert (queued.status, queued.text) == (202, "")
            told, body = await came.get()
            assert told["X-Call-Id"] == call_id
            assert told["X-Function-Status"] == status
            assert told["X-Function-Name"] == function
            assert float(told["X-Duration-Seconds"]) >= 0
            if status == "200":
                assert json.loads(body)["n"] == 1


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x", "not an address", "http://"])
async def test_a_callback_address_that_is_none_is_refused(gateway: Gateway, address: str) -> None:
    """At once: nobody could be told later."""
    await gateway.ready("echo")
    refused = await gateway.call("async-function/echo", {"X-Callback-Url": address})
    assert (refused.status, refused.text) == (400, "X-Callback-Url is not an address\n")


async def test_nobody_at_the_callback_address_harms_nothing(gateway: Gateway, tmp_path: Path) -> None:
    """The call runs to its end, and the next one is served."""
    await gateway.ready("echo")
    began = tmp_path / "began"
    headers = {"X-Callback-Url": "http://127.0.0.1:1/told"}
    assert (await gateway.call("async-function/echo", headers, began=str(began))).status == 202
    await appears(began)
    assert (await gateway.call("function/echo", n=2)).json["n"] == 2


async def test_functions_outlive_the_gateway(tmp_path: Path) -> None:
    """Deployment, replicas and password are there after a restart; counts and logs are not."""
    async with opened(tmp_path / "fabric") as gateway:
        await gateway.ready("echo", max_inflight="1")
        await gateway.system("POST", "system/scale-function/echo", {"replicas": 2})
        before = await gateway.status("echo")
        password = gateway.password
    async with opened(tmp_path / "fabric") as gateway:
        assert gateway.password == password
        [after] = (await gateway.system("GET", "system/functions")).json
        assert after == before
        assert (await gateway.call("function/echo", n=4)).json["n"] == 4
        assert (await gateway.system("DELETE", "system/functions", {"functionName": "echo"})).status == 202
    async with opened(tmp_path / "fabric") as gateway:
        assert (await gateway.system("GET", "system/functions")).json == []


async def test_an_update_that_does_not_start_leaves_what_serves(gateway: Gateway) -> None:
    """400 with the reason; the old edition goes on, and a good update takes its place."""
    await gateway.ready("echo")
    broken = await gateway.deploy("echo", "import no_such_module\n", method="PUT")
    assert broken.status == 400
    assert "no_such_module" in broken.text
    assert (await gateway.call("function/echo")).json["edition"] == 1
    await gateway.ready("echo", code=ECHO.replace("EDITION = 1", "EDITION = 2"), method="PUT")
    assert (await gateway.call("function/echo")).json["edition"] == 2


async def test_what_was_printed_can_be_read(gateway: Gateway) -> None:
    """Lines with their times, the last ones with `tail`; only with the password."""
    await gateway.ready("echo")
    for n in (1, 2):
        await gateway.call("function/echo", n=n)
    logs = await gateway.system("GET", "system/logs?name=echo&tail=1")
    lines = [json.loads(line) for line in logs.text.splitlines()]
    assert [(line["name"], line["text"]) for line in lines] == [("echo", "stdout: asked for 2")]
    assert (await gateway.system("GET", "system/logs?name=echo", password="wrong")).status == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "system/functions", {}, 400, "service: is required"),
        ("POST", "system/functions", {"service": "a_b"}, 400, "valid DNS entry"),
        ("POST", "system/functions", {"service": "a"}, 400, "image: is required"),
        (
            "POST",
            "system/functions",
            {
                "service": "a",
                "image": "nginx",
                "envProcess": "functions-framework",
                "envVars": {"mode": "http"},
            },
            400,
            "has no containers",
        ),
        ("POST", "system/functions", b"{", 400, "failed to unmarshal"),
        ("PUT", "system/functions", b"[]", 400, "failed to unmarshal"),
        ("DELETE", "system/functions", {"functionName": "none"}, 404, "not found"),
        ("DELETE", "system/functions", {}, 400, ""),
        ("GET", "system/function/none", None, 404, ""),
        ("GET", "system/logs?name=x&tail=many", None, 422, "could not parse"),
        ("GET", "system/functions?namespace=No_Name", None, 400, "namespace not valid"),
    ],
)
async def test_wrong_requests_are_refused(
    gateway: Gateway, method: str, path: str, body: Any, status: int, words: str
) -> None:
    """With the status and the words of faas-netes; and 401 before anything is looked at."""
    answer = await gateway.system(method, path, body)
    assert answer.status == status, answer.text
    assert words in answer.text
    stranger = await gateway.system(method, path, body, password="wrong")
    assert (stranger.status, stranger.text) == (401, "invalid credentials")


async def test_a_name_is_created_once(gateway: Gateway) -> None:
    """A second creation is refused in faas-netes' words, and an update of what is not there too."""
    await gateway.ready("echo")
    again = await gateway.deploy("echo")
    assert again.status == 500
    assert '"echo" already exists' in again.text
    other = await gateway.deploy("other", method="PUT")
    assert other.status == 404
    assert '"other" not found' in other.text
