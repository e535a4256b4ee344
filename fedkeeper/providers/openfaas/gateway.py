"""Requests to a gateway: each sent once, and what is not 2xx becomes one typed error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from yarl import URL

from fedkeeper.errors import ConfigError, InvocationUnknown, ProviderError, ProviderUnavailable
from fedkeeper.providers import http
from fedkeeper.providers.openfaas import resources

SMALL_BYTES_MAX: Final = 4 * 2**20
NO_GATEWAY: Final = "is `gateway` an OpenFaaS gateway?"


@dataclass(slots=True)
class Gateway:
    """Where it is, and the connections to it. Times in seconds."""

    cluster: str
    url: URL  # without a path
    session: aiohttp.ClientSession = field(repr=False)  # holds the credentials
    calling: aiohttp.ClientSession = field(repr=False)  # of functions: they are not told them
    slots: asyncio.Semaphore = field(repr=False)  # requests in flight
    connect_timeout_s: float
    read_timeout_s: float
    busy_wait_s: float

    async def send(
        self,
        method: str,
        function: str,
        path: str | URL,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        to_function: bool = False,
        bytes_max: int = SMALL_BYTES_MAX,
        timeout_s: float | None = None,
        of_function: bool = True,
    ) -> http.Answer:
        """Send once; the answer if it is 2xx, else the error it stands for.

        Reads that get no usable answer raise ProviderUnavailable (ask again later); writes raise it only if
        nothing left this machine, else InvocationUnknown.
        """
        writes = method != "GET"
        sending = http.Sending()
        silence_s = timeout_s or self.read_timeout_s
        try:
            async with self.slots:
                answer = await http.exchange(
                    self.calling if to_function else self.session,
                    method,
                    path if isinstance(path, URL) else self.url / path,
                    sending=sending,
                    timeout=aiohttp.ClientTimeout(
                        total=self.connect_timeout_s + silence_s,
                        connect=self.connect_timeout_s,
                        sock_read=silence_s,
                    ),
                    bytes_max=bytes_max,
                    params=query or None,
                    body=body,
                    headers=headers or ({"Content-Type": "application/json"} if body is not None else {}),
                )
        except http.AnswerTooLarge as exc:
            kind = InvocationUnknown if writes else ProviderError
            raise kind(self.cluster, function, f"sent, but {exc}") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            if writes and sending.started:
                problem = f"sent, no answer: {http.describe(exc)}"
                raise InvocationUnknown(self.cluster, function, problem) from exc
            problem = "no answer" if sending.started else "not sent"
            raise ProviderUnavailable(
                self.cluster, function, f"{problem}: {http.describe(exc)}", hint=_connection_hint(exc)
            ) from exc
        if 200 <= answer.status < 300:
            return answer
        raise resources.refusal(
            self.cluster,
            function,
            answer,
            wrote=writes,
            busy_wait_s=self.busy_wait_s,
            of_function=of_function,
        )

    def plain(self, answer: http.Answer, function: str, *, wrote: bool) -> Any:
        """The answer's JSON. InvocationUnknown or ProviderError if it is none."""
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            problem = f"HTTP {answer.status}, but the answer is not JSON"
            kind = InvocationUnknown if wrote else ProviderError
            raise kind(self.cluster, function, problem, status=answer.status, hint=NO_GATEWAY) from exc

    async def close(self) -> None:
        """Give the connections back."""
        await self.session.close()
        await self.calling.close()


def base_url(cluster: str, gateway: str) -> URL:
    """The gateway's origin. ConfigError if `gateway` is no address, or more than one."""
    try:
        url = URL(gateway if "://" in gateway else f"https://{gateway}")
    except ValueError as exc:
        raise ConfigError(f"{cluster}: gateway is not a URL") from exc
    if url.scheme not in ("http", "https") or not url.host or url.user or url.path not in ("", "/"):
        raise ConfigError(
            f"{cluster}: gateway is not of the form https://host[:port]", hint="credentials belong into auth"
        )
    return url.origin()


def _connection_hint(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return "give the CA's certificate as ca_file"
    return "is the gateway up, and `gateway` right?" if isinstance(exc, aiohttp.ClientConnectorError) else ""
