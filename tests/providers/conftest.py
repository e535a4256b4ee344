from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from fedkeeper.providers.google.provider import Google
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from tests.providers import canned_google as answers
from tests.providers import canned_openwhisk
from tests.providers.canned import Canned


@pytest.fixture
async def canned() -> AsyncIterator[Canned]:
    """A server on loopback."""
    async with serving(Canned()) as platform:
        yield platform


@pytest.fixture
async def canned_elsewhere() -> AsyncIterator[Canned]:
    """Another one, for what is not the platform."""
    async with serving(Canned()) as platform:
        yield platform


@asynccontextmanager
async def serving(platform: Canned) -> AsyncIterator[Canned]:
    """`platform`, answering on loopback."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", platform.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    platform.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield platform
    if platform.hold:
        platform.hold.set()
    await runner.cleanup()


@pytest.fixture
async def whisk(canned: Canned) -> AsyncIterator[OpenWhisk]:
    """A provider that talks to the canned platform; its clock stands 20 s into a minute."""
    async with canned_openwhisk.open_to(canned.url) as provider:
        yield provider


@pytest.fixture
async def cloud(canned: Canned) -> Canned:
    """A canned platform where everything goes well; tests put their own answer in front."""
    url = canned.url
    canned.rules.append(("POST", "/token", answers.token_for))
    canned.reply(404, answers.refused(404, "NOT_FOUND", "canned: no rule"))
    canned.when("GET", "/functions", 200, {"functions": [answers.function(url)]})
    canned.when("GET", "/functions/client-3", 200, answers.function(url))
    canned.when("POST", "/functions", 200, answers.operation(url))
    canned.when("PATCH", "/functions/client-3", 200, answers.operation(url))
    gone = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    canned.when("DELETE", "/functions/client-3", 200, {**answers.operation(url), "response": gone})
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
    async with answers.open_to(cloud.url) as provider:
        yield provider
