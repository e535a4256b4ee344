"""A platform that answers what a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from fedkeeper.errors import Happened, ProviderError


@dataclass
class Seen:
    """A request that the canned platform got."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


_NONE = object()


@dataclass
class Canned:
    """A platform that answers what the test says, in order (the last answer again and again)."""

    url: str = ""
    answers: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    rules: list[tuple[str, str, Any]] = field(default_factory=list)
    hold: asyncio.Event | None = None  # answers wait for it …
    held: str = ""  # … of requests with this in their path

    def reply(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Canned:
        """Add an answer; `body` is bytes as they are, or JSON."""
        self.answers.append((status, body, headers or {}))
        return self

    def when(self, method: str, end: str, status: int, body: Any = None, **headers: str) -> Canned:
        """Answer requests whose path ends so with this, before all others; later rules win."""
        self.rules.insert(0, (method, end, (status, body, headers)))
        return self

    def drop(self) -> Canned:
        """Add a connection that breaks after the request was read."""
        self.answers.append(None)
        return self

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Record the request, give the next answer. Limits are asked for aside, and there are none."""
        if request.path.endswith("/limits") and not any(end == "/limits" for _, end, _ in self.rules):
            return web.json_response({"error": "The requested resource does not exist."}, status=404)
        self.seen.append(
            Seen(request.method, request.path, dict(request.query), request.headers, await request.read())
        )
        fitting = (a for m, end, a in self.rules if m == request.method and request.path.endswith(end))
        answer = next(fitting, _NONE)
        if answer is _NONE:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(self.seen[-1])
        if self.hold and (self.held in request.path):
            await self.hold.wait()
        if answer is None:
            assert request.transport
            request.transport.abort()
            return web.Response()
        status, body, headers = answer
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=raw, headers={"Content-Type": "application/json", **headers})


@dataclass(frozen=True, kw_only=True)
class Row:
    """An answer of a platform to one act, the error that it becomes, and whether the act has happened."""

    act: str
    status: int
    body: Any
    kind: type[ProviderError]
    happened: Happened
    says: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.act}-{self.status}-{self.kind.__name__}-{self.says}"
