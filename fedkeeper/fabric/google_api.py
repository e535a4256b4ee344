"""The Cloud Functions v2 REST API: upload, create, update, delete, get, list, operations."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web

from fedkeeper.fabric import archives
from fedkeeper.fabric import google_functions as rules
from fedkeeper.fabric.bodies import (
    MEGABYTE,
    BodyMalformed,
    BodyTooLarge,
    json_response,
    parse_object,
    read_body,
)
from fedkeeper.fabric.google_functions import Refused
from fedkeeper.fabric.model import PoolFull, Revision, Workers
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document, Store
from fedkeeper.fabric.tokens import Authority, TokenRefused, bearer

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SOURCE_MAX_BYTES: Final = 100 * MEGABYTE
_BODY_MAX_BYTES: Final = 4 * MEGABYTE
_UPLOAD_LIFETIME_MS: Final = 30 * 60 * 1000
_KEEP_MS: Final = 24 * 3600 * 1000
_PARENT: Final = "/v2/projects/{project}/locations/{location}"
_PAGE_MAX: Final = 1000
_TYPES: Final = "type.googleapis.com"
_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _ABORTED, _INTERNAL = 3, 8, 10, 13  # google.rpc.Code


class CloudFunctions:
    """Handlers of everything under /v2, and of uploads. `base_url` is set when the port is known."""

    def __init__(
        self, store: Store, revisions: Revisions, workers: Workers, authority: Authority, base_url: str
    ) -> None:
        self.store = store
        self.authority = authority
        self._revisions = revisions
        self._workers = workers
        self._base_url = base_url
        self._busy: set[str] = set()  # functions that an operation is working on
        self._operations: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        functions = f"{_PARENT}/functions"
        return [
            web.post(f"{functions}:generateUploadUrl", self._generate_upload_url),
            web.put("/upload/{token}", self._upload),
            web.post(functions, self._create),
            web.get(functions, self._list),
            web.get(f"{functions}/{{function}}", self._get),
            web.patch(f"{functions}/{{function}}", self._update),
            web.delete(f"{functions}/{{function}}", self._delete),
            web.get(f"{_PARENT}/operations", self._list_operations),
            web.get(f"{_PARENT}/operations/{{operation}}", self._get_operation),
        ]

    @property
    def running(self) -> int:
        """How many operations have not ended."""
        return len(self._operations)

    def url(self, name: str) -> str:
        """Where the function `name` ("projects/p/locations/l/functions/f") is invoked."""
        _, project, _, location, _, function = name.split("/")
        return f"{self._base_url}/fn/{project}/{location}/{function}"

    def revision(self, document: Document) -> Revision:
        """The function's serving revision, as workers know it."""
        serving: Mapping[str, Any] = document.body["serving"]
        return rules.revision(serving, document.revision, str(self._revisions.folder(document.revision)))

    async def recover(self) -> None:
        """End what a fabric before us left half done: deployments fail, deletions are finished."""
        await self._forget_old()
        for document in await self.store.after("operation", "", name="", limit=-1):
            if not document.body["done"]:
                error = {"code": _ABORTED, "message": "The fabric was stopped during the operation."}
                await self.store.put(replace(document, body={**document.body, "done": True, "error": error}))
        for document in await self.store.after("function", "", name="", limit=-1):
            state = document.body["function"].get("state")
            if state == "DELETING":
                await self.store.remove("function", document.scope, document.name)
            elif state == "DEPLOYING":
                await self._settle(document, "The fabric was stopped during the deployment.")

    async def close(self) -> None:
        """Stop the operations that run; `recover` ends them at the next start."""
        for task in self._operations:
            task.cancel()
        await asyncio.gather(*self._operations, return_exceptions=True)

    # --- uploads

    async def _generate_upload_url(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        await _object_body(request)
        token, now = secrets.token_urlsafe(32), _now_ms()
        bucket, name = f"gcf-v2-uploads-{request.match_info['project']}", f"{uuid.uuid4()}.zip"
        body = {"object": f"{bucket}/{name}", "parent": parent, "expires_ms": now + _UPLOAD_LIFETIME_MS}
        await self.store.put(Document(kind="upload-url", scope="", name=token, updated_ms=now, body=body))
        return json_response(
            {
                "uploadUrl": f"{self._base_url}/upload/{token}",
                "storageSource": {"bucket": bucket, "object": name},
            }
        )

    async def _upload(self, request: web.Request) -> web.Response:
        """Take the zip; the URL is the permission, as the platform's signed URLs are. It serves once."""
        told = await self.store.get("upload-url", "", request.match_info["token"])
        if told is None or told.body["expires_ms"] < _now_ms():
            raise Refused(403, "The upload URL is not valid or has expired.")
        content = await read_body(request, SOURCE_MAX_BYTES)
        blob = await self.store.put_blob(content)
        upload = Document(
            kind="upload",
            scope=told.body["parent"],
            name=told.body["object"],
            updated_ms=_now_ms(),
            body={},
            blob=blob,
        )
        await self.store.put(upload)
        await self.store.remove("upload-url", "", told.name)
        return web.Response(status=200)

    # --- functions

    async def _create(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        function_id, body = request.query.get("functionId", ""), await _object_body(request)
        name = f"{parent}/functions/{function_id}"
        now = rules.rfc3339(_now_ms())
        function = rules.new_function(function_id, name, body, now)
        with_source = await self._source(parent, function, None)
        self._claim(name)
        try:
            if await self.store.get("function", parent, function_id) is not None:
                raise Refused(409, f"Resource '{name}' already exists.")
            document = Document(
                kind="function", scope=parent, name=function_id, updated_ms=_now_ms(),
                body={"function": {**function, "state": "DEPLOYING"}, "serving": None},
            )  # fmt: skip
            await self.store.put(document)
            return await self._operate("create", document, partial(self._deploy, document, with_source))
        except BaseException:
            self._busy.discard(name)
            raise

    async def _update(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        body = await _object_body(request)
        document = await self._document(parent, request.match_info["function"])
        function = rules.updated_function(
            document.body["function"], body, request.query.get("updateMask", "")
        )
        with_source = await self._source(parent, function, document)
        self._claim(function["name"])
        try:
            document = replace(await self._document(parent, document.name), updated_ms=_now_ms())
            changed = {"function": {**function, "state": "DEPLOYING"}, "serving": document.body["serving"]}
            document = replace(document, body=changed)
            await self.store.put(document)
            return await self._operate("update", document, partial(self._deploy, document, with_source))
        except BaseException:
            self._busy.discard(function["name"])
            raise

    async def _delete(self, request: web.Request) -> web.Response:
        document = await self._document(self._authorize(request), request.match_info["function"])
        name = document.body["function"]["name"]
        self._claim(name)
        try:
            deleting = {**document.body, "function": {**document.body["function"], "state": "DELETING"}}
            document = replace(document, body=deleting, updated_ms=_now_ms())
            await self.store.put(document)
            return await self._operate("delete", document, partial(self._destroy, document))
        except BaseException:
            self._busy.discard(name)
            raise

    async def _get(self, request: web.Request) -> web.Response:
        document = await self._document(self._authorize(request), request.match_info["function"])
        return json_response(self._shown(document))

    async def _list(self, request: web.Request) -> web.Response:
        found, token = await self._page("function", self._authorize(request), request)
        answer: dict[str, Any] = {"functions": [self._shown(document) for document in found]}
        return json_response(answer | token)

    def _shown(self, document: Document) -> dict[str, Any]:
        function = document.body["function"]
        dated = {**function, "updateTime": rules.rfc3339(document.updated_ms)}
        return rules.shown(dated, self.url(function["name"]), document.revision)

    # --- operations

    async def _get_operation(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        found = await self.store.get("operation", parent, request.match_info["operation"])
        if found is None:
            raise Refused(404, "The operation was not found.")
        return json_response(found.body)

    async def _list_operations(self, request: web.Request) -> web.Response:
        found, token = await self._page("operation", self._authorize(request), request)
        return json_response({"operations": [document.body for document in found]} | token)

    async def _operate(
        self, verb: str, document: Document, work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    ) -> web.Response:
        """Begin a long-running operation; its answer says done: false, and `work` ends it."""
        name = document.body["function"]["name"]
        operation_id = f"operation-{uuid.uuid4()}"
        metadata = {
            "@type": f"{_TYPES}/google.cloud.functions.v2.OperationMetadata",
            "createTime": rules.rfc3339(_now_ms()), "target": name, "verb": verb, "apiVersion": "v2",
        }  # fmt: skip
        body = {"name": f"{document.scope}/operations/{operation_id}", "metadata": metadata, "done": False}
        operation = Document(
            kind="operation", scope=document.scope, name=operation_id, updated_ms=_now_ms(), body=body
        )
        await self.store.put(operation)
        task = asyncio.create_task(self._finish(operation, name, work))
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        return json_response(body)

    async def _finish(
        self, operation: Document, name: str, work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    ) -> None:
        try:
            outcome = await work()
        except Exception as exc:  # noqa: BLE001 - an operation must end, whatever went wrong inside the fabric
            log.error("operation failed inside the fabric", function=name, error=repr(exc))
            outcome = {"error": {"code": _INTERNAL, "message": "The fabric could not finish the operation."}}
        finally:
            self._busy.discard(name)
        ended = {**operation.body["metadata"], "endTime": rules.rfc3339(_now_ms())}
        body = {**operation.body, "metadata": ended, "done": True, **outcome}
        await self.store.put(replace(operation, body=body, updated_ms=_now_ms()))
        await self._forget_old()

    async def _deploy(self, document: Document, blob: str) -> dict[str, Any]:
        """Build a revision from the source; if it comes up it serves, else what served before goes on."""
        function = document.body["function"]
        revision_id = uuid.uuid4().hex
        revision = rules.revision(function, revision_id, str(self._revisions.folder(revision_id)))
        code = _INVALID_ARGUMENT
        try:
            archive = await self.store.blob(blob)
            await self._revisions.make(revision_id, partial(archives.extract, archive))
            problem = await self._workers.check(revision)
        except archives.ArchiveRefused as exc:
            problem = f"Build failed: {exc}"
        except PoolFull:
            problem, code = "Build failed: no worker was free and the queue is full.", _RESOURCE_EXHAUSTED
        except Exception as exc:  # noqa: BLE001 - the function must not stay DEPLOYING for ever
            log.error("deployment failed inside the fabric", function=function["name"], error=repr(exc))
            problem = "Build failed: the fabric could not start the function."
        if problem:
            await self._revisions.retire(revision_id)
            await self._settle(document, problem)
            return {"error": {"code": code, "message": problem}}
        active = {key: value for key, value in function.items() if key != "stateMessages"} | {
            "state": "ACTIVE"
        }
        body = {"function": active, "serving": active}
        served = replace(document, body=body, revision=revision_id, blob=blob, updated_ms=_now_ms())
        await self.store.put(served)
        await self._revisions.retire(document.revision)
        typed = {"@type": f"{_TYPES}/google.cloud.functions.v2.Function", **self._shown(served)}
        return {"response": typed}

    async def _settle(self, document: Document, problem: str) -> None:
        """A deployment failed: the function is FAILED, or as it was if it has a revision that serves."""
        message = {"severity": "ERROR", "type": "DeploymentFailed", "message": problem}
        serving = document.body["serving"]
        function = serving or {**document.body["function"], "state": "FAILED"}
        body = {"function": {**function, "stateMessages": [message]}, "serving": serving}
        await self.store.put(replace(document, body=body, updated_ms=_now_ms()))

    async def _destroy(self, document: Document) -> dict[str, Any]:
        await self.store.remove("function", document.scope, document.name)
        await self._revisions.retire(document.revision)
        return {"response": {"@type": f"{_TYPES}/google.protobuf.Empty"}}

    # --- shared

    async def _forget_old(self) -> None:
        """What nobody will ask for any more: old operations, uploads and their URLs."""
        for kind in ("operation", "upload", "upload-url"):
            await self.store.forget(kind, before_ms=_now_ms() - _KEEP_MS)

    def _authorize(self, request: web.Request) -> str:
        """The parent ("projects/p/locations/l"), if the caller may work in it. Refused 401, 403."""
        project, location = request.match_info["project"], request.match_info["location"]
        try:
            caller = self.authority.api_caller(bearer(request.headers.get("Authorization")))
        except TokenRefused as exc:
            words = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            raise Refused(401, f"{words} ({exc})") from exc
        if caller.project != project:
            raise Refused(403, f"Permission denied on resource project {project[:100]}.")
        return f"projects/{project}/locations/{location}"

    async def _document(self, parent: str, function_id: str) -> Document:
        found = await self.store.get("function", parent, function_id)
        if found is None:
            raise Refused(404, f"Resource '{parent}/functions/{function_id[:100]}' was not found")
        return found

    async def _source(self, parent: str, function: Mapping[str, Any], old: Document | None) -> str:
        """sha256 of the source that the function names: an upload, or what it serves now. Refused 400."""
        source = function["buildConfig"]["source"]["storageSource"]
        serving = old.body["serving"] if old else None
        if old and serving and serving["buildConfig"]["source"]["storageSource"] == source:
            return old.blob
        place = f"{source['bucket']}/{source['object']}"
        upload = await self.store.get("upload", parent, place)
        if upload is None:
            raise Refused(400, f"Source object gs://{place[:200]} was not found: upload it first.")
        return upload.blob

    def _claim(self, name: str) -> None:
        if name in self._busy:
            raise Refused(
                409, f"Unable to queue the operation: an operation on {name} is in progress.", "ABORTED"
            )
        self._busy.add(name)

    async def _page(
        self, kind: str, parent: str, request: web.Request
    ) -> tuple[list[Document], dict[str, str]]:
        asked = request.query.get("pageSize", "0")
        size = (
            min(int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0, _PAGE_MAX) or 100
        )
        found = await self.store.after(kind, parent, name=request.query.get("pageToken", ""), limit=size + 1)
        return found[:size], {"nextPageToken": found[size - 1].name} if len(found) > size else {}


async def answer_google(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the platform's error bodies, whatever the handler raises."""
    try:
        return await handler(request)
    except Refused as exc:
        status, words, rpc_status = exc.status, exc.words, exc.rpc_status
    except BodyTooLarge as exc:
        status, words, rpc_status = 413, f"Request payload size exceeds the limit: {exc.allowed} bytes.", ""
    except BodyMalformed as exc:
        status, words, rpc_status = 400, f"Invalid JSON payload received. {exc}", ""
    except web.HTTPException as exc:
        status, words, rpc_status = exc.status, exc.reason, ""
    refused = Refused(status, words, rpc_status)
    error = {"code": status, "message": refused.words, "status": refused.rpc_status}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return json_response({"error": error}, status=status, headers=headers)


async def _object_body(request: web.Request) -> dict[str, Any]:
    return parse_object(await read_body(request, _BODY_MAX_BYTES))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
