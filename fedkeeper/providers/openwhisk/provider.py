"""Apache OpenWhisk over its REST API; no `wsk` program is needed.

Every request is sent once. Reads that get no usable answer raise ProviderUnavailable (ask again later);
writes raise ProviderUnavailable only if nothing left this machine, else InvocationUnknown.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
from pydantic import SecretStr
from yarl import URL

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.errors import (
    ConfigError,
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed, Package
from fedkeeper.providers.openwhisk import records

DEFAULT_KIND: Final = "python:default"  # "python:3" is no kind any more; this one resolves everywhere
PAGE: Final = 200  # the platform's own maximum
PAGES_MAX: Final = 100
FEW: Final = 4  # so many records are fetched one by one
SMALL_BYTES_MAX: Final = 4 * 2**20  # summaries: 200 of a few kB at most
RECORD_BYTES_MAX: Final = 24 * 2**20  # result 1 MB and logs 10 MB, as JSON
ENTITY_BYTES_MAX: Final = 72 * 2**20  # the answer to PUT has the code in it: 48 MB of base64


@dataclass(slots=True)
class OpenWhisk:
    """One namespace of one OpenWhisk cluster. Make it with `open`."""

    cluster: str
    api: URL  # ends in /api/v1/namespaces/{namespace}
    session: aiohttp.ClientSession = field(repr=False)  # holds the credentials
    slots: asyncio.Semaphore = field(repr=False)  # requests in flight
    connect_timeout_s: float
    read_timeout_s: float
    deploy_timeout_s: float
    clock: Clock
    platform: str = "openwhisk"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: str,
        *,
        api_host: str,
        auth: SecretStr,
        namespace: str = "_",
        tls_verify: bool = True,
        ca_file: Path | None = None,
        requests_in_flight_max: int = 32,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 60.0,
        deploy_timeout_s: float = 300.0,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """A provider for `api_host` ("https://host[:port]"), closed at the end.

        `auth` is "uuid:key"; namespace "_" is the one the key belongs to. Nothing is sent yet.
        Raises ConfigError if host, key or ca_file cannot be right.
        """
        credentials = auth.get_secret_value().strip()
        login, _, password = credentials.partition(":")
        if not (login and password):
            raise ConfigError(f"{cluster}: auth is not of the form uuid:key", hint="see AUTH in ~/.wskprops")
        api = _base_url(cluster, api_host, namespace)
        http.warn_if_plain(cluster, api)
        tls = http.tls_context(cluster, verify=tls_verify, ca_file=ca_file)
        provider = cls(
            cluster=cluster,
            api=api,
            session=http.open_session(
                in_flight_max=requests_in_flight_max,
                authorization="Basic " + base64.b64encode(credentials.encode()).decode(),
                tls=tls,
            ),
            slots=asyncio.Semaphore(requests_in_flight_max),
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            deploy_timeout_s=deploy_timeout_s,
            clock=clock or SystemClock(),
        )
        try:
            yield provider
        finally:
            await provider.close()

    async def check(self) -> None:
        """Return if the platform answers and lets this key into this namespace."""
        await self._page("actions", {"limit": "1"})

    async def deploy(self, package: Package) -> Deployed:
        """PUT with overwrite=true: creates the action, or updates it in place."""
        answer = await self._send(
            "PUT",
            package.function,
            f"actions/{_path(package.function)}",
            {"overwrite": "true"},
            json.dumps(_action(package)).encode(),
            bytes_max=ENTITY_BYTES_MAX,
            read_timeout_s=self.deploy_timeout_s,
        )
        return records.deployed(_object(self._json(answer, package.function, wrote=True)), self.api)

    async def remove(self, function: str) -> bool:
        """Delete the action; False if there was none."""
        try:
            await self._send(
                "DELETE", function, f"actions/{_path(function)}", {}, None, bytes_max=ENTITY_BYTES_MAX
            )
        except FunctionMissing:
            return False
        return True

    async def list(self) -> tuple[Deployed, ...]:
        """Every action of the namespace, those in packages as "package/name"."""
        found: dict[str, Deployed] = {}  # by name: pages shift while others deploy
        for page in range(PAGES_MAX):
            rows = await self._page("actions", {"limit": str(PAGE), "skip": str(page * PAGE)})
            found |= {one.function: one for one in (records.deployed(row, self.api) for row in rows)}
            if len(rows) < PAGE:
                return tuple(found.values())
        raise RequestRefused(self.cluster, "", f"the namespace has more than {PAGES_MAX * PAGE} actions")

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """POST without blocking. `key` travels in the payload, the limit is the action's own."""
        try:
            body = json.dumps(payload, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise RequestRefused(self.cluster, function, f"payload of {key}: {exc}") from exc
        answer = await self._send(
            "POST",
            function,
            f"actions/{_path(function)}",
            {"blocking": "false"},
            body,
            bytes_max=RECORD_BYTES_MAX,
        )
        activation_id = _object(self._json(answer, function, wrote=True)).get("activationId")
        if not isinstance(activation_id, str) or not activation_id:
            raise InvocationUnknown(
                self.cluster, function, "sent, and the answer has no activationId", status=answer.status
            )
        return activation_id

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """Summaries tell which have ended (one request for 200); only of those are the records fetched."""
        wanted = set(activation_ids)
        if len(wanted) > FEW:
            starts = await self._ended_starts(wanted, since_ms)
            if len(starts) > FEW:
                return await self._window(starts)
            wanted = set(starts)
        found = await asyncio.gather(*(self._record(one) for one in sorted(wanted)))
        return {row["activationId"]: records.activation(row, with_logs=False) for row in found if row}

    async def activation(self, activation_id: str) -> Activation | None:
        """The record with its logs; None until it is written."""
        record = await self._record(activation_id)
        if record is None:
            return None
        if not record.get("logs"):  # some operators keep logs in a store of their own
            try:
                logs = await self._read("", f"activations/{quote(activation_id, safe='')}/logs", {})
                record = {**record, "logs": logs.get("logs", []) if isinstance(logs, dict) else []}
            except RequestRefused:
                pass  # then there are none to be had; the record is still worth having
        return records.activation(record, with_logs=True)

    async def close(self) -> None:
        """Give the connections back; activations go on."""
        await self.session.close()

    async def _ended_starts(self, wanted: set[str], since_ms: int) -> dict[str, int]:
        """When those of `wanted` started that have a record, by ID."""
        starts: dict[str, int] = {}
        for page in range(PAGES_MAX):
            query = {"since": str(since_ms), "limit": str(PAGE), "skip": str(page * PAGE), "docs": "false"}
            rows = await self._page("activations", query)
            starts |= {
                row["activationId"]: int(row.get("start", since_ms))
                for row in rows
                if row.get("activationId") in wanted
            }
            if len(rows) < PAGE or len(starts) == len(wanted):
                break
        return starts

    async def _window(self, starts: Mapping[str, int]) -> dict[str, Activation]:
        """The records of many, by pages of all that started in the same time."""
        window = {"since": str(min(starts.values())), "upto": str(max(starts.values())), "docs": "true"}
        found: dict[str, Activation] = {}
        for page in range(PAGES_MAX):
            query = {**window, "limit": str(PAGE), "skip": str(page * PAGE)}
            try:
                rows = await self._page("activations", query, bytes_max=ENTITY_BYTES_MAX)
            except _Oversize:  # much logging: fetch what is left one by one
                left = [one for one in starts if one not in found]
                single = await asyncio.gather(*(self._record(one) for one in left))
                return found | {
                    row["activationId"]: records.activation(row, with_logs=False) for row in single if row
                }
            found |= {
                row["activationId"]: records.activation(row, with_logs=False)
                for row in rows
                if row.get("activationId") in starts
            }
            if len(rows) < PAGE or len(found) == len(starts):
                break
        return found

    async def _record(self, activation_id: str) -> dict[str, Any] | None:
        try:
            path = f"activations/{quote(activation_id, safe='')}"
            record = _object(await self._read("", path, {}, bytes_max=RECORD_BYTES_MAX))
        except FunctionMissing:  # 404 until the record is written
            return None
        return record if record.get("activationId") == activation_id else None

    async def _page(
        self, path: str, query: Mapping[str, str], *, bytes_max: int = SMALL_BYTES_MAX
    ) -> Sequence[dict[str, Any]]:
        try:
            rows = await self._read("", path, query, bytes_max=bytes_max)
        except FunctionMissing as exc:
            raise RequestRefused(self.cluster, "", exc.problem, status=404, hint=_NOT_OPENWHISK) from exc
        if not isinstance(rows, list):
            raise ProviderError(self.cluster, "", f"GET {path}: a list was expected", hint=_NOT_OPENWHISK)
        return [row for row in rows if isinstance(row, dict)]

    async def _read(
        self, function: str, path: str, query: Mapping[str, str], *, bytes_max: int = SMALL_BYTES_MAX
    ) -> Any:
        answer = await self._send("GET", function, path, query, None, bytes_max=bytes_max)
        return self._json(answer, function, wrote=False)

    async def _send(
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
        writes = method != "GET"
        sending = http.Sending()
        silence_s = read_timeout_s or self.read_timeout_s
        try:
            async with self.slots:
                answer = await http.exchange(
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
            kind = InvocationUnknown if writes else _Oversize
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
        if 200 <= answer.status < 300:
            return answer
        raise records.refusal(self.cluster, function, answer, wrote=writes, now_ms=self.clock.now_ms())

    def _json(self, answer: http.Answer, function: str, *, wrote: bool) -> Any:
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            problem = f"HTTP {answer.status}, but the answer is not JSON"
            if wrote:
                raise InvocationUnknown(
                    self.cluster, function, problem, status=answer.status, hint=_NOT_OPENWHISK
                ) from exc
            raise ProviderError(
                self.cluster, function, problem, status=answer.status, hint=_NOT_OPENWHISK
            ) from exc


class _Oversize(ProviderError):
    """The answer to a read is longer than is held in memory."""


_NOT_OPENWHISK: Final = "is api_host an OpenWhisk API host?"


def _base_url(cluster: str, api_host: str, namespace: str) -> URL:
    try:
        host = URL(api_host if "://" in api_host else f"https://{api_host}")
    except ValueError as exc:
        raise ConfigError(f"{cluster}: api_host is not a URL") from exc
    if host.scheme not in ("http", "https") or not host.host or host.user or host.path not in ("", "/"):
        raise ConfigError(
            f"{cluster}: api_host is not of the form https://host[:port]",
            hint="credentials belong into auth, and /api/v1 is added here",
        )
    return URL(f"{host.origin()}/api/v1/namespaces/{quote(namespace, safe='')}", encoded=True)


def _path(function: str) -> str:
    """Quoted for a URL; "package/name" stays two segments."""
    return "/".join(quote(part, safe="") for part in function.split("/"))


def _object(plain: Any) -> dict[str, Any]:
    return plain if isinstance(plain, dict) else {}


def _connection_hint(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return "give the cluster's CA certificate as ca_file"
    return "is the cluster up, and api_host right?" if isinstance(exc, aiohttp.ClientConnectorError) else ""


def _action(package: Package) -> dict[str, Any]:
    """The body of PUT. init parameters become environment variables, not arguments."""
    code = base64.b64encode(package.archive).decode()
    executable: dict[str, Any] = {"kind": package.runtime or DEFAULT_KIND}
    if package.image:
        executable = {"kind": "blackbox", "image": package.image}
    return {
        "exec": {**executable, "code": code, "main": package.entry},
        "limits": {
            "timeout": round(package.timeout_s * 1000),
            "memory": package.memory_mb,
            "concurrency": package.concurrency,
        },
        "parameters": [
            {"key": key, "value": value.get_secret_value(), "init": True}
            for key, value in sorted(package.environment.items())
        ],
        "annotations": [
            {"key": "provide-api-key", "value": False},  # else the function could act as its owner
            {"key": records.DIGEST_ANNOTATION, "value": package.digest},
        ],
    }
