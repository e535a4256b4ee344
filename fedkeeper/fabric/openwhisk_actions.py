"""The OpenWhisk API's actions: deployed, read, listed, deleted, invoked.

Source: apache/openwhisk, core/controller/.../Actions.scala.
"""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric import archives
from fedkeeper.fabric.activations import now_ms
from fedkeeper.fabric.bodies import MEGABYTE, json_response
from fedkeeper.fabric.openwhisk_entities import (
    ACTIVATION_HEADER,
    PAYLOAD_MAX_BYTES,
    FullName,
    Refused,
    flag,
    page,
    parse_full_name,
    wait_ms,
)
from fedkeeper.fabric.openwhisk_exec import CODE_MAX_BYTES, SEQUENCE, read_exec, shown_exec
from fedkeeper.fabric.openwhisk_invocations import NO_COMPONENT, TOO_LONG, Invocations, http_status, wait
from fedkeeper.fabric.openwhisk_parameters import check_final
from fedkeeper.fabric.openwhisk_platform import Platform, object_body
from fedkeeper.fabric.openwhisk_puts import put_action, summary
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document

_PUT_MAX_BYTES: Final = CODE_MAX_BYTES + 3 * MEGABYTE  # code, parameters, annotations, the rest


class Actions:
    """Handlers of /namespaces/{namespace}/actions."""

    def __init__(self, platform: Platform, revisions: Revisions, invocations: Invocations) -> None:
        self._platform = platform
        self._revisions = revisions
        self._invocations = invocations

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes under `base`."""
        routes = []
        for path in (f"{base}/actions/{{name:[^/]+}}", f"{base}/actions/{{package:[^/]+}}/{{name:[^/]+}}"):
            routes += [
                web.put(path, self._put),
                web.get(path, self._get, allow_head=False),
                web.delete(path, self._delete),
                web.post(path, self._invoke),
            ]
        return [
            *routes,
            web.get(f"{base}/actions", self._list, allow_head=False),
            web.get(f"{base}/actions/", self._list, allow_head=False),
            web.get(f"{base}/actions/{{name:[^/]+}}/", self._list_package, allow_head=False),
        ]

    async def remove_all(self, documents: list[Document]) -> None:
        """Delete these actions, for whoever holds their package's lock."""
        for document in documents:
            await self._platform.store.remove("action", document.scope, document.name)
            await self._revisions.retire(document.revision)

    # --- lists

    async def _list(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        skip, limit = page(request.query, "actions")
        store = self._platform.store
        if flag(request.query, "count"):
            return json_response({"actions": max(0, await store.count("action", name.namespace) - skip)})
        found = await store.newest("action", name.namespace, skip=skip, limit=limit)
        return json_response([summary("action", document.body) for document in found])

    async def _list_package(self, request: web.Request) -> web.Response:
        caller, name = self._platform.named(request)
        await self._platform.check_package_readable(caller, name)
        skip, limit = page(request.query, "actions")
        package, _ = await self._platform.provider(name)
        found = await self._platform.in_package(package)
        if flag(request.query, "count"):
            return json_response({"actions": max(0, len(found) - skip)})
        return json_response([summary("action", document.body) for document in found[skip : skip + limit]])

    # --- one action

    async def _put(self, request: web.Request) -> web.Response:
        caller, name = self._platform.owned(request)
        overwrite = flag(request.query, "overwrite")
        await self._check_package(name)
        body = await object_body(request, _PUT_MAX_BYTES)
        sent = body.get("exec")
        execution = None if sent is None else read_exec(sent, name.namespace)
        components = _components(execution, name)
        for component in components or ():
            await self._platform.check_action_readable(caller, component)
        async with self._platform.changing(name):
            await self._check_package(name)  # again: it may have been deleted meanwhile
            old = await self._platform.find("action", name)
            if old is not None and not overwrite:
                raise Refused(409, "resource already exists")
            if components is not None:
                await self._check_components(name, components)
            entity = await self._write(name, body, execution, old)
        return json_response(entity)

    async def _write(
        self, name: FullName, body: dict[str, Any], execution: dict[str, Any] | None, old: Document | None
    ) -> dict[str, Any]:
        at_ms = now_ms()
        previous = None if old is None else await self._with_code(old)
        entity = put_action(name, body, execution, previous, bounds=self._platform.bounds, now_ms=at_ms)
        code = entity["exec"].get("code")
        revision = uuid.uuid4().hex
        if code is not None:
            try:
                await self._revisions.make(
                    revision, partial(_extract, entity["exec"], self._invocations.kind_of(entity["exec"]))
                )
            except archives.ArchiveRefused as exc:
                raise Refused(400, f"The code of the action was refused: {exc}.") from exc
        document = Document(
            kind="action", scope=name.namespace, name=name.local, updated_ms=at_ms,
            body={**entity, "exec": shown_exec(entity["exec"])},
            revision="" if code is None else revision,
            blob="" if code is None else await self._platform.store.put_blob(code.encode()),
        )  # fmt: skip
        await self._platform.store.put(document)
        if code is not None:
            self._revisions.prepare(revision, await self._invocations.expected(name, entity))
        if old is not None:
            await self._revisions.retire(old.revision)
        return entity

    async def _get(self, request: web.Request) -> web.Response:
        caller, name = self._platform.named(request)
        await self._platform.check_action_readable(caller, name)
        with_code = flag(request.query, "code", default=True)
        resolved = await self._platform.resolve(name)
        shown = await self._with_code(resolved.document) if with_code else resolved.document.body
        return json_response({**shown, "parameters": resolved.parameters})

    async def _delete(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        await self._check_package(name)
        async with self._platform.changing(name):
            document = await self._platform.get("action", name)
            entity = await self._with_code(document)
            await self.remove_all([document])
        return json_response(entity)

    async def _invoke(self, request: web.Request) -> web.Response:
        caller, name = self._platform.named(request)
        self._invocations.throttles.invoke(caller.namespace)
        blocking, only_result = flag(request.query, "blocking"), flag(request.query, "result")
        patience_ms = wait_ms(request.query)
        payload = await object_body(request, PAYLOAD_MAX_BYTES)
        resolved = await self._invocations.resolve(caller, name)
        check_final(resolved.entity, payload)
        activation = self._invocations.begin(resolved, payload, caller)
        headers = {ACTIVATION_HEADER: activation.id}
        record = None
        if blocking:
            record = await wait(activation, patience_ms)
        else:
            await activation.written()
        if record is None:
            return json_response({"activationId": activation.id}, status=202, headers=headers)
        result = record["response"]["result"]
        bare = only_result or isinstance(result, list)
        return json_response(
            result if bare else _answered(record), status=http_status(record), headers=headers
        )

    # --- rules

    async def _check_package(self, name: FullName) -> None:
        """An action may be written only where a package is, and no binding. Refused 400, 404, 409."""
        if name.package:
            package = await self._platform.get("package", FullName(name.namespace, "", name.package))
            if package.body["binding"]:
                raise Refused(400, "Operation not permitted on package binding.")

    async def _check_components(self, name: FullName, components: list[FullName]) -> None:
        """Refused 400 for none, too many, one that is missing, or a sequence in itself."""
        if not components:
            raise Refused(400, "No component specified for the sequence.")
        if await self._count(name, components) > self._platform.bounds.sequence_length:
            raise Refused(400, TOO_LONG)

    async def _count(self, sequence: FullName, components: list[FullName]) -> int:
        """How many atomic actions the components come to. Refused 400."""
        allowed = self._platform.bounds.sequence_length
        if len(components) > allowed:
            raise Refused(400, TOO_LONG)
        count = 0
        for component in components:
            try:
                resolved = await self._platform.resolve(component)
            except Refused as exc:
                if exc.status == 404 and component != sequence:
                    raise Refused(400, NO_COMPONENT) from exc
                if component != sequence:
                    raise
                resolved = None
            if resolved is None or resolved.name == sequence:
                raise Refused(400, "Sequence may not refer to itself.")
            execution = resolved.document.body["exec"]
            if execution["kind"] == SEQUENCE:
                inner = [parse_full_name(item, component.namespace) for item in execution["components"]]
                count += await self._count(sequence, inner)
            else:
                count += 1
            if count > allowed:
                return count
        return count

    async def _with_code(self, document: Document) -> dict[str, Any]:
        if not document.blob:
            return dict(document.body)
        code = (await self._platform.store.blob(document.blob)).decode()
        return {**document.body, "exec": {**document.body["exec"], "code": code}}


def _answered(record: dict[str, Any]) -> dict[str, Any]:
    """The record as a blocking call gives it: a worker's logs are not there yet, a sequence's are its own."""
    kinds = [item["value"] for item in record["annotations"] if item["key"] == "kind"]
    return record if kinds == [SEQUENCE] else {**record, "logs": []}


def _components(execution: dict[str, Any] | None, name: FullName) -> list[FullName] | None:
    """What a sequence is made of; None if it is none."""
    if execution is None or execution["kind"] != SEQUENCE:
        return None
    return [parse_full_name(component, name.namespace) for component in execution["components"]]


def _extract(execution: dict[str, Any], kind: str, folder: Path) -> None:
    code: str = execution["code"]
    if not execution["binary"]:
        archives.write_single_file(code, folder, kind)
        return
    archive = archives.decode_binary(code.strip())
    if archive[:2] == b"PK":
        archives.extract(archive, folder)
    else:  # a short text that looks like base64: the platform takes it, and no worker can start it
        folder.mkdir(mode=0o700)
