"""An OpenFaaS gateway's management: functions, images of our own store, logs, namespaces. Basic auth."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web

from fedkeeper.fabric import archives
from fedkeeper.fabric import openfaas_functions as rules
from fedkeeper.fabric.bodies import (
    MEGABYTE,
    BodyMalformed,
    BodyTooLarge,
    dump_json,
    json_response,
    parse_object,
    read_body,
)
from fedkeeper.fabric.model import PoolFull, Revision, Workers
from fedkeeper.fabric.openfaas_functions import Refused
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document, Store

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

USER: Final = "admin"
IMAGE_MAX_BYTES: Final = 100 * MEGABYTE
LOG_LINES_MAX: Final = 2000  # of one function, as a container's log is bounded; gone with the fabric
_LOG_LINE_MAX: Final = 4096  # characters
_BODY_MAX_BYTES: Final = 4 * MEGABYTE
_IMAGE_KEEP_MS: Final = 24 * 3600 * 1000  # of one that no function uses
_REPLICAS_MAX: Final = 100


class OpenFaas:
    """Handlers of everything under /system, and of images."""

    def __init__(self, store: Store, revisions: Revisions, workers: Workers, password: str) -> None:
        self.store = store
        self._revisions = revisions
        self._workers = workers
        self._password = password
        self._changing: dict[tuple[str, str], asyncio.Lock] = {}
        self._deploying = 0
        self.invocations: Counter[tuple[str, str]] = Counter()
        self._logs: dict[tuple[str, str], deque[tuple[str, str]]] = {}

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        return [
            web.get("/healthz", self._health),
            web.get("/system/info", self._authorized(self._info)),
            web.get("/system/functions", self._authorized(self._list)),
            web.post("/system/functions", self._authorized(self._create)),
            web.put("/system/functions", self._authorized(self._update)),
            web.delete("/system/functions", self._authorized(self._delete)),
            web.get("/system/function/{name}", self._authorized(self._get)),
            web.post("/system/scale-function/{name}", self._authorized(self._scale)),
            web.get("/system/namespaces", self._authorized(self._namespaces)),
            web.get("/system/secrets", self._authorized(self._secrets)),
            web.get("/system/logs", self._authorized(self._get_logs)),
            web.post("/fedkeeper/images/{name}", self._authorized(self._upload)),
        ]

    @property
    def running(self) -> int:
        """How many deployments have not ended."""
        return self._deploying

    def revision(self, document: Document) -> Revision:
        """The function's serving revision, as workers know it."""
        folder = str(self._revisions.folder(document.revision))
        return rules.revision(
            document.name, document.scope, document.body["deployment"], document.revision, folder
        )

    async def find(self, name: str, scope: str) -> Document | None:
        """The function, if there is one."""
        return await self.store.get("faas", scope, name)

    async def scale_up(self, document: Document) -> Document:
        """One replica of a function that has none."""
        document = replace(document, body={**document.body, "replicas": 1})
        await self.store.put(document)
        return document

    def logged(self, name: str, scope: str, lines: tuple[str, ...]) -> None:
        """Keep what a call printed: lines as the pool gives them, "time stream: text"."""
        kept = self._logs.setdefault((scope, name), deque(maxlen=LOG_LINES_MAX))
        for line in lines:
            at, _, rest = line.partition(" ")
            kept.append((at, rest.lstrip()[:_LOG_LINE_MAX]))

    # --- functions

    async def _list(self, request: web.Request) -> web.Response:
        scope = rules.namespace(request.query.get("namespace"))
        found = await self.store.after("faas", scope, name="", limit=-1)
        return json_response([self._status(document) for document in found])

    async def _get(self, request: web.Request) -> web.Response:
        scope = rules.namespace(request.query.get("namespace"))
        found = await self.find(request.match_info["name"], scope)
        if found is None:
            return web.Response(status=404)
        return json_response(self._status(found))

    async def _create(self, request: web.Request) -> web.Response:
        return await self._put(request, new=True)

    async def _update(self, request: web.Request) -> web.Response:
        return await self._put(request, new=False)

    async def _put(self, request: web.Request, *, new: bool) -> web.Response:
        body = await _object_body(request)
        rules.check(body)
        name, scope = body["service"], rules.namespace(body.get("namespace"))
        image = await self.store.get("image", "", rules.image_key(body["image"]))
        if image is None:
            raise Refused(400, f"unable to pull {body['image']}: it was not uploaded to this gateway")
        self._deploying += 1
        try:
            async with self._changing.setdefault((scope, name), asyncio.Lock()):
                old = await self.find(name, scope)
                if new and old is not None:
                    words = f'unable create Deployment: deployments.apps "{name}" already exists'
                    raise Refused(500, words)
                if not new and old is None:
                    words = f'error: deployments.apps "{name}" not found'
                    raise Refused(404, f"unable update Deployment: {name}.{scope}, {words}")
                await self._deploy(name, scope, body, image.blob, old)
        finally:
            self._deploying -= 1
        return web.Response(status=202)

    async def _deploy(
        self, name: str, scope: str, body: Mapping[str, Any], blob: str, old: Document | None
    ) -> None:
        """Start a replica of the new revision: it serves, or (as faasd answers) 400 says why it does not."""
        revision_id = uuid.uuid4().hex
        revision = rules.revision(name, scope, body, revision_id, str(self._revisions.folder(revision_id)))
        try:
            archive = await self.store.blob(blob)
            await self._revisions.make(revision_id, partial(archives.extract, archive))
            problem = await self._workers.check(revision)
        except archives.ArchiveRefused as exc:
            problem = f"the image is not one: {exc}"
        except PoolFull:
            problem = "no worker was free and the queue is full"
        if problem:
            await self._revisions.retire(revision_id)
            self.logged(
                name, scope, tuple(f"{rules.rfc3339(_now_ms())} {one}" for one in problem.splitlines())
            )
            last = " ".join(problem.splitlines()[-2:])  # the exception, and what it was that it ended
            raise Refused(400, f"the function does not start: {last}")
        now = _now_ms()
        kept = {
            "deployment": dict(body),
            "replicas": (old.body["replicas"] if old else 0) or 1,
            "created_ms": old.body["created_ms"] if old else now,
        }
        await self.store.put(
            Document(
                kind="faas",
                scope=scope,
                name=name,
                updated_ms=now,
                body=kept,
                revision=revision_id,
                blob=blob,
            )
        )
        if old is not None:
            await self._revisions.retire(old.revision)

    async def _delete(self, request: web.Request) -> web.Response:
        body = await _object_body(request)
        scope = rules.namespace(body.get("namespace") or request.query.get("namespace"))
        name = body.get("functionName")
        if not isinstance(name, str) or not name:
            return web.Response(status=400)
        async with self._changing.setdefault((scope, name), asyncio.Lock()):
            old = await self.find(name, scope)
            if old is None:
                raise Refused(404, f'deployments.apps "{name[:80]}" not found')
            await self.store.remove("faas", scope, name)
            await self._revisions.retire(old.revision)
        for kept in (self._logs, self.invocations, self._changing):
            kept.pop((scope, name), None)
        return web.Response(status=202)

    async def _scale(self, request: web.Request) -> web.Response:
        body = await _object_body(request)
        scope = rules.namespace(body.get("namespace") or request.query.get("namespace"))
        replicas = body.get("replicas", 0)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= _REPLICAS_MAX:
            raise Refused(400, f"replicas must be a number from 0 to {_REPLICAS_MAX}")
        name = request.match_info["name"]
        async with self._changing.setdefault((scope, name), asyncio.Lock()):
            found = await self.find(name, scope)
            if found is None:
                raise Refused(404, f"unable to lookup function deployment {name}")
            await self.store.put(replace(found, body={**found.body, "replicas": replicas}))
        return web.Response(status=202)

    def _status(self, document: Document) -> dict[str, Any]:
        count = self.invocations[document.scope, document.name]
        return rules.status(document.name, document.scope, document.body, invocations=count)

    # --- the rest

    async def _upload(self, request: web.Request) -> web.Response:
        """Ours alone: take a package in place of an image, and say what the image is called."""
        try:
            archive = await read_body(request, IMAGE_MAX_BYTES)
        except BodyTooLarge as exc:
            raise Refused(413, f"image of {exc}") from exc
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(archive).hexdigest())
        name = rules.image_name(request.match_info["name"], sha256)
        blob, now = await self.store.put_blob(archive), _now_ms()
        await self.store.forget("image", before_ms=now - _IMAGE_KEEP_MS)
        await self.store.put(Document(kind="image", scope="", name=name, updated_ms=now, body={}, blob=blob))
        return json_response({"image": f"{rules.REGISTRY}/{name}"})

    async def _get_logs(self, request: web.Request) -> web.Response:
        name, scope = request.query.get("name", ""), rules.namespace(request.query.get("namespace"))
        tail = request.query.get("tail", "0")
        if not tail.lstrip("-").isdecimal():
            raise Refused(422, "could not parse the log request")
        since = request.query.get("since", "")
        kept = [one for one in self._logs.get((scope, name), ()) if one[0] >= since.removesuffix("Z")]
        kept = kept[-int(tail) :] if int(tail) > 0 else kept
        lines = [
            dump_json({"name": name, "namespace": scope, "instance": "", "timestamp": at, "text": text})
            for at, text in kept
        ]
        return web.Response(
            body=b"".join(line + b"\n" for line in lines), content_type="application/x-ndjson"
        )

    async def _namespaces(self, request: web.Request) -> web.Response:
        del request
        found = await self.store.after("faas", "", name="", limit=-1)
        return json_response(sorted({rules.DEFAULT_NAMESPACE, *(document.scope for document in found)}))

    async def _secrets(self, request: web.Request) -> web.Response:
        del request
        return json_response([])

    async def _info(self, request: web.Request) -> web.Response:
        del request
        version = {"release": "fedkeeper", "sha": ""}
        provider = {"provider": "fedkeeper", "orchestration": "processes", "version": version}
        return json_response({"provider": provider, "version": version, "arch": "x86_64"})

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=200)

    def _authorized(self, handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            if not self._knows(request.headers.get("Authorization", "")):
                headers = {"WWW-Authenticate": 'Basic realm="Restricted"'}
                return web.Response(status=401, text="invalid credentials", headers=headers)
            try:
                return await handler(request)
            except Refused as exc:
                return web.Response(status=exc.status, text=f"{exc.words}\n")

        return checked

    def _knows(self, header: str) -> bool:
        try:
            user, _, password = base64.b64decode(header.removeprefix("Basic "), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        right = hmac.compare_digest(password, self._password.encode())
        return header.startswith("Basic ") and user == USER.encode() and right


async def _object_body(request: web.Request) -> dict[str, Any]:
    try:
        return parse_object(await read_body(request, _BODY_MAX_BYTES))
    except BodyTooLarge as exc:
        raise Refused(413, f"request of {exc}") from exc
    except BodyMalformed as exc:
        raise Refused(400, f"failed to unmarshal request: {exc}") from exc


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
