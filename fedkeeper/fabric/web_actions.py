"""OpenWhisk web actions: public HTTP endpoints of actions that are annotated `web-export`.

Source: apache/openwhisk, core/controller/.../WebActions.scala and docs/webactions.md.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric import openwhisk_entities as rules
from fedkeeper.fabric.activations import APPLICATION_ERROR, SUCCESS
from fedkeeper.fabric.bodies import json_response, parse_json, read_body
from fedkeeper.fabric.openwhisk_api import (
    ACTIVATION_HEADER,
    NOT_FOUND,
    PAYLOAD_MAX_BYTES,
    WAIT_MAX_MS,
    OpenWhisk,
    wait,
)
from fedkeeper.fabric.openwhisk_entities import Refused
from fedkeeper.fabric.store import Document

_MEDIA: Final = {
    "json": "application/json",
    "html": "text/html",
    "text": "text/plain",
    "svg": "image/svg+xml",
}
_PROCESSING: Final = "There was an error processing your request."


class WebActions:
    """Handlers of /api/v1/web."""

    def __init__(self, openwhisk: OpenWhisk) -> None:
        self._openwhisk = openwhisk

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        base = "/api/v1/web/{namespace}/default/{name}"
        return [web.route("*", base, self._serve), web.route("*", base + "/{rest:.*}", self._serve)]

    async def _serve(self, request: web.Request) -> web.Response:
        name, dot, extension = request.match_info["name"].rpartition(".")
        if not dot or extension not in {*_MEDIA, "http"}:
            name, extension = request.match_info["name"], "http"
        document = await self._exported(request, name)
        arguments = await self._arguments(request, document.body)
        document = await self._exported(request, name)  # again: nothing may be awaited before it is used
        activation = await self._openwhisk.begin(document, arguments, "")
        record = await wait(activation, WAIT_MAX_MS)
        if record is None:
            raise Refused(202, "Response not yet ready.")
        response = record["response"]
        if response["status"] not in {SUCCESS, APPLICATION_ERROR}:
            raise Refused(400, _PROCESSING)
        result = response["result"] if response["success"] else response["result"]["error"]
        answer = (
            _http(result)
            if extension == "http"
            else _typed(extension, result, failed=not response["success"])
        )
        answer.headers[ACTIVATION_HEADER] = record["activationId"]
        return answer

    async def _exported(self, request: web.Request, name: str) -> Document:
        document = await self._openwhisk.document(request.match_info["namespace"], name)
        if not rules.truthy(rules.annotation(document.body, "web-export")):
            raise Refused(404, NOT_FOUND)
        required = rules.annotation(document.body, "require-whisk-auth")
        if required is True:
            self._openwhisk.keys.namespace(request)
        elif rules.truthy(required):
            given = request.headers.get("X-Require-Whisk-Auth", "")
            if not hmac.compare_digest(str(required).encode(), given.encode()):
                raise Refused(401, "The supplied authentication is invalid")
        return document

    async def _arguments(self, request: web.Request, entity: Mapping[str, Any]) -> dict[str, Any]:
        body = await read_body(request, PAYLOAD_MAX_BYTES)
        given: dict[str, Any] = dict(request.query)
        if body and request.content_type == "application/json":
            value = parse_json(body)
            given |= value if isinstance(value, dict) else {"__ow_body": value}
        elif body:
            text = request.content_type.startswith("text/")
            given["__ow_body"] = body.decode(errors="replace") if text else base64.b64encode(body).decode()
        own = {item["key"] for item in entity["parameters"]}
        if any(key.startswith("__ow_") and key != "__ow_body" for key in given) or (
            rules.truthy(rules.annotation(entity, "final")) and own & given.keys()
        ):
            raise Refused(400, "Request defines parameters that are not allowed (e.g., reserved properties).")
        rest = request.match_info.get("rest")
        context = {
            "__ow_method": request.method.lower(),
            "__ow_headers": {key.lower(): value for key, value in request.headers.items()},
            "__ow_path": "" if rest is None else f"/{rest}",
        }
        return rules.arguments(entity, given | context)


def _typed(extension: str, result: Any, *, failed: bool) -> web.Response:
    media = _MEDIA[extension]
    if extension == "json":
        if not isinstance(result, (dict, list)):
            raise Refused(400, f"Response is not valid '{media}'.")
        return json_response(result)
    shown = result if failed else result.get(extension) if isinstance(result, dict) else None
    if shown is None:
        raise Refused(404, "The requested property was not found.")
    if isinstance(shown, (dict, list)) and extension != "text":
        raise Refused(400, f"Response is not valid '{media}'.")
    text = shown if isinstance(shown, str) else json.dumps(shown)
    return web.Response(text=text, content_type=media, charset="utf-8")


def _http(result: Any) -> web.Response:
    """`{statusCode, headers, body}` as HTTP; what is no such object becomes the body."""
    if not isinstance(result, dict):
        return (
            json_response(result)
            if isinstance(result, list)
            else web.Response(text=str(result), content_type="text/html")
        )
    body, headers = result.get("body"), result.get("headers") or {}
    status = result.get("statusCode", 204 if body in (None, "") else 200)
    if (
        not isinstance(headers, dict)
        or isinstance(status, bool)
        or not isinstance(status, int)
        or not 200 <= status < 600
    ):
        raise Refused(400, "Response is not valid 'message/http'.")
    flat = [
        (str(key), str(item))
        for key, value in headers.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    if any(bad in text for pair in flat for text in pair for bad in "\r\n\0"):
        raise Refused(400, "Response is not valid 'message/http'.")
    kind = next((value for key, value in flat if key.lower() == "content-type"), "")
    if isinstance(body, (dict, list)):
        content, kind = json.dumps(body).encode(), kind or "application/json"
    elif (
        isinstance(body, str)
        and kind
        and not kind.startswith(("text/", "application/json", "application/xml"))
    ):
        try:
            content = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            content = body.encode()
    else:
        content, kind = ("" if body is None else str(body)).encode(), kind or "text/html; charset=utf-8"
    answer = web.Response(status=status, body=content)
    for key, value in flat:
        if key.lower() not in {"content-type", "content-length", "transfer-encoding", "connection"}:
            answer.headers.add(key, value)
    answer.headers["Content-Type"] = kind
    return answer
