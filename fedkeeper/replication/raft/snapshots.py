"""A snapshot: the state after an entry, with what a log needs to go on from there. One file, one checksum."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fedkeeper.errors import JournalDamaged
from fedkeeper.replication.codec import UPGRADE
from fedkeeper.replication.raft.records import REJOIN

VERSION: Final = 1
KIND: Final = "RaftSnapshot"

Entry = tuple[bytes, int, int]  # command, index, term: as PySyncObj has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`state` is that after `last`, which is committed; `previous` is the entry before it."""

    cluster: str
    previous: Entry
    last: Entry
    members: Mapping[str, str]  # name -> address, after `last`
    state: bytes

    @property
    def index(self) -> int:
        """Of the last entry in it."""
        return self.last[1]

    @property
    def term(self) -> int:
        """Of the last entry in it."""
        return self.last[2]

    def encode(self) -> bytes:
        """The bytes of a file, or of what is sent."""
        meta = _Meta(
            kind=KIND,
            v=VERSION,
            cluster=self.cluster,
            previous=(self.previous[1], self.previous[2], len(self.previous[0])),
            last=(self.last[1], self.last[2], len(self.last[0])),
            members=dict(self.members),
            state=len(self.state),
        )
        parts = (msgspec.json.encode(meta), b"\n", self.previous[0], self.last[0], self.state)
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return b"".join((b"%08x " % checksum, *parts))

    @staticmethod
    def decode(data: bytes, place: str) -> Snapshot:
        """As `encode` made it. Raises JournalDamaged, which names `place` and the fault."""
        if data[:9] != b"%08x " % zlib.crc32(memoryview(data)[9:]):
            raise JournalDamaged(f"{place}: the checksum is wrong", hint=REJOIN)
        end = data.find(b"\n", 9) + 1
        try:
            version = msgspec.json.decode(data[9:end], type=_Version)
            if (version.kind, version.v) != (KIND, VERSION):
                raise JournalDamaged(f"{place}: {version.kind} version {version.v}", hint=UPGRADE)
            meta = msgspec.json.decode(data[9:end], type=_Meta)
        except msgspec.MsgspecError as exc:
            raise JournalDamaged(f"{place}: {exc}", hint=UPGRADE) from exc
        (previous, previous_term, size), (last, last_term, last_size) = meta.previous, meta.last
        middle = end + size + last_size
        if last != previous + 1 or previous_term > last_term or middle + meta.state != len(data):
            raise JournalDamaged(f"{place}: it contradicts itself", hint=REJOIN)
        return Snapshot(
            cluster=meta.cluster,
            previous=(data[end : end + size], previous, previous_term),
            last=(data[end + size : middle], last, last_term),
            members=meta.members,
            state=data[middle:],
        )


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Version(msgspec.Struct):
    kind: str
    v: int


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    v: int
    cluster: str
    previous: tuple[_Count, _Count, _Count]  # index, term, bytes of the command
    last: tuple[_Count, _Count, _Count]
    members: dict[str, str]
    state: _Count  # bytes
