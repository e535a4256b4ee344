"""Keepers' APIs on loopback: real HTTP over logs in memory. Every answer is checked against the document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jsonschema
from yarl import URL

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import KeeperStarted
from fedkeeper.keeper.api.app import Api, open_api
from fedkeeper.keeper.api.control import Control, LogControl
from fedkeeper.keeper.api.openapi import document
from fedkeeper.keeper.api.routes import Table
from fedkeeper.keeper.api.server import listen
from fedkeeper.keeper.api.settings import ApiSettings
from fedkeeper.replication.base import Apply
from fedkeeper.replication.memory import MemoryGroup, MemoryLog

WAIT_S = 20.0  # for what takes milliseconds


@dataclass
class Keeper:
    """One of the lab's."""

    name: str
    log: MemoryLog
    api: Api
    control: Control
    stack: AsyncExitStack
    promised: dict[str, Any]  # the document

    @property
    def url(self) -> str:
        return self.api.url

    async def die(self) -> None:
        """Its API goes away, as it does when its process dies: no more connections, none left."""
        await self.stack.aclose()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


@dataclass
class Lab:
    """k1 leads, until told otherwise."""

    group: MemoryGroup
    session: aiohttp.ClientSession
    keepers: dict[str, Keeper] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Keeper:
        return self.keepers[name]

    @property
    def urls(self) -> list[str]:
        return [keeper.url for keeper in self.keepers.values()]

    async def ask(
        self, method: str, target: str, body: Any = None, *, at: str = "k1", **options: Any
    ) -> Answer:
        """One request to one keeper; redirects are not followed. `target` goes out as it stands."""
        if body is not None:
            options["data"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        keeper = self.keepers[at]
        url = URL(keeper.url + target, encoded=True)
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        check(keeper, method, target, answer)
        return answer

    async def put(self, name: str, value: Any, **more: Any) -> int:
        """Write at k1; the version."""
        answer = await self.ask("PUT", f"/v1/kv/{name}", {"value": value, **more})
        assert answer.status == 200, answer.data
        version: int = answer.json["version"]
        return version


def check(keeper: Keeper, method: str, target: str, answer: Answer) -> None:
    """The answer is one that the document promises."""
    by_method, _ = Table(keeper.api.routes).find(target.partition("?")[0])
    route = by_method.get(method)
    if route is None:
        assert answer.status in {401, 403, 404, 405}, answer.status
        _fits(keeper.promised, {"$ref": "#/components/schemas/Failure"}, answer.json)
        return
    operation = keeper.promised["paths"][route.path][method.lower()]
    assert str(answer.status) in operation["responses"], (
        f"{method} {route.path}: {answer.status} is not documented"
    )
    media = answer.headers["Content-Type"]
    content = operation["responses"][str(answer.status)]["content"]
    assert media in content, f"{method} {route.path}: {media} is not documented"
    if media == "application/json":
        _fits(keeper.promised, content[media]["schema"], answer.json)


def _fits(promised: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": promised["components"]}).validate(value)


@asynccontextmanager
async def open_lab(
    *names: str,
    settings: ApiSettings | None = None,
    control: type[LogControl] = LogControl,
    announce: bool = True,
    verify: Any = None,
    apply: Apply = core_apply,
) -> AsyncIterator[Lab]:
    """Keepers of these names, k1 by default, each with its API; all of one cluster, which the first leads."""
    names = names or ("k1",)
    group = MemoryGroup(names, apply=apply)
    async with AsyncExitStack() as all_of_it:
        connector = aiohttp.TCPConnector(limit=0, ssl=verify if verify is not None else True)
        session = await all_of_it.enter_async_context(aiohttp.ClientSession(connector=connector))
        lab = Lab(group, session)
        for name in names:
            stack = await all_of_it.enter_async_context(AsyncExitStack())
            log = MemoryLog(name=name, group=group)
            control_of = control(log, {"keeper": name})
            opened = open_api(log, control_of, listen("127.0.0.1", 0), settings=settings)
            api = await stack.enter_async_context(opened)
            lab.keepers[name] = Keeper(name, log, api, control_of, stack, document(api.routes))
            if announce:
                await log.propose(KeeperStarted(keeper=name, api=api.url, version=1, at_ms=1))
        yield lab


async def until(condition: Any, *, what: str = "it") -> None:
    """Wait, generously, until `condition()` is true."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.005)
    assert condition(), what
