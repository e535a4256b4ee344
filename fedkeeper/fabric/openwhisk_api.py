"""The OpenWhisk REST API: namespaces, actions, invocations, activations, limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from aiohttp import web

import fedkeeper
from fedkeeper.fabric import archives
from fedkeeper.fabric import openwhisk_entities as rules
from fedkeeper.fabric.activations import (
    APPLICATION_ERROR,
    DEVELOPER_ERROR,
    SUCCESS,
    Activation,
    Activations,
    Call,
)
from fedkeeper.fabric.bodies import (
    MEGABYTE,
    BodyMalformed,
    BodyTooLarge,
    json_response,
    parse_object,
    read_body,
)
from fedkeeper.fabric.model import PoolFull, Revision
from fedkeeper.fabric.openwhisk_entities import Bounds, Refused
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document, Query, Store

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PAYLOAD_MAX_BYTES: Final = MEGABYTE
WAIT_MAX_MS: Final = 60_000
TRANSACTION: Final[ContextVar[str]] = ContextVar("transaction", default="")
ACTIVATION_HEADER: Final = "x-openwhisk-activation-id"
NOT_FOUND: Final = "The requested resource does not exist."
_PUT_MAX_BYTES: Final = rules.CODE_MAX_BYTES + 3 * MEGABYTE  # code, parameters, annotations, the rest
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, DELETE, POST, PUT, HEAD",
    "Access-Control-Allow-Headers": (
        "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"
    ),
}


class Keys:
    """Who may use which namespace: HTTP Basic, user = UUID, password = key."""

    def __init__(self, auth: Mapping[str, str]) -> None:
        self._by_user: dict[str, tuple[str, str]] = {}
        self.replace(auth)

    def replace(self, auth: Mapping[str, str]) -> None:
        """Take namespace -> "uuid:key"."""
        self._by_user = {
            user: (key, namespace)
            for namespace, (user, _, key) in ((name, pair.partition(":")) for name, pair in auth.items())
        }

    def namespace(self, request: web.Request) -> tuple[str, str]:
        """(namespace, "uuid:key") of the caller. Refused 401."""
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        try:
            pair = base64.b64decode(value.strip(), validate=True).decode() if kind.lower() == "basic" else ""
        except (binascii.Error, ValueError):
            pair = ""
        user, _, password = pair.partition(":")
        key, namespace = self._by_user.get(user, (secrets.token_hex(), ""))
        if not namespace or not hmac.compare_digest(key.encode(), password.encode()):
            raise Refused(401, "The supplied authentication is invalid")
        return namespace, pair


class OpenWhisk:
    """Handlers of everything under /api/v1 except web actions."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        activations: Activations,
        keys: Keys,
        bounds: Bounds,
        in_flight: int,
    ) -> None:
        self.store = store
        self.activations = activations
        self.keys = keys
        self._revisions = revisions
        self._bounds = bounds
        self._in_flight = in_flight
        self._changing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        base = "/api/v1/namespaces/{namespace}"
        return [
            web.get("/api/v1", self._describe),
            web.get("/api/v1/", self._describe),
            web.get("/api/v1/namespaces", self._namespaces),
            web.get("/api/v1/namespaces/", self._namespaces),
            web.get(f"{base}/limits", self._limits),
            web.get(f"{base}/actions", self._list_actions),
            web.put(f"{base}/actions/{{name}}", self._put_action),
            web.get(f"{base}/actions/{{name}}", self._get_action),
            web.delete(f"{base}/actions/{{name}}", self._delete_action),
            web.post(f"{base}/actions/{{name}}", self._invoke),
            web.get(f"{base}/activations", self._list_activations),
            web.get(f"{base}/activations/{{id}}", self._get_activation),
            web.get(f"{base}/activations/{{id}}/{{part:logs|result}}", self._get_activation),
        ]

    async def document(self, namespace: str, name: str) -> Document:
        """The action. Refused 404."""
        found = await self.store.get("action", namespace, rules.check_name(name))
        if found is None:
            raise Refused(404, NOT_FOUND)
        return found

    async def begin(self, document: Document, arguments: Mapping[str, Any], auth: str) -> Activation:
        """Start an activation of the action with its final arguments. Refused 429."""
        entity = document.body
        wants_key = rules.annotation(entity, "provide-api-key")
        call = Call(
            namespace=document.scope,
            action=document.name,
            version=entity["version"],
            kind=entity["exec"]["kind"],
            revision=self.revision(document),
            arguments=arguments,
            transaction_id=TRANSACTION.get(),
            api_key=auth if wants_key is None or rules.truthy(wants_key) else "",
        )
        try:
            return await self.activations.start(call)
        except PoolFull as exc:
            allowed = self._in_flight
            words = f"Too many concurrent requests in flight (count: {allowed}, allowed: {allowed})."
            raise Refused(429, words) from exc

    def revision(self, document: Document) -> Revision:
        """The action's current revision, as workers know it."""
        return Revision(
            id=document.revision,
            flavour="openwhisk",
            name=f"/{document.scope}/{document.name}",
            folder=str(self._revisions.folder(document.revision)),
            entry=document.body["exec"].get("main", "main"),
            limits=rules.limits_of(document.body),
            environment=rules.environment(document.body),
        )

    # --- about the platform

    async def _describe(self, request: web.Request) -> web.Response:
        del request
        return json_response(
            {
                "description": "OpenWhisk API",
                "api_version": "1.0.0",
                "api_version_path": "v1",
                "build": f"fedkeeper {fedkeeper.__version__}",
                "buildno": fedkeeper.__version__,
                "swagger_paths": {"ui": "/docs/index.html", "api-docs": "/api-docs"},
            }
        )

    async def _namespaces(self, request: web.Request) -> web.Response:
        return json_response([self.keys.namespace(request)[0]])

    async def _limits(self, request: web.Request) -> web.Response:
        self._authorize(request)
        named = {
            "Memory": self._bounds.memory_mb,
            "Timeout": self._bounds.timeout_ms,
            "Logs": self._bounds.logs_mb,
            "Concurrency": self._bounds.concurrency,
        }
        edges = {
            f"{edge}Action{what}": bound[at]
            for what, bound in named.items()
            for at, edge in enumerate(("min", "max"))
        }
        rates = {"invocationsPerMinute": 1_000_000, "firesPerMinute": 1_000_000}
        return json_response(
            {
                **rates,
                "concurrentInvocations": self._in_flight,
                "maxParameterSize": f"{rules.PARAMETERS_MAX_BYTES} B",
                **edges,
            }
        )

    # --- actions

    async def _list_actions(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        skip, limit = rules.page(request.query, "actions")
        if rules.flag(request.query, "count"):
            return json_response({"actions": max(0, await self.store.count("action", namespace) - skip)})
        found = await self.store.newest("action", namespace, skip=skip, limit=limit)
        return json_response([rules.summary(document.body) for document in found])

    async def _put_action(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        name = rules.check_name(request.match_info["name"])
        overwrite = rules.flag(request.query, "overwrite")
        body = await _object_body(request, _PUT_MAX_BYTES)
        async with self._changing.setdefault((namespace, name), asyncio.Lock()):
            old = await self.store.get("action", namespace, name)
            if old is not None and not overwrite:
                raise Refused(409, "resource already exists")
            now_ms = time.time_ns() // 1_000_000
            previous = None if old is None else await self._with_code(old)
            entity = rules.put_action(namespace, name, body, previous, bounds=self._bounds, now_ms=now_ms)
            revision = uuid.uuid4().hex
            code: str = entity["exec"]["code"]
            try:
                await self._revisions.make(revision, partial(_extract, code, entity["exec"]["binary"]))
            except archives.ArchiveRefused as exc:
                raise Refused(400, f"The code of the action was refused: {exc}.") from exc
            stored = {
                **entity,
                "exec": {key: value for key, value in entity["exec"].items() if key != "code"},
            }
            document = Document(
                kind="action", scope=namespace, name=name, updated_ms=now_ms, body=stored, revision=revision,
                blob=await self.store.put_blob(code.encode()),
            )  # fmt: skip
            await self.store.put(document)
            self._revisions.prepare(revision)
            if old is not None:
                await self._revisions.retire(old.revision)
        return json_response(entity)

    async def _get_action(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        document = await self.document(namespace, request.match_info["name"])
        with_code = rules.flag(request.query, "code", default=True)
        return json_response(await self._with_code(document) if with_code else document.body)

    async def _delete_action(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        name = request.match_info["name"]
        async with self._changing.setdefault((namespace, name), asyncio.Lock()):
            document = await self.document(namespace, name)
            entity = await self._with_code(document)
            await self.store.remove("action", namespace, name)
            await self._revisions.retire(document.revision)
        return json_response(entity)

    async def _with_code(self, document: Document) -> dict[str, Any]:
        code = (await self.store.blob(document.blob)).decode()
        return {**document.body, "exec": {**document.body["exec"], "code": code}}

    # --- activations

    async def _invoke(self, request: web.Request) -> web.Response:
        namespace, auth = self._authorize(request)
        blocking = rules.flag(request.query, "blocking")
        only_result = rules.flag(request.query, "result")
        wait_ms = rules.number(request.query, "timeout")
        if wait_ms is not None and not 1 <= wait_ms <= WAIT_MAX_MS:
            raise Refused(400, f"Timeout must be number of milliseconds up to {WAIT_MAX_MS}.")
        payload = await _object_body(request, PAYLOAD_MAX_BYTES)
        document = await self.document(namespace, request.match_info["name"])  # nothing is awaited after this
        activation = await self.begin(document, rules.arguments(document.body, payload), auth)
        headers = {ACTIVATION_HEADER: activation.id}
        record = await wait(activation, wait_ms or WAIT_MAX_MS) if blocking else None
        if record is None:
            return json_response({"activationId": activation.id}, status=202, headers=headers)
        result = record["response"]["result"]
        bare = only_result or isinstance(result, list)
        return json_response(
            result if bare else {**record, "logs": []}, status=http_status(record), headers=headers
        )

    async def _list_activations(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        skip, limit = rules.page(request.query, "activations")
        name = request.query.get("name", "")
        query = Query(
            scope=namespace,
            name=rules.check_name(name) if name else "",
            since_ms=rules.number(request.query, "since"),
            upto_ms=rules.number(request.query, "upto"),
            skip=skip,
            limit=limit,
        )
        docs, count = rules.flag(request.query, "docs"), rules.flag(request.query, "count")
        if docs and count:
            raise Refused(400, "Parameters 'docs' and 'count' cannot be used together.")
        if count:
            return json_response({"activations": await self.store.count_activations(query)})
        return json_response(await self.store.activations(query, full=docs))

    async def _get_activation(self, request: web.Request) -> web.Response:
        namespace, _ = self._authorize(request)
        activation_id = rules.check_activation_id(request.match_info["id"])
        record = await self.store.activation(namespace, activation_id)
        if record is None:
            raise Refused(404, NOT_FOUND)
        match request.match_info.get("part"):
            case "logs":
                return json_response({"logs": record["logs"]})
            case "result":
                return json_response(record["response"])
            case _:
                return json_response(record)

    def _authorize(self, request: web.Request) -> tuple[str, str]:
        own, auth = self.keys.namespace(request)
        asked = request.match_info["namespace"]
        if asked not in {"_", own}:
            what = "/".join([asked, *filter(None, [request.match_info.get("name")])])
            raise Refused(403, f"The supplied authentication is not authorized to access '{what:.300}'.")
        return own, auth


async def wait(activation: Activation, wait_ms: int) -> dict[str, Any] | None:
    """The record if the activation ends in time; None otherwise, and it runs on in either case."""
    done, _ = await asyncio.wait({activation.ended}, timeout=wait_ms / 1000)
    return activation.ended.result() if done else None


def http_status(record: Mapping[str, Any]) -> int:
    """The HTTP status that goes with an ended activation."""
    return {SUCCESS: 200, APPLICATION_ERROR: 502, DEVELOPER_ERROR: 502}.get(record["response"]["status"], 500)


async def answer_openwhisk(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the platform's error bodies and headers, whatever the handler raises."""
    given = request.headers.get("X-Request-ID", "")
    transaction_id = given if re.fullmatch(r"[A-Za-z0-9-]{1,64}", given) else secrets.token_urlsafe(24)
    TRANSACTION.set(transaction_id)
    extra: dict[str, str] = {}
    answer: web.StreamResponse
    try:
        answer = web.Response(status=200) if request.method == "OPTIONS" else await handler(request)
    except Refused as exc:
        status, words = exc.status, exc.words
        if status == 401:
            extra["WWW-Authenticate"] = 'Basic realm="OpenWhisk"'
        answer = json_response({"error": words, "code": transaction_id}, status=status)
    except BodyTooLarge as exc:
        words = f"Request larger than allowed: {exc.nbytes} > {exc.allowed} bytes."
        answer = json_response({"error": words, "code": transaction_id}, status=413)
    except BodyMalformed as exc:
        words = f"The request content was malformed:\n{exc}"
        answer = json_response({"error": words, "code": transaction_id}, status=400)
    except web.HTTPException as exc:
        words = NOT_FOUND
        if isinstance(exc, web.HTTPMethodNotAllowed):
            words = f"HTTP method not allowed, supported methods: {', '.join(sorted(exc.allowed_methods))}"
        answer = json_response({"error": words, "code": transaction_id}, status=exc.status)
    answer.headers.update({**_CORS, **extra, "X-Request-ID": transaction_id})
    return answer


async def _object_body(request: web.Request, allowed: int) -> dict[str, Any]:
    body = await read_body(request, allowed)
    if body and request.content_type != "application/json":
        raise Refused(415, "The request's Content-Type is not supported. Expected:\napplication/json")
    return parse_object(body)


def _extract(code: str, binary: bool, folder: Path) -> None:  # noqa: FBT001 - bound by partial
    if not binary:
        archives.write_single_file(code, folder)
        return
    archive = archives.decode_binary(code)
    if archive[:2] == b"PK":
        archives.extract(archive, folder)
    else:  # a short text that looks like base64: the platform takes it, and no worker can start it
        folder.mkdir(mode=0o700)
