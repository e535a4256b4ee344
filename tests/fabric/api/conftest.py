"""A fabric front over workers that run Python in this process: the APIs' tests stay fast and exact."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import importlib.util
import io
import json
import time
import traceback
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from google.auth.credentials import CredentialsWithRegionalAccessBoundary as Boundary

from fedkeeper.fabric.credentials import Credentials, make_credentials
from fedkeeper.fabric.front import Front, FrontSettings, listen, open_front
from fedkeeper.fabric.model import HttpRequest, HttpResponse, PoolFull, Ran, Revision

HELLO = "def main(args):\n    return {'hello': args.get('name', 'nobody'), 'args': args}\n"


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def zipped(**files: str) -> bytes:
    """A zip; `main__py` names main.py."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        for name, text in files.items():
            bundle.writestr(name.replace("__py", ".py").replace("init.py", "__main__.py"), text)
    return content.getvalue()


class InProcessWorkers:
    """`Workers` without processes. Functions run in threads; `gate` holds OpenWhisk activations back."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.contexts: list[Mapping[str, str]] = []
        self.revisions: list[Revision] = []
        self.retired: list[str] = []
        self.prepared: list[Path] = []
        self.expected: list[Revision] = []
        self.requests: list[HttpRequest] = []
        self.full = False
        self._warm: dict[str, ModuleType] = {}

    def _load(self, revision: Revision, file: str) -> tuple[ModuleType, bool]:
        if revision.id in self._warm:
            return self._warm[revision.id], False
        spec = importlib.util.spec_from_file_location(f"action_{revision.id}", Path(revision.folder) / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._warm[revision.id] = module
        return module, True

    async def run(
        self, revision: Revision, activation_id: str, arguments: Mapping[str, Any], context: Mapping[str, str]
    ) -> Ran:
        if self.full:
            raise PoolFull
        self.contexts.append({**context, "activation_id": activation_id})
        self.revisions.append(revision)
        await self.gate.wait()
        start = now_ms()
        cold, status, result = False, "success", None
        logs: tuple[str, ...] = ("2026-11-21T21:28:00.463142Z    stdout: hi",)
        try:
            module, cold = self._load(revision, "__main__.py")
            result = await asyncio.to_thread(getattr(module, revision.entry), copy.deepcopy(arguments))
        except FileNotFoundError:
            status = "action developer error"
            words = "The action failed to generate or locate a binary. See logs for details."
            result = {"error": words}
        except Exception as exc:  # noqa: BLE001 - whatever an action raises is its result
            logs += (traceback.format_exc(),)
            status, result = "application error", {"error": f"An error has occurred: {exc}"}
        return Ran(
            status=status, result=result, logs=logs, start_ms=start, end_ms=now_ms(), wait_ms=0,
            init_ms=3 if cold else None,
        )  # fmt: skip

    async def serve(self, revision: Revision, request: HttpRequest) -> HttpResponse:
        if self.full:
            raise PoolFull
        self.requests.append(request)
        self.revisions.append(revision)
        await self.gate.wait()
        module, _ = self._load(revision, "main.py")
        try:
            value = await asyncio.to_thread(getattr(module, revision.entry), request)
            status, body = value if isinstance(value, tuple) else (200, value)
        except Exception as exc:  # noqa: BLE001 - as the functions framework
            status, body = 500, str(exc)
        ran = Ran(
            status="success", result={}, logs=("log line",), start_ms=now_ms(), end_ms=now_ms(), wait_ms=0,
            init_ms=None,
        )  # fmt: skip
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return HttpResponse(status=status, headers=headers, body=content, ran=ran)

    async def check(self, revision: Revision) -> str:
        await self.gate.wait()
        try:
            module, _ = self._load(revision, "main.py")
        except Exception as exc:  # noqa: BLE001 - whatever the import raises fails the build
            return f"Build failed: {exc}"
        return "" if hasattr(module, revision.entry) else f"function {revision.entry!r} is not defined"

    async def prepare(self, folder: Path) -> None:
        self.prepared.append(folder)

    def expect(self, revision: Revision) -> None:
        self.expected.append(revision)

    async def retire(self, revision_id: str, *, wait: bool = False) -> None:
        del wait
        self.retired.append(revision_id)
        self._warm.pop(revision_id, None)

    def stats(self) -> Mapping[str, int]:
        return {"workers": len(self._warm)}

    async def close(self) -> None:
        self._warm.clear()


@dataclass
class Fabric:
    """A front that serves, and a client of its OpenWhisk side (namespace `guest`)."""

    front: Front
    workers: InProcessWorkers
    credentials: Credentials
    folder: Path
    http: aiohttp.ClientSession = field(repr=False)

    @property
    def url(self) -> str:
        return self.front.url

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        auth: str | None = "",
        data: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """An OpenWhisk call under /api/v1/namespaces/_ (or of a full path), as `guest` unless `auth` says."""
        pair = self.credentials.openwhisk["guest"] if auth == "" else auth
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if pair is not None:
            sent["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        content = data if data is not None else None if body is None else json.dumps(body).encode()
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        url = self.url + (path if path.startswith("/") else f"/api/v1/namespaces/_/{path}")
        stream = None if content is None else io.BytesIO(content)
        skip = ["Content-Type"] if content is None else []  # as most clients do when they send no body
        async with self.http.request(
            method, url, data=stream, headers=sent, skip_auto_headers=skip
        ) as answer:
            text = await answer.read()
            value = json.loads(text) if answer.content_type == "application/json" else text.decode()
            return Answer(answer.status, value, dict(answer.headers))

    async def put(
        self, name: str, code: str | bytes = HELLO, *, overwrite: bool = False, **more: Any
    ) -> Answer:
        """PUT an action of this code."""
        text = base64.b64encode(code).decode() if isinstance(code, bytes) else code
        body = {"exec": {"kind": "python:3", "code": text}, **more}
        return await self.call("PUT", f"actions/{name}?overwrite={overwrite}", body)

    async def ended(self, activation_id: str) -> dict[str, Any]:
        """The record of an activation, polled for."""
        for _ in range(500):
            answer = await self.call("GET", f"activations/{activation_id}")
            if answer.status == 200:
                return answer.body
            await asyncio.sleep(0.01)
        raise AssertionError(f"{activation_id} did not end")


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str]


@pytest.fixture(autouse=True)
def _stay_on_this_machine(monkeypatch):
    """google-auth asks iamcredentials.googleapis.com about every service account, in the background."""
    monkeypatch.setattr(
        Boundary, "_is_regional_access_boundary_lookup_required", lambda _: False, raising=False
    )


OpenFabric = Callable[..., contextlib.AbstractAsyncContextManager[Fabric]]


@pytest.fixture(scope="session")
def made_credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RSA keys take a while: made once."""
    folder = tmp_path_factory.mktemp("credentials")
    make_credentials(
        folder, namespaces=["guest", "other"], projects=["demo", "elsewhere"], url="http://unused"
    )
    return folder / "credentials.json"


@pytest.fixture
def open_fabric(tmp_path: Path, made_credentials: Path) -> OpenFabric:
    """Opens the fabric of this test's folder, as often as wanted."""
    return opener(tmp_path / "fabric", made_credentials)


@pytest.fixture(scope="module")
def open_fabric_of_module(tmp_path_factory: pytest.TempPathFactory, made_credentials: Path) -> OpenFabric:
    """Opens the fabric of a folder that the module's tests share."""
    return opener(tmp_path_factory.mktemp("module") / "fabric", made_credentials)


def opener(folder: Path, made_credentials: Path) -> OpenFabric:
    """Opens the fabric of `folder`, with credentials that were made before."""
    folder.mkdir(mode=0o700)
    (folder / "credentials.json").write_bytes(made_credentials.read_bytes())

    @asynccontextmanager
    async def open_(settings: FrontSettings | None = None) -> AsyncIterator[Fabric]:
        workers = InProcessWorkers()
        with listen(0, fallback=False) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            credentials = make_credentials(folder, namespaces=[], projects=[], url=url)
            async with (
                open_front(folder, workers, credentials, listener, settings=settings) as front,
                aiohttp.ClientSession() as http,
            ):
                yield Fabric(front, workers, credentials, folder, http)

    return open_


@pytest.fixture
async def fabric(open_fabric: OpenFabric) -> AsyncIterator[Fabric]:
    """An open one."""
    async with open_fabric() as fabric:
        yield fabric


@pytest.fixture
def caller(fabric: Fabric) -> Iterator[Any]:
    """The project's own service account."""
    from tests.fabric.api.google import Caller

    caller = Caller(fabric)
    yield caller
    caller.close()
