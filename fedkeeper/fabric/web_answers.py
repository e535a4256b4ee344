"""What a web action's result is as an HTTP answer. Pure.

Source: apache/openwhisk, core/controller/.../WebActions.scala (resultAsHttp, resultAsJson …).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric.archives import is_binary
from fedkeeper.fabric.bodies import json_response
from fedkeeper.fabric.openwhisk_entities import Refused

_MEDIA: Final = {
    "json": "application/json",
    "html": "text/html",
    "text": "text/plain",
    "svg": "image/svg+xml",
}
EXTENSIONS: Final = frozenset({*_MEDIA, "http"})
_MEDIA_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:\s*;.*)?\Z", re.ASCII)
_TEXTUAL: Final = frozenset(
    {"application/javascript", "application/xml", "application/xhtml+xml", "image/svg+xml"}
)
_FRAMING: Final = frozenset({"content-type", "content-length", "transfer-encoding", "connection"})
_NO_HTTP: Final = "Response is not valid 'message/http'."
_MISFIT: Final = "Response type in header did not match generated content type."


def answer(extension: str, result: Any) -> web.Response:
    """The result as what the path's extension asks for. Refused 400, 404."""
    if extension == "http":
        return _http(result)
    media = _MEDIA[extension]
    if extension == "json":
        if not isinstance(result, (dict, list)):
            raise Refused(400, f"Response is not valid '{media}'.")
        return json_response(result)
    found = result
    if isinstance(result, dict):
        if extension == "text" and not {"body", "text"} & result.keys():
            raise Refused(404, "Response does not include requested property.")
        found = result.get("body", result.get(extension))
    if extension == "text" and not isinstance(found, str):
        found = json.dumps(found, indent=2 if isinstance(found, (dict, list)) else None)
    if not isinstance(found, str):
        raise Refused(400, f"Response is not valid '{media}'.")
    made = web.Response(body=found.encode())
    made.headers["Content-Type"] = media if extension == "svg" else f"{media}; charset=UTF-8"
    return made


def _http(result: Any) -> web.Response:
    """`{statusCode, headers, body}` as HTTP. Refused 400 for what is no such object."""
    if not isinstance(result, dict):
        raise Refused(400, _NO_HTTP)
    headers = _headers(result.get("headers"))
    status = _status(result.get("statusCode"))
    body = result.get("body")
    declared = next((value for key, value in headers if key.lower() == "content-type"), None)
    if body is None or body == "":
        made = web.Response(status=status or 204)
    else:
        content, kind = _content(body, declared)
        made = web.Response(status=status or 200, body=content)
        made.headers["Content-Type"] = kind
    for key, value in headers:
        if key.lower() not in _FRAMING:
            made.headers.add(key, value)
    return made


def _content(body: Any, declared: str | None) -> tuple[bytes, str]:
    kind = declared or ("text/html" if isinstance(body, str) else "application/json")
    if not _MEDIA_TYPE.match(kind):
        raise Refused(400, "Response did not specify a known content-type.")
    media = kind.partition(";")[0].strip().lower()
    is_json = media == "application/json" or media.endswith("+json")
    if not isinstance(body, str):
        if not is_json:
            raise Refused(400, _MISFIT)
        return json.dumps(body, ensure_ascii=False).encode(), kind
    textual = is_json or media.startswith("text/") or media in _TEXTUAL
    if textual and not (is_json and is_binary(body)):
        named = kind if "charset" in kind.lower() or is_json else f"{kind}; charset=UTF-8"
        return body.encode(), named
    try:
        return base64.b64decode(body, validate=True), kind
    except (binascii.Error, ValueError) as exc:
        raise Refused(400, _MISFIT) from exc


def _status(sent: Any) -> int | None:
    """The status code of a result, None if it names none. Refused 400."""
    if isinstance(sent, str) and re.fullmatch(r"[0-9]{3}", sent):
        sent = int(sent)
    if sent is not None and (isinstance(sent, bool) or not isinstance(sent, int) or not 200 <= sent < 600):
        raise Refused(400, _NO_HTTP)
    return sent


def _headers(sent: Any) -> list[tuple[str, str]]:
    """The headers of a result. Refused 400, also for what would end a header line."""
    if sent is None:
        return []
    if not isinstance(sent, dict):
        raise Refused(400, _NO_HTTP)
    flat: list[tuple[str, str]] = []
    for key, value in sent.items():
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, (str, bool, int, float)):
                raise Refused(400, _NO_HTTP)
            flat.append((key, str(item).lower() if isinstance(item, bool) else str(item)))
    if any(bad in text for pair in flat for text in pair for bad in "\r\n\0"):
        raise Refused(400, _NO_HTTP)
    return flat
