"""OpenFaaS over its gateway's REST API.

Every request is sent once. Reads that get no usable answer raise ProviderUnavailable (ask again later);
writes raise ProviderUnavailable only if nothing left this machine, else InvocationUnknown.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import SecretStr
from yarl import URL

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.errors import (
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed, Package, PlatformLimits, Progress, untold
from fedkeeper.providers.calls import Call, Calls
from fedkeeper.providers.openfaas import logs, resources
from fedkeeper.providers.openfaas.callbacks import Callbacks
from fedkeeper.providers.openfaas.gateway import NO_GATEWAY, Gateway, base_url

T = TypeVar("T")
LIST_BYTES_MAX: Final = 16 * 2**20
POLL_S: Final = (0.05, 2.0)  # first and longest pause between looks at a function; each 1.5 times the last


@dataclass(slots=True)
class OpenFaas:
    """The functions of one namespace behind one gateway. Make it with `open`."""

    cluster: str
    gateway: Gateway = field(repr=False)
    namespace: str  # empty: the gateway's own
    asynchronous: bool
    store_images: bool  # the embedded gateway takes packages in place of images
    calls: Calls = field(repr=False)
    callbacks: Callbacks = field(repr=False)
    deploy_timeout_s: float
    clock: Clock
    platform: str = "openfaas"
    known: dict[str, int] = field(default_factory=dict)  # function -> its memory in MB

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: str,
        *,
        gateway: str,
        username: str = "admin",
        password: SecretStr | None = None,
        namespace: str = "",
        tls_verify: bool = True,
        ca_file: Path | None = None,
        asynchronous: bool = True,
        callback_port: int | None = None,
        callback_host: str = "",
        store_images: bool = False,
        requests_in_flight_max: int = 32,
        calls_in_flight_max: int = 1000,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 60.0,
        deploy_timeout_s: float = 300.0,
        busy_wait_s: float = 1.0,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """A provider for `gateway` ("https://host[:port]"), closed at the end. Nothing is sent yet.

        Args:
            cluster: its name in the config.
            gateway: the gateway's address.
            username: of its basic authentication.
            password: None: it asks for none.
            namespace: of the functions; empty: the gateway's own.
            tls_verify: False is logged.
            ca_file: of the CA to trust.
            asynchronous: queue calls; else each holds a connection to its end.
            callback_port: where the queue tells how they ended; 0: any; None: only the store tells.
            callback_host: this machine as the gateway reaches it; empty: as connections to it come.
            store_images: the gateway is the embedded one, which takes packages.
            requests_in_flight_max: of the gateway's API.
            calls_in_flight_max: synchronous calls; each takes a connection until it ends.
            connect_timeout_s: for a connection.
            read_timeout_s: for an answer of the API.
            deploy_timeout_s: until a deployed function has a replica, and a removed one is gone.
            busy_wait_s: when to come back where a replica has as many requests as it takes.
            clock: tells activations' times.

        Raises ConfigError if an address, ca_file or callback_port cannot be right.
        """
        url = base_url(cluster, gateway)
        http.warn_if_plain(cluster, url)
        tls = http.tls_context(cluster, verify=tls_verify, ca_file=ca_file)
        clock = clock or SystemClock()
        login = ""
        if password is not None:
            credentials = f"{username}:{password.get_secret_value().strip()}"
            login = "Basic " + base64.b64encode(credentials.encode()).decode()
        session = http.open_session(in_flight_max=requests_in_flight_max, authorization=login, tls=tls)
        calling = http.open_session(in_flight_max=calls_in_flight_max + requests_in_flight_max, tls=tls)
        provider = cls(
            cluster=cluster,
            gateway=Gateway(
                cluster=cluster,
                url=url,
                session=session,
                calling=calling,
                slots=asyncio.Semaphore(requests_in_flight_max),
                connect_timeout_s=connect_timeout_s,
                read_timeout_s=read_timeout_s,
                busy_wait_s=busy_wait_s,
            ),
            namespace=namespace,
            asynchronous=asynchronous,
            store_images=store_images,
            calls=Calls(
                cluster,
                calling,
                in_flight_max=calls_in_flight_max,
                connect_timeout_s=connect_timeout_s,
                busy_wait_s=busy_wait_s,
                clock=clock,
            ),
            callbacks=Callbacks(cluster, clock),
            deploy_timeout_s=deploy_timeout_s,
            clock=clock,
        )
        try:
            if asynchronous and callback_port is not None:
                await provider.callbacks.open(
                    callback_host, callback_port, towards=url.host or "", towards_port=url.port or 443
                )
            yield provider
        finally:
            await provider.close()

    async def check(self) -> None:
        """Return if the gateway answers and lets this user list the namespace's functions."""
        await self._list()

    async def limits(self) -> PlatformLimits:
        """Nothing: the API does not tell them."""
        return PlatformLimits()

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        """Create or update, then wait for a replica (at most `deploy_timeout_s`)."""
        function = package.function
        name = resources.platform_name(self.cluster, function)
        found = await self._find(function)
        other = resources.deployed(found, "").details["annotations"].get(resources.NAME_NOTE) if found else ""
        if other and other != function:
            raise RequestRefused(
                self.cluster,
                function,
                f"{name} is function {other!r} already",
                hint="OpenFaaS knows no underscores: give one of the two another name",
            )
        image = package.image or await self._stored(package)
        body = resources.deployment(package, name, self.namespace, image, now_ms=self.clock.now_ms())
        self.known.pop(function, None)
        await self.gateway.send("PUT" if found else "POST", function, "system/functions", body=_json(body))
        return await self._ready(function, package.digest, image)

    async def remove(self, function: str) -> bool:
        """Delete it and wait until it is gone; False if there was none."""
        name = resources.platform_name(self.cluster, function)
        self.known.pop(function, None)
        body = {"functionName": name, **({"namespace": self.namespace} if self.namespace else {})}
        try:
            await self.gateway.send("DELETE", function, "system/functions", self._scope(), body=_json(body))
        except FunctionMissing:
            return False

        async def gone() -> bool | None:
            return True if await self._find(function) is None else None

        return await self._until(function, gone, "it is still there")

    async def list(self) -> tuple[Deployed, ...]:
        """Every function of the namespace."""
        return tuple(self._deployed(row) for row in await self._list())

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """POST to the queue, or to the function itself: then this returns when the request is written.

        The activation ID is derived from `key` and travels as X-Call-Id. The queue takes calls of functions
        that do not exist, so each function is asked for once.
        """
        try:
            body = json.dumps(payload, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise RequestRefused(self.cluster, function, f"payload of {key}: {exc}") from exc
        memory_mb = await self._memory_mb(function)
        call = Call(
            activation_id=resources.call_id(key),
            function=function,
            url=str(self._url(function)),
            body=body,
            headers={"Content-Type": "application/json", "X-Call-Id": resources.call_id(key)},
            timeout_s=timeout_s,
            memory_mb=memory_mb,
        )
        if self.asynchronous:
            return await self._queue(call)
        await self.calls.start(call)
        return call.activation_id

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """Those that were called from here and have answered, or whose end was called back. No request.

        A gateway keeps no records: after a restart, and without callbacks, only the store tells.
        """
        found = {one: self._ended(one) for one in activation_ids}
        answered = {one: ended for one, ended in found.items() if ended is not None}
        for ended in answered.values():
            if not ended.ok:
                self.known.pop(ended.function, None)  # it may be gone: ask before the next call
        return answered

    async def activation(self, activation_id: str) -> Activation | None:
        """As `ended` gives it, with what the function printed in that time."""
        ended = self._ended(activation_id)
        if ended is None:
            return None
        query = {"name": resources.platform_name(self.cluster, ended.function), **self._scope()}
        query |= {"since": logs.since(ended.start_ms), "tail": str(logs.LINES_MAX), "follow": "false"}
        try:
            answer = await self.gateway.send("GET", ended.function, "system/logs", query)
        except ProviderError:
            return ended  # no logs to be had; the rest is still worth having
        return replace(ended, logs=logs.lines(answer.body, ended))

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """One after the other: a gateway has logs of functions, not of calls."""
        found = [await self.activation(one) for one in activation_ids]
        return {one.activation_id: one for one in found if one}

    async def close(self) -> None:
        """Stop waiting for answers, give the connections back; functions go on."""
        await self.calls.close()
        await self.callbacks.close()
        await self.gateway.close()

    def _ended(self, activation_id: str) -> Activation | None:
        return self.callbacks.ended(activation_id) or self.calls.ended(activation_id)

    def _url(self, function: str, door: str = "function") -> URL:
        name = resources.platform_name(self.cluster, function)
        return self.gateway.url / door / (f"{name}.{self.namespace}" if self.namespace else name)

    def _scope(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _deployed(self, status: Mapping[str, Any]) -> Deployed:
        name = f"{status.get('name', '')}" + (f".{self.namespace}" if self.namespace else "")
        return resources.deployed(status, str(self.gateway.url / "function" / name))

    async def _queue(self, call: Call) -> str:
        """202, and nothing more is said: the outcome comes by callback or from the store."""
        headers = dict(call.headers)
        if self.callbacks.url:
            headers["X-Callback-Url"] = self.callbacks.url
            self.callbacks.expect(call)
        try:
            answer = await self.gateway.send(
                "POST",
                call.function,
                self._url(call.function, "async-function"),
                body=call.body,
                headers=headers,
                to_function=True,
            )
        except FunctionMissing as exc:  # it was there a moment ago: what is missing is the queue
            self.callbacks.forget(call.activation_id)
            self.known.pop(call.function, None)
            raise RequestRefused(
                self.cluster,
                call.function,
                exc.problem,
                status=404,
                hint="does this gateway take asynchronous calls? Else write invocation: sync",
            ) from exc
        except (ProviderUnavailable, RequestRefused):
            self.callbacks.forget(call.activation_id)
            raise
        if answer.status != 202:
            problem = f"HTTP {answer.status} to an asynchronous call, 202 was expected"
            raise InvocationUnknown(self.cluster, call.function, problem, status=answer.status)
        return call.activation_id

    async def _memory_mb(self, function: str) -> int:
        if function not in self.known:
            found = await self._find(function)
            if found is None:
                raise FunctionMissing(self.cluster, function, "no such function", status=404)
            self.known[function] = resources.memory_mb(found)
        return self.known[function]

    async def _stored(self, package: Package) -> str:
        """Bring the package to the embedded gateway: the name under which it is an image there."""
        if not self.store_images:
            raise RequestRefused(
                self.cluster,
                package.function,
                "it has no image, and a gateway runs nothing else",
                hint=f"write functions.{package.source}.openfaas.docker_image; `deploy.py --images FOLDER`"
                " writes what to build it from",
            )
        answer = await self.gateway.send(
            "POST",
            package.function,
            f"fedkeeper/images/{resources.platform_name(self.cluster, package.source)}",
            body=package.archive,
            headers={"Content-Type": "application/zip"},
            timeout_s=self.deploy_timeout_s,
        )
        return str(_object(self.gateway.plain(answer, package.function, wrote=True)).get("image", ""))

    async def _ready(self, function: str, digest: str, image: str) -> Deployed:
        async def look() -> Deployed | None:
            found = await self._find(function)
            if found is None:
                return None
            now = self._deployed(found)
            if now.digest == digest and not resources.replicas_wanted(found):
                await self._scale_up(function)
            return now if now.digest == digest and now.state == "active" else None

        why = f"no replica is available: is {image} built and pushed, and does it start?"
        return await self._until(function, look, why)

    async def _scale_up(self, function: str) -> None:
        """A function that was scaled to nothing would never be ready."""
        name = resources.platform_name(self.cluster, function)
        body = {"serviceName": name, "replicas": 1, **self._scope()}
        await self.gateway.send(
            "POST", function, f"system/scale-function/{name}", self._scope(), body=_json(body)
        )

    async def _until(self, function: str, look: Callable[[], Awaitable[T | None]], why: str) -> T:
        """What `look` finds, at last. InvocationUnknown after `deploy_timeout_s`."""
        pause_s, longest_s = POLL_S
        try:
            async with asyncio.timeout(self.deploy_timeout_s):
                while (found := await look()) is None:
                    await asyncio.sleep(pause_s)
                    pause_s = min(longest_s, pause_s * 1.5)
                return found
        except TimeoutError as exc:
            problem = f"not finished after {self.deploy_timeout_s:g} s, still going on: {why}"
            raise InvocationUnknown(self.cluster, function, problem) from exc

    async def _find(self, function: str) -> dict[str, Any] | None:
        name = resources.platform_name(self.cluster, function)
        try:
            answer = await self.gateway.send("GET", function, f"system/function/{name}", self._scope())
        except FunctionMissing:
            return None
        return _object(self.gateway.plain(answer, function, wrote=False)) or None

    async def _list(self) -> tuple[dict[str, Any], ...]:
        answer = await self.gateway.send(
            "GET", "", "system/functions", self._scope(), bytes_max=LIST_BYTES_MAX, of_function=False
        )
        rows = self.gateway.plain(answer, "", wrote=False)
        if rows is None:  # Go's empty list
            return ()
        if not isinstance(rows, list):
            raise ProviderError(self.cluster, "", "a list of functions was expected", hint=NO_GATEWAY)
        return tuple(row for row in rows if isinstance(row, dict))


def _json(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain).encode()


def _object(plain: Any) -> dict[str, Any]:
    return plain if isinstance(plain, dict) else {}
