"""HTTP with one namespace of an OpenWhisk: a request is sent once, an answer becomes a value or one error.

Reads that get no usable answer raise ProviderUnavailable (ask again later); writes raise it only if nothing
can have happened, else InvocationUnknown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from yarl import URL

from fedkeeper.clock import Clock
from fedkeeper.errors import (
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from fedkeeper.providers import http
from fedkeeper.providers.openwhisk import records

SMALL_BYTES_MAX: Final = 4 * 2**20  # summaries: 200 of a few kB at most
NOT_OPENWHISK: Final = "is api_host an OpenWhisk API host?"


class Oversize(ProviderError):
    """The answer to a read is longer than is held in memory."""


@dataclass(slots=True)
class Connection:
    """A session with one namespace."""

    cluster: str
    api: URL  # ends in /api/v1/namespaces/{namespace}
    session: aiohttp.ClientSession = field(repr=False)  # holds the credentials
    slots: asyncio.Semaphore = field(repr=False)  # requests in flight
    connect_timeout_s: float
    read_timeout_s: float
    busy_wait_s: float
    clock: Clock

    async def close(self) -> None:
        """Give the connections back."""
        await self.session.close()

    async def page(
        self, path: str, query: Mapping[str, str], *, bytes_max: int = SMALL_BYTES_MAX
    ) -> Sequence[dict[str, Any]]:
        """One page of a list."""
        try:
            rows = await self.read("", path, query, bytes_max=bytes_max)
        except FunctionMissing as exc:
            raise RequestRefused(self.cluster, "", exc.problem, status=404, hint=NOT_OPENWHISK) from exc
        if not isinstance(rows, list):
            raise ProviderError(self.cluster, "", f"GET {path}: a list was expected", hint=NOT_OPENWHISK)
        return [row for row in rows if isinstance(row, dict)]

    async def read(
        self, function: str, path: str, query: Mapping[str, str], *, bytes_max: int = SMALL_BYTES_MAX
    ) -> Any:
        """GET: the answer's JSON."""
        answer = await self.send("GET", function, path, query, None, bytes_max=bytes_max)
        return self.parsed(answer, function, wrote=False)

    async def send(
        self,
        method: str,
        function: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        *,
        bytes_max: int,
        read_timeout_s: float | None = None,
    ) -> http.Answer:
        """Send once; the answer if it is 2xx, else the error it stands for."""
        answer = await self.exchange(
            method, function, path, query, body, bytes_max=bytes_max, read_timeout_s=read_timeout_s
        )
        if 200 <= answer.status < 300:
            return answer
        raise self.refusal(method, function, answer)

    def refusal(self, method: str, function: str, answer: http.Answer) -> ProviderError:
        """The error that an answer other than 2xx stands for."""
        return records.refusal(
            self.cluster,
            function,
            answer,
            wrote=method != "GET",
            now_ms=self.clock.now_ms(),
            busy_wait_s=self.busy_wait_s,
        )

    async def exchange(
        self,
        method: str,
        function: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        *,
        bytes_max: int,
        read_timeout_s: float | None = None,
    ) -> http.Answer:
        """Send once; the answer, of whatever status."""
        writes = method != "GET"
        sending = http.Sending()
        silence_s = read_timeout_s or self.read_timeout_s
        try:
            async with self.slots:
                return await http.exchange(
                    self.session,
                    method,
                    URL(f"{self.api}/{path}", encoded=True),
                    sending=sending,
                    timeout=aiohttp.ClientTimeout(
                        total=self.connect_timeout_s + silence_s,
                        connect=self.connect_timeout_s,
                        sock_read=silence_s,
                    ),
                    bytes_max=bytes_max,
                    params=query,
                    body=body,
                    headers={"Content-Type": "application/json"} if body is not None else {},
                )
        except http.AnswerTooLarge as exc:
            kind = InvocationUnknown if writes else Oversize
            raise kind(self.cluster, function, f"sent, but {exc}") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            if writes and sending.started:
                raise InvocationUnknown(
                    self.cluster, function, f"sent, no answer: {http.describe(exc)}"
                ) from exc
            problem = "no answer" if sending.started else "not sent"
            raise ProviderUnavailable(
                self.cluster, function, f"{problem}: {http.describe(exc)}", hint=_connection_hint(exc)
            ) from exc

    def parsed(self, answer: http.Answer, function: str, *, wrote: bool) -> Any:
        """The answer's JSON. If the request `wrote`, one that is none leaves open what happened."""
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            problem = f"HTTP {answer.status}, but the answer is not JSON"
            if wrote:
                raise InvocationUnknown(
                    self.cluster, function, problem, status=answer.status, hint=NOT_OPENWHISK
                ) from exc
            raise ProviderError(
                self.cluster, function, problem, status=answer.status, hint=NOT_OPENWHISK
            ) from exc


def _connection_hint(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return "give the cluster's CA certificate as ca_file"
    return "is the cluster up, and api_host right?" if isinstance(exc, aiohttp.ClientConnectorError) else ""
