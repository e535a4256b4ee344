"""Routes of the users' dictionary."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from aiohttp import web

from fedkeeper.core.kv import NAME_CHARS_MAX
from fedkeeper.core.model import DeleteValue, Entry, PutValue, State
from fedkeeper.errors import ApiError, NotThere, Rejected
from fedkeeper.keeper.api.answers import reply
from fedkeeper.keeper.api.call import Call, choice, number
from fedkeeper.keeper.api.cluster import Cluster
from fedkeeper.keeper.api.quick import quick
from fedkeeper.keeper.api.schemas import Put
from fedkeeper.keeper.api.streams import Streams

PAGE: Final = 1000  # names, by default
PAGE_MAX: Final = 10_000
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
PIECE_BYTES: Final = 64 * 1024


class Dictionary:
    """Handlers. Values stay the JSON that they came as: nothing here reads them."""

    def __init__(
        self, cluster: Cluster, streams: Streams, *, value_bytes_max: int, total_bytes_max: int
    ) -> None:
        self._cluster = cluster
        self._streams = streams
        self._value_bytes_max = value_bytes_max
        self._total_bytes_max = total_bytes_max
        self._sorted: tuple[Mapping[str, Entry], list[str]] = ({}, [])

    async def get(self, call: Call) -> web.StreamResponse:
        """The value and its version; of the leader unless a stale one will do."""
        name = _name(call.name)
        self._cluster.reads.add()
        entry = (await self._state(call, call.query("consistency"))).kv.get(name)
        if entry is None:
            raise NotThere(f"no entry {name!r}", status=404)
        return quick(b'{"value":%b,"version":%d}' % (entry.value.encode(), entry.version))

    async def put(self, call: Call) -> web.StreamResponse:
        """Set the value, once for each `request`."""
        name = _name(call.name)
        await self._cluster.lead(call)
        body = await call.body(Put)
        value = bytes(body.value)
        if len(value) > self._value_bytes_max:
            raise ApiError(
                f"the value of {name!r} has {len(value)} bytes, {self._value_bytes_max} are taken", status=413
            )
        try:
            text = value.decode()
        except UnicodeDecodeError as exc:
            raise ApiError("the value is no UTF-8", status=400) from exc
        command = PutValue(
            name=name,
            value=text,
            expected=_version(body.expected, "expected"),
            request=_request(body.request),
            fence=body.fence,
            fence_version=_version(body.fence_version, "fence_version") or 0,
            total_bytes_max=self._total_bytes_max,
            at_ms=self._cluster.clock.now_ms(),
        )
        return await self._write(command, call)

    async def delete(self, call: Call) -> web.StreamResponse:
        """Delete it, once for each `request`."""
        name = _name(call.name)
        fields = call.query("expected", "request", "fence", "fence_version")
        expected = number(fields, "expected", default=-1)
        command = DeleteValue(
            name=name,
            expected=None if expected < 0 else expected,
            request=_request(fields.get("request", "")),
            fence=fields.get("fence", ""),
            fence_version=number(fields, "fence_version", default=0),
            at_ms=self._cluster.clock.now_ms(),
        )
        await self._cluster.lead(call)
        return await self._write(command, call)

    async def names(self, call: Call) -> web.StreamResponse:
        """Names, or entries, in pages or whole; each answer is of one moment."""
        fields = call.query("consistency", "prefix", "after", "limit", "values", "whole")
        prefix, after = fields.get("prefix", ""), fields.get("after", "")
        limit = number(fields, "limit", default=PAGE, least=1, most=PAGE_MAX)
        values = choice(fields, "values", "false", "true") == "true"
        whole = choice(fields, "whole", "false", "true") == "true"
        self._cluster.reads.add()
        state = await self._state(call, fields)
        names = self._in_order(state.kv)
        first = max(bisect.bisect_left(names, prefix), bisect.bisect_right(names, after) if after else 0)
        last = _end(names, first, prefix)
        page = names[first:last] if whole else _page(names[first:last], state.kv, limit, values=values)
        following = page[-1] if page and first + len(page) < last else None
        pieces = _pieces(page, state, following, values=values)
        if whole:
            return await self._streams.send(call, "application/json", pieces)
        return reply(b"".join(pieces))

    async def _state(self, call: Call, fields: Mapping[str, str]) -> State:
        if choice(fields, "consistency", "linearizable", "stale") == "stale":
            return self._cluster.log.state
        return await self._cluster.read(call)

    async def _write(self, command: PutValue | DeleteValue, call: Call) -> web.StreamResponse:
        applied = await self._cluster.propose(command, call)
        self._cluster.writes.add()
        answer = applied.state.answered.get(command.request) if command.request else None
        rejected = answer.rejected if answer is not None else applied.rejected
        if rejected:
            gone = isinstance(command, DeleteValue) and command.expected is None and not command.fence
            if gone and command.name not in applied.state.kv:
                raise NotThere(rejected, status=404)
            raise Rejected(rejected, status=409, hint="read it again, then decide")
        return quick(b'{"version":%d}' % (answer.version if answer else applied.state.kv_version))

    def _in_order(self, kv: Mapping[str, Entry]) -> list[str]:
        if self._sorted[0] is not kv:
            self._sorted = (kv, sorted(kv))
        return self._sorted[1]


def _name(name: str) -> str:
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise ApiError(f"a name has {len(name)} characters, 1 to {NAME_CHARS_MAX} are possible", status=400)
    return name


def _request(request: str) -> str:
    if len(request) > NAME_CHARS_MAX:
        raise ApiError(f"request is longer than {NAME_CHARS_MAX} characters", status=400)
    return request


def _version(version: int | None, key: str) -> int | None:
    if version is not None and not 0 <= version <= 2**53:
        raise ApiError(f"{key} is {version}, a version is from 0 to 2**53", status=400)
    return version


def _end(names: list[str], first: int, prefix: str) -> int:
    """Where the names with this prefix end, which begin at `first` or before."""
    if not prefix:
        return len(names)
    return bisect.bisect_right(names, prefix, lo=first, key=lambda name: name[: len(prefix)])


def _page(names: list[str], kv: Mapping[str, Entry], limit: int, *, values: bool) -> list[str]:
    page: list[str] = []
    room = PAGE_BYTES_MAX
    for name in names[:limit]:
        room -= len(name) + (len(kv[name].value) if values else 0)
        if room < 0 and page:
            break
        page.append(name)
    return page


def _pieces(names: list[str], state: State, following: str | None, *, values: bool) -> Iterator[bytes]:
    """The JSON of Names or Entries, in pieces of moderate size."""
    piece = bytearray(b'{"entries":[' if values else b'{"names":[')
    for index, name in enumerate(names):
        piece += b"," if index else b""
        text = msgspec.json.encode(name)
        if values:
            entry = state.kv[name]
            piece += b'{"name":%b,"value":%b,"version":%d}' % (text, entry.value.encode(), entry.version)
        else:
            piece += text
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    piece += b'],"next":%b,"version":%d}' % (msgspec.json.encode(following), state.kv_version)
    yield bytes(piece)
