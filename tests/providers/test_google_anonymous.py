"""`auth.anonymous`: the whole route to an emulator that asks for no credentials.

The emulator is the embedded fabric behind a front that lets everybody in: it proves itself to the fabric and
puts its own address in the place of the fabric's.
"""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from fedkeeper.errors import AuthenticationRefused
from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.providers.base import Opening, Package
from fedkeeper.providers.google.config import Cluster
from fedkeeper.providers.google.login import SCOPE
from fedkeeper.providers.google.opening import open_cluster
from fedkeeper.runtime import posting
from tests.providers.canned_google import ending

MAIN = """
def main(request):
    if request.content_type == "application/octet-stream":
        return request.get_data()[::-1]
    return {"got": request.get_json(), "signed_in": "Authorization" in request.headers}
"""


@dataclass
class Emulator:
    """Passes requests on to the fabric with what the fabric asks for."""

    fabric: FabricAddress
    http: aiohttp.ClientSession
    url: str = ""
    signed: list[str] = field(default_factory=list)  # paths of requests that came with credentials

    def token(self, path: str) -> str:
        """An access token, or for a function an ID token. Blocking."""
        info = self.fabric.service_accounts["open"]
        credentials: Any = service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])
        if path.startswith("/fn/"):
            credentials = service_account.IDTokenCredentials.from_service_account_info(
                info, target_audience=f"{self.fabric.url}{path}"
            )
        credentials.refresh(Request())
        return str(credentials.token)

    async def handle(self, request: web.Request) -> web.Response:
        """One request and its answer."""
        if "Authorization" in request.headers:
            self.signed.append(request.path)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
        if not request.path.startswith("/upload/"):
            headers["Authorization"] = f"Bearer {await asyncio.to_thread(self.token, request.path)}"
        async with self.http.request(
            request.method, f"{self.fabric.url}{request.raw_path}", data=await request.read(), headers=headers
        ) as answer:
            body = (await answer.read()).replace(self.fabric.url.encode(), self.url.encode())
            return web.Response(status=answer.status, body=body, content_type=answer.content_type)


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """On loopback."""
    running = await open_fabric(tmp_path / "fabric", namespaces=[], projects=["open"], linger_s=5)
    async with aiohttp.ClientSession() as http:
        emulator = Emulator(running.address, http)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", emulator.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        emulator.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield emulator
        await runner.cleanup()
    await running.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """The provider and the access of a cluster of the config that has `auth.anonymous`."""
    cluster = Cluster.model_validate(
        {"project": "open", "region": "here", "api_endpoint": url, "auth": {"anonymous": True}}
    )
    opening = Opening(
        name="gcf",
        cluster=cluster,
        in_flight_max=10,
        deployments_in_flight_max=4,
        request_timeout_s=60,
        deploy_timeout_s=120,
    )
    async with open_cluster(opening) as both:
        yield both


def make(edition: int = 1) -> Package:
    """A function that answers what it gets: bytes backwards."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("main.py", MAIN)
        bundle.writestr("edition.txt", str(edition))
    return Package(
        function="client_3", source="x", archive=archive.getvalue(), digest=f"d{edition}", timeout_s=60
    )


async def test_the_whole_route_without_credentials(emulator: Emulator) -> None:
    """Checked, deployed, updated, listed, invoked, called as the invoker does, removed: nothing is signed."""
    async with opened(emulator.url) as (provider, access):
        await provider.check()
        made = await provider.deploy(make())
        assert made.url.startswith(f"{emulator.url}/fn/")
        assert (await provider.deploy(make(2))).version != made.version
        assert [(one.function, one.digest) for one in await provider.list()] == [("client_3", "d2")]
        ended = await ending(provider, await provider.invoke("client_3", {"n": 1}, key="k", timeout_s=60))
        assert (ended.ok, ended.result["got"]) == (True, {"n": 1})
        assert dict(access.service_account) == {}
        client = posting.Client(name="client_3", url=made.url, access=access)
        answer = await asyncio.to_thread(
            posting.post, client, b"weights", deadline=time.monotonic() + 60, answer_bytes_max=1024
        )
        assert answer == b"sthgiew"
        assert await provider.remove("client_3") is True
        assert await provider.remove("client_3") is False
    assert emulator.signed == []


async def test_the_fabric_itself_is_no_such_emulator(emulator: Emulator) -> None:
    """It asks for credentials: refused by name, with the way out."""
    async with opened(emulator.fabric.url) as (provider, _):
        with pytest.raises(AuthenticationRefused, match="HTTP 401") as caught:
            await provider.check()
        assert "auth.anonymous" in caught.value.hint
