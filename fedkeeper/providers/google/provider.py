"""Google Cloud Functions (2nd generation) by its official client; functions are invoked over HTTP.

The client is synchronous: its calls run in threads of our own, each with a limit, none repeated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiohttp
import requests
import structlog
from google.api_core import exceptions as api
from google.auth import exceptions as auth_errors
from google.cloud import functions_v2 as functions
from google.protobuf import json_format  # type: ignore[import-untyped]
from yarl import URL

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.errors import (
    FunctionMissing,
    RequestRefused,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation, Deployed, Package, PlatformLimits, Progress, untold
from fedkeeper.providers.calls import REFUSED, Call, Calls
from fedkeeper.providers.google import resources
from fedkeeper.providers.google.login import IdTokens, Limits, close_client, find_credentials, open_client
from fedkeeper.providers.google.quotas import READS_PER_MINUTE, WRITES_PER_MINUTE, Pace
from fedkeeper.providers.google.uploading import upload
from fedkeeper.providers.google.waiting import Blame, Watch

T = TypeVar("T")
THREADS_MAX: Final = 32
PAGE: Final = 100
FUNCTIONS_MAX: Final = 5000  # the platform allows 1,000 per region
_log = structlog.get_logger(__name__)
# What the client, its login and its transport raise; JSON that is no message of the API is a ParseError.
_SDK_ERRORS: Final = (
    api.GoogleAPIError,
    auth_errors.GoogleAuthError,
    requests.RequestException,
    json_format.ParseError,
    ValueError,
)


class Google:
    """The functions of one region of one project. Make it with `open`."""

    platform = "google"

    def __init__(
        self,
        cluster: str,
        parent: str,
        client: Any,
        tokens: IdTokens,
        session: aiohttp.ClientSession,
        calls: Calls,
        *,
        threads: ThreadPoolExecutor,
        reads: Pace,
        writes: Pace,
        connect_timeout_s: float,
        request_timeout_s: float,
        deploy_timeout_s: float,
    ) -> None:
        self.cluster = cluster
        self._parent = parent  # projects/p/locations/l
        self._client = client
        self._tokens = tokens
        self._session = session
        self._calls = calls
        self._threads = threads
        self._reads = reads
        self._writes = writes
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._deploy_timeout_s = deploy_timeout_s
        self._known: dict[str, tuple[str, int]] = {}  # function -> (url, memory in MB)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: str,
        *,
        project: str,
        region: str,
        service_account: Mapping[str, Any] | None = None,
        anonymous: bool = False,
        api_endpoint: str = "",
        requests_in_flight_max: int = 8,
        calls_in_flight_max: int = 1000,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 60.0,
        deploy_timeout_s: float = 900.0,
        reads_per_minute: int = READS_PER_MINUTE,
        writes_per_minute: int = WRITES_PER_MINUTE,
        busy_wait_s: float = 1.0,
        clock: Clock | None = None,
    ) -> AsyncIterator[Self]:
        """A provider for `project` and `region`, closed at the end.

        Args:
            cluster: its name in the config.
            project: project ID.
            region: e.g. "europe-west3".
            service_account: the key file's JSON; None: Application Default Credentials.
            anonymous: no credentials and no ID tokens, for an emulator that asks for none.
            api_endpoint: e.g. "http://127.0.0.1:8085" for the embedded fabric; empty: Google's.
            requests_in_flight_max: of the management API; each takes a thread, 32 at most.
            calls_in_flight_max: activations; each takes a connection until it ends.
            connect_timeout_s: for a connection, to whatever is called.
            request_timeout_s: for an answer of the management API or of a token endpoint.
            deploy_timeout_s: for an upload, and for a build or a deletion.
            reads_per_minute: requests to the API that only ask (the platform's quota; 0: any number).
            writes_per_minute: those that deploy or remove.
            busy_wait_s: when to come back where as many calls as allowed are in flight.
            clock: tells activations' times, tokens' ages and the minutes of the quotas.

        Raises:
            ConfigError: the service account's JSON is not one.
            AuthenticationRefused: no Application Default Credentials.
        """
        clock = clock or SystemClock()
        if api_endpoint:
            http.warn_if_plain(cluster, URL(api_endpoint))
        threads = ThreadPoolExecutor(
            min(requests_in_flight_max, THREADS_MAX), thread_name_prefix=f"google-{cluster}"
        )
        session = http.open_session(in_flight_max=calls_in_flight_max + requests_in_flight_max)
        calls = Calls(
            cluster,
            session,
            in_flight_max=calls_in_flight_max,
            connect_timeout_s=connect_timeout_s,
            busy_wait_s=busy_wait_s,
            clock=clock,
        )
        client = tokens = None
        loop = asyncio.get_running_loop()
        try:
            credentials = await loop.run_in_executor(
                threads, partial(find_credentials, cluster, service_account, anonymous=anonymous)
            )
            limits = Limits(connect_s=connect_timeout_s, answer_s=request_timeout_s)
            client = await loop.run_in_executor(threads, open_client, credentials, api_endpoint, limits)
            tokens = IdTokens(cluster, credentials, threads, clock, limits=limits)
            yield cls(
                cluster,
                f"projects/{project}/locations/{region}",
                client,
                tokens,
                session,
                calls,
                threads=threads,
                reads=Pace(clock, per_minute=reads_per_minute),
                writes=Pace(clock, per_minute=writes_per_minute),
                connect_timeout_s=connect_timeout_s,
                request_timeout_s=request_timeout_s,
                deploy_timeout_s=deploy_timeout_s,
            )
        finally:
            await calls.close()
            await session.close()
            if client is not None:
                await loop.run_in_executor(threads, close_client, client)
            if tokens is not None:
                tokens.close()
            await asyncio.to_thread(threads.shutdown)  # every call in them has a limit

    async def check(self) -> None:
        """Return if the API answers and lets this account list the region's functions."""
        await self._list(limit=1)

    async def limits(self) -> PlatformLimits:
        """Nothing: the API does not tell them."""
        return PlatformLimits()

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        """Upload, then create or update, then wait for the build (at most `deploy_timeout_s`)."""
        function = package.function
        name = self._name(function)
        existing = await self._find(function)
        labels: Mapping[str, str] = existing.labels if existing else {}
        if existing and labels.get(resources.NAME_LABEL, function) != function:
            raise RequestRefused(
                self.cluster,
                function,
                f"{name.rpartition('/')[2]} is function {labels[resources.NAME_LABEL]!r} already",
                hint="Cloud Functions knows no underscores: give one of the two another name",
            )
        source = await self._upload(package)
        resource = resources.function_resource(package, name, source, labels)
        if existing:
            request: Any = functions.UpdateFunctionRequest(
                function=resource,
                update_mask={"paths": resources.UPDATED_FIELDS},
            )
            operation = await self._call(function, self._client.update_function, request, wrote=True)
        else:
            request = functions.CreateFunctionRequest(
                parent=self._parent, function=resource, function_id=name.rpartition("/")[2]
            )
            operation = await self._call(
                function, self._client.create_function, request, wrote=True, of_function=False
            )
        self._known.pop(function, None)
        return resources.deployed(await self._finished(function, operation, resources.build_failed, progress))

    async def remove(self, function: str) -> bool:
        """Delete it and wait until it is gone; False if there was none."""
        self._known.pop(function, None)
        request = functions.DeleteFunctionRequest(name=self._name(function))
        try:
            operation = await self._call(function, self._client.delete_function, request, wrote=True)
            await self._finished(function, operation, resources.removal_failed)
        except FunctionMissing:
            return False
        return True

    async def list(self) -> tuple[Deployed, ...]:
        """Every function of the region."""
        return tuple(resources.deployed(found) for found in await self._list(limit=FUNCTIONS_MAX))

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """POST with an ID token; returns when the request is written, see `calls`.

        The activation ID is derived from `key` and travels as Function-Execution-Id. What the platform says
        afterwards, a 401 or 404 as well, is told by `ended`.
        """
        try:
            body = json.dumps(payload, allow_nan=False).encode()
        except (TypeError, ValueError) as exc:
            raise RequestRefused(self.cluster, function, f"payload of {key}: {exc}") from exc
        url, memory_mb = await self._site(function)
        try:
            token = await self._tokens.token(url)
        except _SDK_ERRORS as exc:
            raise resources.failure(self.cluster, function, exc, wrote=False) from exc
        activation_id = resources.activation_id(key)
        await self._calls.start(
            Call(
                activation_id=activation_id,
                function=function,
                url=url,
                body=body,
                headers={
                    **({"Authorization": f"Bearer {token}"} if token else {}),
                    "Content-Type": "application/json",
                    "Function-Execution-Id": activation_id,
                },
                timeout_s=timeout_s,
                memory_mb=memory_mb,
            )
        )
        return activation_id

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """Those that were called from here and have answered; no request is made.

        The platform cannot be asked about a single execution: after a restart the earlier ones are unknown.
        """
        found = {one: self._calls.ended(one) for one in activation_ids}
        answered = {one: ended for one, ended in found.items() if ended is not None}
        for ended in answered.values():
            if ended.status in REFUSED and ended.function in self._known:
                self._tokens.forget(self._known.pop(ended.function)[0])
        return answered

    async def activation(self, activation_id: str) -> Activation | None:
        """As `ended` gives it: logs are in Cloud Logging, which is another service."""
        return self._calls.ended(activation_id)

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """One after the other: no request is made for any."""
        found = [await self.activation(one) for one in activation_ids]
        return {one.activation_id: one for one in found if one}

    async def close(self) -> None:
        """Stop waiting for answers and give their connections back; `open` does the rest at its end."""
        await self._calls.close()
        await self._session.close()

    def _name(self, function: str) -> str:
        return f"{self._parent}/functions/{resources.platform_name(self.cluster, function)}"

    async def _site(self, function: str) -> tuple[str, int]:
        """URL and memory of a function; asked for once."""
        if function not in self._known:
            found = await self._find(function)
            url = resources.address(found) if found else ""
            if not found or not url:
                problem = "no such function" if not found else "it has no URL: its build failed"
                raise FunctionMissing(self.cluster, function, problem, status=404)
            self._known[function] = (url, resources.memory_mb(found.service_config.available_memory))
        return self._known[function]

    async def _find(self, function: str) -> Any | None:
        request = functions.GetFunctionRequest(name=self._name(function))
        try:
            return await self._call(function, self._client.get_function, request, wrote=False)
        except FunctionMissing:
            return None

    async def _list(self, *, limit: int) -> Collection[Any]:
        def fetch(request: Any, **options: Any) -> Collection[Any]:
            found = []
            for one in self._client.list_functions(request, **options):
                found.append(one)
                if len(found) >= limit:
                    break
            return found

        request = functions.ListFunctionsRequest(parent=self._parent, page_size=min(limit, PAGE))
        return await self._call("", fetch, request, wrote=False, of_function=False)

    async def _upload(self, package: Package) -> Any:
        """Put the archive where the API says; how the function names it."""
        request = functions.GenerateUploadUrlRequest(
            parent=self._parent, environment=functions.Environment.GEN_2
        )
        place = await self._call(
            package.function, self._client.generate_upload_url, request, wrote=False, of_function=False
        )
        timeout = aiohttp.ClientTimeout(total=self._deploy_timeout_s, sock_connect=self._connect_timeout_s)
        await upload(self.cluster, package, place.upload_url, self._session, timeout)
        return place.storage_source

    async def _finished(
        self, function: str, operation: Any, blame: Blame, progress: Progress = untold
    ) -> Any:
        """The operation's result. Raises what `blame` makes of its error."""

        async def look(done: Callable[[], T]) -> T:
            try:
                await self._reads.turn()
                return await self._run(done)
            except _SDK_ERRORS as exc:
                raise resources.failure(self.cluster, function, exc, wrote=False, of_function=False) from exc

        watch = Watch(self.cluster, function, operation, look, blame=blame, progress=progress)
        return await watch.result(timeout_s=self._deploy_timeout_s)

    async def _call(
        self, function: str, method: Callable[..., T], request: Any, *, wrote: bool, of_function: bool = True
    ) -> T:
        """One call of the API, sent once, when the quota allows it. The client has no limits of its own."""
        waited_s = await (self._writes if wrote else self._reads).turn()
        if waited_s > 1:
            _log.info("quota waited for", cluster=self.cluster, function=function, waited_s=round(waited_s))
        try:
            return await self._run(lambda: method(request, retry=None, timeout=self._request_timeout_s))
        except _SDK_ERRORS as exc:
            raise resources.failure(
                self.cluster, function, exc, wrote=wrote, of_function=of_function
            ) from exc

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
