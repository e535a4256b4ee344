"""Apache OpenWhisk over its REST API; no `wsk` program is needed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import structlog
from pydantic import SecretStr
from yarl import URL

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.errors import (
    ConfigError,
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    RequestRefused,
    Throttled,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed, Package, PlatformLimits, Progress, untold
from fedkeeper.providers.openwhisk import records
from fedkeeper.providers.openwhisk.connection import Connection, Oversize
from fedkeeper.providers.openwhisk.pacing import Pace

PAGE: Final = 200  # the platform's own maximum
PAGES_MAX: Final = 100
LIMITS_AGAIN: Final = 0.1  # of the time that limits hold: asked again after so much, if they were not told
FEW: Final = 4  # so many records are fetched one by one
RECORD_BYTES_MAX: Final = 24 * 2**20  # result 1 MB and logs 10 MB, as JSON
ENTITY_BYTES_MAX: Final = 72 * 2**20  # the answer to PUT has the code in it: 48 MB of base64

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class OpenWhisk:
    """One namespace of one OpenWhisk cluster. Make it with `open`."""

    cluster: str
    connection: Connection = field(repr=False)
    deploy_timeout_s: float
    clock: Clock
    pace: Pace = field(repr=False)
    limits_fresh_s: float  # an operator may change them
    learning: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # the limits
    learn_again_ms: int = 0
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
        busy_wait_s: float = 1.0,
        limits_fresh_s: float = 600.0,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """A provider for `api_host` ("https://host[:port]"), closed at the end.

        `auth` is "uuid:key"; namespace "_" is the one the key belongs to. Nothing is sent yet. `busy_wait_s`:
        the first pause when too much is in flight; `limits_fresh_s`: how long `/limits` are relied on.
        Raises ConfigError if host, key or ca_file cannot be right.
        """
        credentials = auth.get_secret_value().strip()
        login, _, password = credentials.partition(":")
        if not (login and password):
            raise ConfigError(f"{cluster}: auth is not of the form uuid:key", hint="see AUTH in ~/.wskprops")
        api = _base_url(cluster, api_host, namespace)
        http.warn_if_plain(cluster, api)
        tls = http.tls_context(cluster, verify=tls_verify, ca_file=ca_file)
        clock = clock or SystemClock()
        connection = Connection(
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
            busy_wait_s=busy_wait_s,
            clock=clock,
        )
        provider = cls(
            cluster=cluster,
            connection=connection,
            deploy_timeout_s=deploy_timeout_s,
            clock=clock,
            pace=Pace(clock, busy_wait_s),
            limits_fresh_s=limits_fresh_s,
        )
        try:
            yield provider
        finally:
            await provider.close()

    async def check(self) -> None:
        """Return if the platform answers and lets this key into this namespace."""
        await self.connection.page("actions", {"limit": "1"})

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        """PUT with overwrite=true: creates the action, or updates it in place."""
        answer = await self.connection.send(
            "PUT",
            package.function,
            f"actions/{_path(package.function)}",
            {"overwrite": "true"},
            json.dumps(records.action(package)).encode(),
            bytes_max=ENTITY_BYTES_MAX,
            read_timeout_s=self.deploy_timeout_s,
        )
        return records.deployed(
            _object(self.connection.parsed(answer, package.function, wrote=True)), self.connection.api
        )

    async def remove(self, function: str) -> bool:
        """Delete the action; False if there was none."""
        try:
            await self.connection.send(
                "DELETE", function, f"actions/{_path(function)}", {}, None, bytes_max=ENTITY_BYTES_MAX
            )
        except FunctionMissing:
            return False
        return True

    async def list(self) -> tuple[Deployed, ...]:
        """Every action of the namespace, those in packages as "package/name"."""
        found: dict[str, Deployed] = {}  # by name: pages shift while others deploy
        for page in range(PAGES_MAX):
            rows = await self.connection.page("actions", {"limit": str(PAGE), "skip": str(page * PAGE)})
            found |= {
                one.function: one for one in (records.deployed(row, self.connection.api) for row in rows)
            }
            if len(rows) < PAGE:
                return tuple(found.values())
        raise RequestRefused(self.cluster, "", f"the namespace has more than {PAGES_MAX * PAGE} actions")

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """POST without blocking. `key` travels in the payload, the limit is the action's own."""
        try:
            body = json.dumps(payload, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise RequestRefused(self.cluster, function, f"payload of {key}: {exc}") from exc
        await self._learn_limits()
        wait_s = self.pace.wait_s()
        if wait_s:
            problem = "not sent: the platform would take no more now"
            raise Throttled(self.cluster, function, problem, retry_after_s=wait_s)
        refusal = None
        try:
            return await self._start(function, body)
        except Throttled as exc:
            refusal = exc
            raise
        finally:
            self.pace.answered(refusal)

    async def limits(self) -> PlatformLimits:
        """`GET /limits`."""
        return records.user_limits(_object(await self.connection.read("", "limits", {})))

    async def _learn_limits(self) -> None:
        """Read the limits, if they are not known or may have been changed; one caller does it for all.

        Where they cannot be had, the platform's refusals alone set the pace.
        """
        async with self.learning:
            if self.clock.now_ms() < self.learn_again_ms:
                return
            fresh_s = self.limits_fresh_s
            try:
                self.pace.limits = await self.limits()
            except ProviderError as exc:
                log.info("limits not known", cluster=self.cluster, problem=str(exc))
                fresh_s *= LIMITS_AGAIN
            self.learn_again_ms = self.clock.now_ms() + round(fresh_s * 1000)

    async def _start(self, function: str, body: bytes) -> str:
        """The ID of the activation that one POST has started, whatever else the answer says."""
        path, query = f"actions/{_path(function)}", {"blocking": "false"}
        answer = await self.connection.exchange(
            "POST", function, path, query, body, bytes_max=RECORD_BYTES_MAX
        )
        named = records.activation_id(answer)
        if named and (200 <= answer.status < 300 or (answer.status >= 500 and answer.status != 502)):
            return named  # after a fault of the platform too it may run: its record, or its deadline, tells
        if not 200 <= answer.status < 300:
            raise self.connection.refusal("POST", function, answer)
        self.connection.parsed(answer, function, wrote=True)
        raise InvocationUnknown(
            self.cluster, function, "sent, and the answer has no activationId", status=answer.status
        )

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """Summaries tell which have ended (one request for 200); only of those are the records fetched."""
        wanted = set(activation_ids)
        if len(wanted) > FEW:
            starts = await self._ended_starts(wanted, since_ms)
            if len(starts) > FEW:
                rows = await self._window(starts)
                return {one: records.activation(row, with_logs=False) for one, row in rows.items()}
            wanted = set(starts)
        found = await asyncio.gather(*(self._record(one) for one in sorted(wanted)))
        return {row["activationId"]: records.activation(row, with_logs=False) for row in found if row}

    async def activation(self, activation_id: str) -> Activation | None:
        """The record with its logs; None until it is written."""
        record = await self._record(activation_id)
        return None if record is None else await self._with_logs(record)

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """As `ended` finds them, with their logs."""
        wanted = set(activation_ids)
        if len(wanted) > FEW:
            starts = await self._ended_starts(wanted, since_ms)
            if len(starts) > FEW:
                rows = await self._window(starts)
                found = await asyncio.gather(*(self._with_logs(row) for row in rows.values()))
                return {one.activation_id: one for one in found}
            wanted = set(starts)
        single = await asyncio.gather(*(self.activation(one) for one in sorted(wanted)))
        return {one.activation_id: one for one in single if one}

    async def _with_logs(self, record: Mapping[str, Any]) -> Activation:
        if not record.get("logs"):  # some operators keep logs in a store of their own
            path = f"activations/{quote(str(record['activationId']), safe='')}/logs"
            try:
                logs = await self.connection.read("", path, {})
                record = {**record, "logs": logs.get("logs", []) if isinstance(logs, dict) else []}
            except RequestRefused:
                pass  # then there are none to be had; the record is still worth having
        return records.activation(record, with_logs=True)

    async def close(self) -> None:
        """Give the connections back; activations go on."""
        await self.connection.close()

    async def _ended_starts(self, wanted: set[str], since_ms: int) -> dict[str, int]:
        """When those of `wanted` started that have a record, by ID."""
        starts: dict[str, int] = {}
        for page in range(PAGES_MAX):
            query = {"since": str(since_ms), "limit": str(PAGE), "skip": str(page * PAGE), "docs": "false"}
            rows = await self.connection.page("activations", query)
            starts |= {
                row["activationId"]: int(row.get("start", since_ms))
                for row in rows
                if row.get("activationId") in wanted
            }
            if len(rows) < PAGE or len(starts) == len(wanted):
                break
        return starts

    async def _window(self, starts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """The records of many, by pages of all that started in the same time."""
        window = {"since": str(min(starts.values())), "upto": str(max(starts.values())), "docs": "true"}
        found: dict[str, dict[str, Any]] = {}
        for page in range(PAGES_MAX):
            query = {**window, "limit": str(PAGE), "skip": str(page * PAGE)}
            try:
                rows = await self.connection.page("activations", query, bytes_max=ENTITY_BYTES_MAX)
            except Oversize:  # much logging: fetch what is left one by one
                left = [one for one in starts if one not in found]
                single = await asyncio.gather(*(self._record(one) for one in left))
                return found | {row["activationId"]: row for row in single if row}
            found |= {row["activationId"]: row for row in rows if row.get("activationId") in starts}
            if len(rows) < PAGE or len(found) == len(starts):
                break
        return found

    async def _record(self, activation_id: str) -> dict[str, Any] | None:
        try:
            path = f"activations/{quote(activation_id, safe='')}"
            record = _object(await self.connection.read("", path, {}, bytes_max=RECORD_BYTES_MAX))
        except FunctionMissing:  # 404 until the record is written
            return None
        return record if record.get("activationId") == activation_id else None


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
