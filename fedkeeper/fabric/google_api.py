"""The Cloud Functions v2 REST API: functions, and what belongs to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric import google_functions as rules
from fedkeeper.fabric import google_iam as iam
from fedkeeper.fabric import google_lists as lists
from fedkeeper.fabric.bodies import MEGABYTE, json_response, parse_object, read_body
from fedkeeper.fabric.google_deployments import Deployments
from fedkeeper.fabric.google_operations import TYPES, Operation, Operations, now_ms
from fedkeeper.fabric.google_rpc import Refused, unauthenticated
from fedkeeper.fabric.google_sources import KINDS, Sources
from fedkeeper.fabric.model import Revision, Workers
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document, Store
from fedkeeper.fabric.tokens import Authority, TokenRefused, bearer

_BODY_MAX_BYTES: Final = 10 * MEGABYTE
_KEEP_MS: Final = 24 * 3600 * 1000
_PARENT: Final = "/v2/projects/{project}/locations/{location}"


class CloudFunctions:
    """Handlers of everything under /v2, and of sources. `base_url` is set when the port is known."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        workers: Workers,
        authority: Authority,
        base_url: str,
        *,
        logs: Path,
    ) -> None:
        self.store = store
        self.authority = authority
        self._base_url = base_url
        self._revisions = revisions
        self._sources = Sources(store, base_url)
        self._operations = Operations(store)
        self._deployments = Deployments(store, revisions, workers, self.shown, logs)

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        functions = f"{_PARENT}/functions"
        function = f"{functions}/{{function:[^/:]+}}"
        return [
            *self._sources.routes(),
            web.post(f"{functions}:generateUploadUrl", self._generate_upload_url),
            web.post(functions, self._create),
            web.get(functions, self._list),
            web.get(function, self._get),
            web.patch(function, self._update),
            web.delete(function, self._delete),
            web.post(f"{function}:generateDownloadUrl", self._generate_download_url),
            web.get(f"{function}:getIamPolicy", self._get_policy),
            web.post(f"{function}:setIamPolicy", self._set_policy),
            web.post(f"{function}:testIamPermissions", self._test_permissions),
            web.get(f"{_PARENT}/runtimes", self._list_runtimes),
            web.get(f"{_PARENT}/operations", self._list_operations),
            web.get(f"{_PARENT}/operations/{{operation}}", self._get_operation),
            web.get("/v2/projects/{project}/locations", self._list_locations),
        ]

    @property
    def running(self) -> int:
        """How many operations have not ended."""
        return self._operations.running

    def url(self, name: str) -> str:
        """Where the function `name` ("projects/p/locations/l/functions/f") is invoked."""
        _, project, _, location, _, function = name.split("/")
        return f"{self._base_url}/fn/{project}/{location}/{function}"

    def revision(self, document: Document) -> Revision:
        """The function's serving revision, as workers know it."""
        serving, number = document.body["serving"], document.body.get("number", 1)
        folder = self._revisions.folder(document.revision)
        return rules.revision(serving, document.revision, number, str(folder))

    async def policy(self, document: Document) -> Mapping[str, Any] | None:
        """The function's IAM policy; None if none was set."""
        found = await self.store.get("iam", document.scope, document.name)
        return found.body if found else None

    async def recover(self) -> None:
        """End what a fabric before us left half done: deployments fail, deletions are finished."""
        await self._forget_old()
        await self._operations.recover()
        await self._deployments.recover()

    async def close(self) -> None:
        """Stop the operations that run; `recover` ends them at the next start."""
        await self._operations.close()

    # --- functions

    async def _create(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        function_id, body = request.query.get("functionId", ""), await _object_body(request)
        name, now = f"{parent}/functions/{function_id}", now_ms()
        function = rules.new_function(function_id, name, body, rules.rfc3339(now))
        blob, function = await self._source(parent, function, None)
        self._operations.claim(name)
        try:
            if await self.store.get("function", parent, function_id) is not None:
                raise Refused("ALREADY_EXISTS", f"Resource '{name}' already exists.")
            deploying = {"function": {**function, "state": "DEPLOYING"}, "serving": None, "number": 0}
            document = Document(
                kind="function", scope=parent, name=function_id, updated_ms=now, body=deploying
            )
            return await self._deploy("create", document, blob)
        except BaseException:
            self._operations.give_up(name)
            raise

    async def _update(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        body, name = await _object_body(request), f"{parent}/functions/{request.match_info['function']}"
        self._operations.claim(name)  # before it is read: nothing changes it from here on
        try:
            document = await self._document(request, parent)
            function = rules.updated_function(
                document.body["function"], body, request.query.get("updateMask", "")
            )
            blob, function = await self._source(parent, function, document)
            deploying = {**document.body, "function": {**function, "state": "DEPLOYING"}}
            return await self._deploy("update", replace(document, body=deploying, updated_ms=now_ms()), blob)
        except BaseException:
            self._operations.give_up(name)
            raise

    async def _deploy(self, verb: str, document: Document, blob: str) -> web.Response:
        document, build = self._deployments.named(document)
        await self.store.put(document)
        work = partial(self._deployments.deploy, document=document, blob=blob)
        return json_response(await self._operations.begin(verb, document.body["function"], work, build=build))

    async def _delete(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        name = f"{parent}/functions/{request.match_info['function']}"
        self._operations.claim(name)
        try:
            document = await self._document(request, parent)
            deleting = {**document.body, "function": {**document.body["function"], "state": "DELETING"}}
            document = replace(document, body=deleting, updated_ms=now_ms())
            await self.store.put(document)
            work = partial(self._destroy, document=document)
            return json_response(await self._operations.begin("delete", document.body["function"], work))
        except BaseException:
            self._operations.give_up(name)
            raise

    async def _destroy(self, operation: Operation, *, document: Document) -> Mapping[str, Any]:
        await operation.stage("SERVICE", "IN_PROGRESS")
        await self._deployments.destroy(document)
        await operation.stage("SERVICE", "COMPLETE")
        return {"response": {"@type": f"{TYPES}/google.protobuf.Empty"}}

    async def _get(self, request: web.Request) -> web.Response:
        return json_response(self.shown(await self._document(request, self._authorize(request))))

    async def _list(self, request: web.Request) -> web.Response:
        found = await self._all("function", request)
        return _page_of("functions", map(self.shown, found), request)

    def shown(self, document: Document) -> dict[str, Any]:
        """The function as the API answers it."""
        function = document.body["function"]
        dated = {**function, "updateTime": rules.rfc3339(document.updated_ms)}
        return rules.shown(
            dated, self.url(function["name"]), document.revision, document.body.get("number", 1)
        )

    # --- sources

    async def _generate_upload_url(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        await _object_body(request)
        await self._forget_old()
        return json_response(await self._sources.upload_url(parent))

    async def _generate_download_url(self, request: web.Request) -> web.Response:
        document = await self._document(request, self._authorize(request))
        if not document.blob:
            raise Refused("FAILED_PRECONDITION", "The function has no source that was deployed.")
        return json_response(await self._sources.download_url(document))

    async def _source(
        self, parent: str, function: dict[str, Any], old: Document | None
    ) -> tuple[str, dict[str, Any]]:
        """sha256 of the source that the function names (an upload, or what it serves), and it resolved."""
        build = function["buildConfig"]
        source = build["source"]["storageSource"]
        serving = old.body["serving"] if old else None
        if old and serving and serving["buildConfig"]["source"]["storageSource"] == source:
            return old.blob, function
        blob, generation = await self._sources.blob(parent, source)
        resolved = {**source, "generation": generation}
        whole = {
            **build,
            "source": {"storageSource": resolved},
            "sourceProvenance": {"resolvedStorageSource": resolved},
        }
        return blob, {**function, "buildConfig": whole}

    # --- IAM

    async def _get_policy(self, request: web.Request) -> web.Response:
        document = await self._document(request, self._authorize(request))
        return json_response(iam.shown(await self.policy(document)))

    async def _set_policy(self, request: web.Request) -> web.Response:
        document = await self._document(request, self._authorize(request))
        body = await _object_body(request)
        policy = iam.new_policy(await self.policy(document), body)
        await self.store.put(
            Document(kind="iam", scope=document.scope, name=document.name, updated_ms=now_ms(), body=policy)
        )
        return json_response(iam.shown(policy))

    async def _test_permissions(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        held = iam.held(await _object_body(request))
        found = await self.store.get("function", parent, request.match_info["function"])
        return json_response({"permissions": held} if held and found else {})

    # --- operations, runtimes, locations

    async def _get_operation(self, request: web.Request) -> web.Response:
        parent = self._authorize(request)
        found = await self.store.get("operation", parent, request.match_info["operation"])
        if found is None:
            raise Refused("NOT_FOUND", "The operation was not found.")
        return json_response(found.body)

    async def _list_operations(self, request: web.Request) -> web.Response:
        found = await self._all("operation", request)
        return _page_of("operations", (document.body for document in found), request)

    async def _list_runtimes(self, request: web.Request) -> web.Response:
        self._authorize(request)
        fits = lists.parse_filter(request.query.get("filter", ""))
        return json_response({"runtimes": [runtime for runtime in rules.runtimes() if fits(runtime)]})

    async def _list_locations(self, request: web.Request) -> web.Response:
        """Those that are in use: every name is a location here."""
        project = self._project(request)
        everything = await self.store.after("function", "", name="", limit=-1)
        mine = {one.scope.split("/")[3] for one in everything if one.scope.split("/")[1] == project}
        places = (
            {
                "name": f"projects/{project}/locations/{location}",
                "locationId": location,
                "labels": {"cloud.googleapis.com/region": location},
                "metadata": {
                    "@type": f"{TYPES}/google.cloud.functions.v2.LocationMetadata",
                    "environments": ["GEN_2"],
                },
            }
            for location in mine
        )
        return _page_of("locations", places, request)

    # --- shared

    async def _all(self, kind: str, request: web.Request) -> list[Document]:
        """All documents of a location, or with the location `-` of all of them."""
        parent = self._authorize(request)
        if not parent.endswith("/locations/-"):
            return await self.store.after(kind, parent, name="", limit=-1)
        everything = await self.store.after(kind, "", name="", limit=-1)
        return [document for document in everything if document.scope.startswith(parent[:-1])]

    async def _forget_old(self) -> None:
        """What nobody will ask for any more: old operations, uploads and their URLs."""
        for kind in ("operation", *KINDS):
            await self.store.forget(kind, before_ms=now_ms() - _KEEP_MS)

    def _authorize(self, request: web.Request) -> str:
        """The parent ("projects/p/locations/l"), if the caller may work in it. Refused."""
        return f"projects/{self._project(request)}/locations/{request.match_info['location']}"

    def _project(self, request: web.Request) -> str:
        project = request.match_info["project"]
        try:
            caller = self.authority.api_caller(bearer(request.headers.get("Authorization")))
        except TokenRefused as exc:
            raise unauthenticated(str(exc)) from exc
        if caller.project != project:
            raise Refused("PERMISSION_DENIED", f"Permission denied on resource project {project[:100]}.")
        return project

    async def _document(self, request: web.Request, parent: str) -> Document:
        function_id = request.match_info["function"]
        found = await self.store.get("function", parent, function_id)
        if found is None:
            raise Refused("NOT_FOUND", f"Resource '{parent}/functions/{function_id[:100]}' was not found")
        return found


def _page_of(key: str, items: Iterable[lists.Item], request: web.Request) -> web.Response:
    found, token = lists.page(items, request.query, scope=request.path)
    return json_response({key: found} | ({"nextPageToken": token} if token else {}))


async def _object_body(request: web.Request) -> dict[str, Any]:
    return parse_object(await read_body(request, _BODY_MAX_BYTES))
