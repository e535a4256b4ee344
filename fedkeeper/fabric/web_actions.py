"""OpenWhisk web actions: public HTTP endpoints of actions that are annotated `web-export`.

Source: apache/openwhisk, core/controller/.../WebActions.scala and docs/webactions.md.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from fedkeeper.fabric.bodies import BodyMalformed, parse_json, read_body
from fedkeeper.fabric.openwhisk_entities import (
    ACTIVATION_HEADER,
    NOT_ALLOWED,
    NOT_FOUND,
    PAYLOAD_MAX_BYTES,
    WAIT_MAX_MS,
    FullName,
    Refused,
    annotation,
    check_name,
)
from fedkeeper.fabric.openwhisk_invocations import Invocations, wait
from fedkeeper.fabric.openwhisk_platform import ANSWER_HEADERS, Caller, Platform, Resolved
from fedkeeper.fabric.records import APPLICATION_ERROR, SUCCESS
from fedkeeper.fabric.web_answers import EXTENSIONS, answer

_METHODS: Final = ("OPTIONS", "GET", "DELETE", "POST", "PUT", "HEAD", "PATCH")
_RESERVED: Final = frozenset(
    f"__ow_{what}" for what in ("method", "headers", "path", "user", "query", "body")
)
_HEADERS: Final = "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"


class WebActions:
    """Handlers of /api/v1/web."""

    def __init__(self, platform: Platform, invocations: Invocations) -> None:
        self._platform = platform
        self._invocations = invocations

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        base = "/api/v1/web/{namespace:[^/]+}/{package:[^/]+}/{name:[^/]+}"
        return [
            web.route(method, path, self._serve, **({"allow_head": False} if method == "GET" else {}))
            for path in (base, base + "{rest:/.*}")
            for method in _METHODS
        ]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        headers = ANSWER_HEADERS.get()
        headers.clear()
        name, extension = _split(request.match_info["name"])
        owner, resolved = await self._exported(request, name)
        self._invocations.throttles.invoke(owner.namespace)
        entity = resolved.entity
        own_options = annotation(entity, "web-custom-options") is True
        if not own_options:
            headers |= _cors(request)
            if request.method == "OPTIONS":
                return web.Response(status=200)
        caller = self._platform.keys.known(request)
        if not (own_options and request.method == "OPTIONS") and not _admitted(entity, request, caller):
            words = "Authentication is possible but has failed or not yet been provided."
            raise Refused(401, words)
        body = await read_body(request, PAYLOAD_MAX_BYTES)
        arguments = _arguments(request, body, entity, caller)
        _, resolved = await self._exported(request, name)  # again: nothing may be awaited before it is used
        activation = self._invocations.begin(resolved, arguments, owner)
        headers[ACTIVATION_HEADER] = activation.id
        record = await wait(activation, WAIT_MAX_MS)
        if record is None:
            raise Refused(202, "Response not yet ready.")
        response = record["response"]
        if response["status"] not in {SUCCESS, APPLICATION_ERROR}:
            raise Refused(400, "There was an error processing your request.")
        if not isinstance(response["result"], dict):
            raise Refused(500, "There was an internal server error.")  # as the platform does with a list
        return answer(extension, response["result"] if response["success"] else response["result"]["error"])

    async def _exported(self, request: web.Request, name: str) -> tuple[Caller, Resolved]:
        """The action and the owner of its namespace, in whose name it runs. Refused 404."""
        namespace, package = request.match_info["namespace"], request.match_info["package"]
        owner = self._platform.keys.owner(namespace)
        if owner is None:
            raise Refused(404, NOT_FOUND)
        full_name = FullName(namespace, "" if package == "default" else package, name)
        try:
            for part in filter(None, (full_name.package, name)):
                check_name(part)
            resolved = await self._platform.resolve(full_name)
        except Refused as exc:
            raise Refused(404, NOT_FOUND) from exc
        if annotation(resolved.document.body, "web-export") is not True:
            raise Refused(404, NOT_FOUND)
        return owner, resolved


def _split(text: str) -> tuple[str, str]:
    """The action's name, and the extension that says what of its result is answered."""
    name, dot, extension = text.rpartition(".")
    return (name, extension) if dot and extension in EXTENSIONS else (text, "http")


def _cors(request: web.Request) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": ", ".join(_METHODS),
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", _HEADERS),
    }


def _admitted(entity: Mapping[str, Any], request: web.Request, caller: Caller | None) -> bool:
    """Whether the annotation `require-whisk-auth`, if there is one, lets the request through."""
    if all(item["key"] != "require-whisk-auth" for item in entity["annotations"]):
        return True
    required = annotation(entity, "require-whisk-auth")
    if isinstance(required, bool):
        return caller is not None or not required
    if not isinstance(required, (str, int, float)):
        return False
    given = request.headers.get("X-Require-Whisk-Auth")
    return given is not None and hmac.compare_digest(str(required).encode(), given.encode())


def _arguments(
    request: web.Request, body: bytes, entity: Mapping[str, Any], caller: Caller | None
) -> dict[str, Any]:
    """What the action learns of the request. Refused 400 for what it may not be told by the caller."""
    raw = annotation(entity, "raw-http") is True
    content = _content(request, body, raw=raw)
    given: dict[str, Any] = {} if raw else dict(request.query)
    context = {
        "__ow_method": request.method.lower(),
        "__ow_headers": {key.lower(): value for key, value in request.headers.items()},
        "__ow_path": request.match_info.get("rest", ""),
        **({} if caller is None else {"__ow_user": caller.namespace}),
    }
    if raw:
        query = request.rel_url.raw_query_string
        return {**context, "__ow_query": query, "__ow_body": "" if content is None else content}
    if isinstance(content, dict):
        given |= content
    final = annotation(entity, "final") is True
    own = {item["key"] for item in entity["parameters"] if item["value"] is not None} if final else set()
    if given.keys() & (_RESERVED | own):
        raise Refused(400, NOT_ALLOWED)
    return context | given | ({} if content is None or isinstance(content, dict) else {"__ow_body": content})


def _content(request: web.Request, body: bytes, *, raw: bool) -> Any:
    """The body as a JSON value, as text, or in base64; None if there is none."""
    if not body:
        return None
    kind = request.content_type
    is_json = kind == "application/json" or kind.endswith("+json")
    if is_json and not raw:
        return parse_json(body)
    if kind == "application/x-www-form-urlencoded" and not raw:
        try:
            return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=10_000))
        except ValueError as exc:
            raise BodyMalformed(f"the form cannot be read: {exc}") from exc
    text = kind.startswith("text/") or kind in {"application/xml", "application/x-www-form-urlencoded"}
    return body.decode(errors="replace") if text else base64.b64encode(body).decode()
