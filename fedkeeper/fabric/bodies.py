"""Reading what callers send, before anything is believed of it: bounded in bytes, depth and time."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric import payloads

MEGABYTE: Final = 1024 * 1024
DEPTH_MAX: Final = 200  # levels of nesting; deeper JSON would exhaust the stack of whoever handles it


class BodyTooLarge(Exception):
    """The body has `nbytes` (as far as it was read, or as it was announced), of `allowed`."""

    def __init__(self, nbytes: int, allowed: int) -> None:
        super().__init__(f"{nbytes} > {allowed} bytes")
        self.nbytes = nbytes
        self.allowed = allowed


class BodyMalformed(Exception):
    """The body is not the JSON that was expected."""


async def read_body(request: web.Request, allowed: int) -> bytes:
    """The request's body, within the bounds of `payloads`.

    Raises:
        BodyTooLarge: nothing more than `allowed` + one chunk was read.
        BodyMalformed: it did not arrive in time.
        PayloadsFull: what other requests sent takes up all the room.
    """
    announced = request.content_length
    if announced is not None and announced > allowed:
        raise BodyTooLarge(announced, allowed)
    if request.content.is_eof():  # it came with its head: there is nothing to wait for
        body = request.content.read_nowait()
        if len(body) > allowed:
            raise BodyTooLarge(len(body), allowed)
        payloads.current().arrived(len(body))
        return body
    chunks: list[bytes] = []
    nbytes = 0
    payload = payloads.current()
    try:
        async with payload.arriving():
            async for chunk in request.content.iter_any():
                nbytes += len(chunk)
                if nbytes > allowed:
                    raise BodyTooLarge(nbytes, allowed)
                payload.arrived(len(chunk))
                chunks.append(chunk)
    except TimeoutError as exc:
        raise BodyMalformed("the body did not arrive in time") from exc
    return b"".join(chunks)


def parse_json(text: bytes) -> Any:
    """The value of strict JSON: no NaN or infinity, no name twice in an object, no depth bomb.

    Raises:
        BodyMalformed: says what is wrong, without repeating the text.
    """
    try:
        value = _DECODER.decode(text.decode(json.detect_encoding(text), "surrogatepass"))
    except RecursionError as exc:
        raise BodyMalformed(f"nested deeper than {DEPTH_MAX} levels") from exc
    except (ValueError, UnicodeDecodeError) as exc:
        raise BodyMalformed(str(exc)) from exc
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and _deeper_than(value, DEPTH_MAX):
        raise BodyMalformed(f"nested deeper than {DEPTH_MAX} levels")
    return value


def parse_object(text: bytes) -> dict[str, Any]:
    """Like `parse_json`, for a body that must be an object; an empty body is an empty object."""
    value = parse_json(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise BodyMalformed("Object expected")
    return value


def dump_json(value: object) -> bytes:
    """Compact JSON. Raises ValueError for NaN or infinity, TypeError for what JSON has no form of."""
    return _ENCODER.encode(value).encode()


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer with `value` as its body."""
    return web.Response(
        body=dump_json(value),
        status=status,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    level: list[Any] = [value]  # all values at one depth
    for _ in range(levels):
        inner = [item.values() if isinstance(item, dict) else item for item in level if _is_container(item)]
        level = [item for items in inner for item in items]
    return any(_is_container(item) for item in level)


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list))


# Made once: json.dumps and json.loads would make one for each call.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite)
