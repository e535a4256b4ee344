"""One request, and what handlers need to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import web

from fedkeeper.errors import ApiError, KeeperBusy
from fedkeeper.keeper.api.schemas import Body

B = TypeVar("B", bound=Body)

BODIES_MAX: Final = 4  # that many of the largest size are in memory at a time
FIELDS_MAX: Final = 20


class Bodies:
    """Reads bodies, within a bound for each and for all of them."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._held = 0

    async def read(self, request: web.BaseRequest, deadline: float) -> bytes:
        """The body. Raises ApiError: 408, 411, 413, 415; KeeperBusy."""
        headers = request.headers
        kind = headers.get("Content-Type", "")
        if kind != "application/json" and kind.partition(";")[0].strip().lower() != "application/json":
            raise ApiError("the body must be JSON, with Content-Type: application/json", status=415)
        if "Content-Encoding" in headers:
            raise ApiError("compressed bodies are not taken", status=415)
        length = int(headers.get("Content-Length", "-1"))
        if length < 0:
            raise ApiError("the body's length must be given with Content-Length", status=411)
        if length > self.bytes_max:
            raise ApiError(f"the body has {length} bytes, {self.bytes_max} are taken", status=413)
        if self._held + length > BODIES_MAX * self.bytes_max:
            raise KeeperBusy("too many large bodies at once")
        self._held += length
        try:
            if "Expect" in headers:
                await _go_on(request)
            if request.content.is_eof():  # it is all here, as it is with nearly every write
                return request.content.read_nowait()
            async with asyncio.timeout_at(deadline):
                return await request.read()
        except TimeoutError as exc:
            raise ApiError("the body did not arrive in time", status=408) from exc
        finally:
            self._held -= length


async def _go_on(request: web.BaseRequest) -> None:
    if request.headers["Expect"].lower() != "100-continue":
        raise ApiError("Expect: 100-continue is the only expectation that is known", status=417)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # it is not the answer


class Call:
    """A request that may be answered: it was let in, and its route is known."""

    __slots__ = ("_bodies", "_query", "deadline", "name", "raw_path", "request")

    def __init__(
        self, request: web.BaseRequest, raw_path: str, query: str, name: str, deadline: float, bodies: Bodies
    ) -> None:
        self.request = request
        self.raw_path = raw_path  # with its query, as it came
        self.name = name  # what stands for {run} or {name} in the path, decoded
        self.deadline = deadline  # of the loop's clock
        self._query = query
        self._bodies = bodies

    async def body(self, kind: type[B]) -> B:
        """The body as `kind`. Raises ApiError, which names the key that does not fit."""
        data = await self._bodies.read(self.request, self.deadline)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ApiError(f"the body is not a {kind.__name__}: {exc}", status=400) from exc

    def query(self, *known: str) -> dict[str, str]:
        """The query's fields. Raises ApiError for others than those that are known here, and for bad ones."""
        if not self._query:
            return {}
        try:
            pairs = parse_qsl(
                self._query,
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=FIELDS_MAX,
            )
        except ValueError as exc:
            raise ApiError(f"the query cannot be read: {exc}", status=400) from exc
        for key, _ in pairs:
            if key not in known:
                raise ApiError(
                    f"unknown query field {key[:100]!r}", status=400, hint=f"known here: {', '.join(known)}"
                )
        return dict(pairs)


def decoded(raw: str) -> str:
    """Part of a path, its percent-encoding undone. Raises ApiError if it is no UTF-8."""
    if "%" not in raw and raw.isascii():
        return raw
    try:
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ApiError("the path is not percent-encoded UTF-8", status=400) from exc


def number(fields: Mapping[str, str], key: str, *, default: int, least: int = 0, most: int = 2**53) -> int:
    """A whole number of the query. Raises ApiError, which names the field."""
    text = fields.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ApiError(f"{key} is {text[:100]!r}, must be a whole number from {least} to {most}", status=400)
    return int(text)


def choice(fields: Mapping[str, str], key: str, *values: str) -> str:
    """One of `values`, by default the first. Raises ApiError, which names the field."""
    value = fields.get(key, values[0])
    if value not in values:
        raise ApiError(f"{key} is {value[:100]!r}, must be {' or '.join(values)}", status=400)
    return value


def fields_of(kind: type[Any]) -> set[str]:
    """The names of a dataclass's fields."""
    return set(kind.__dataclass_fields__)
