"""The form of a keeper's journal: batches of records.

A batch is what one fsync makes durable: a header with two checksums, its records, a newline. Numbers are
little-endian. Batches are numbered from 1 in each file, and one is begun only after the one before it is on
disk. So a crash leaves at most a last batch of which bytes are missing or, after a power cut, whole sectors
read as zeros; it was never relied upon and is cut off. Any other fault is damage and is never repaired by
dropping what was acknowledged. (Commands are text: they hold no sector of zeros of their own.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fedkeeper.errors import JournalDamaged
from fedkeeper.replication.codec import UPGRADE

MAGIC: Final = b"FKB\n"
SECTOR: Final = 512  # bytes that a disk writes at once
REJOIN: Final = (
    "move the folder away: the keeper then rejoins empty and takes everything from the others, while a"
    " majority of them is healthy"
)
_HEADER: Final = struct.Struct("<4sIQQI")  # MAGIC, CRC of what follows, number, bytes of the body, its CRC
_RECORD: Final = struct.Struct("<BQQI")  # kind, index, term, bytes of data


class Kind(IntEnum):
    """Of records. None is ever given another meaning."""

    BEGIN = 1  # first of a file; index: of the snapshot that it goes on from (0: none); data: identity
    ENTRY = 2  # index, term; data: command
    CUT = 3  # the entries from index on are gone
    TERM = 4  # term; data: for whom this keeper voted in it (empty: nobody)
    COMMIT = 5  # index up to which entries were known to be committed: a hint
    IDENTITY = 6  # data


@dataclass(frozen=True, slots=True)
class Record:
    """One record, whose checksum is right."""

    kind: Kind
    index: int
    term: int
    data: bytes
    place: str  # "…/journal, batch 3 (byte 210), record 2"


def record(kind: Kind, *, index: int = 0, term: int = 0, data: bytes = b"") -> bytes:
    """The bytes of one record."""
    return _RECORD.pack(kind, index, term, len(data)) + data


def batch(number: int, records: bytes | bytearray) -> bytes:
    """The bytes of one batch."""
    body = bytes(records) + b"\n"
    tail = struct.pack("<QQI", number, len(body), zlib.crc32(body))
    return b"%b%b%b%b" % (MAGIC, struct.pack("<I", zlib.crc32(tail)), tail, body)


def read(data: bytes, name: str) -> tuple[list[Record], int]:
    """Every record of the file `name`, and how many bytes of it are whole batches: the rest is a torn one.

    Raises JournalDamaged.
    """
    records: list[Record] = []
    offset, number = 0, 0
    while offset < len(data) or number == 0:
        number += 1
        place = f"{name}, batch {number} (byte {offset})"
        body = _body(data, offset, number)
        if body is None:
            if number == 1:
                raise damaged(f"{place}: not the whole beginning of a journal")
            if _torn(data, offset, number):
                break
            raise damaged(f"{place}: the checksum is wrong")
        records.extend(_records(body, place))
        if number == 1 and (not records or records[0].kind is not Kind.BEGIN):
            raise damaged(f"{place}: a journal begins with another record")
        offset += _HEADER.size + len(body)
    return records, offset


def damaged(problem: str, *, hint: str = REJOIN) -> JournalDamaged:
    """A fault of the files, with the way out."""
    return JournalDamaged(problem, hint=hint)


def _body(data: bytes, offset: int, number: int) -> memoryview | None:
    """Of the batch at `offset`; None if it does not check."""
    size = _size(data, offset, number)
    start = offset + _HEADER.size
    if size is None or start + size > len(data):
        return None
    body = memoryview(data)[start : start + size]
    return body if zlib.crc32(body) == _HEADER.unpack_from(data, offset)[4] else None


def _size(data: bytes, offset: int, number: int, *, later: bool = False) -> int | None:
    """Bytes of the body of batch `number` (or of a later one), whose header is at `offset`."""
    if offset + _HEADER.size > len(data):
        return None
    magic, checksum, found, size, _ = _HEADER.unpack_from(data, offset)
    if magic != MAGIC or zlib.crc32(data[offset + 8 : offset + _HEADER.size]) != checksum:
        return None
    return int(size) if found == number or (later and found > number) else None


def _torn(data: bytes, offset: int, number: int) -> bool:
    """Whether the batch at `offset`, which does not check, is what a crash may leave; see the module."""
    if offset + _HEADER.size > len(data):
        return True
    size = _size(data, offset, number)
    if size is not None:
        end = offset + _HEADER.size + size
        return end > len(data) or (end == len(data) and _has_hole(data, offset))
    return _has_hole(data, offset) and not _has_batch(data, offset + 1, number)


def _has_hole(data: bytes, offset: int) -> bool:
    """A batch neither begins nor ends with a zero, so one within a part of a sector is no hole."""
    sectors = range(offset - offset % SECTOR, len(data), SECTOR)
    return any(not any(data[max(start, offset) : start + SECTOR]) for start in sectors)


def _has_batch(data: bytes, offset: int, number: int) -> bool:
    while (offset := data.find(MAGIC, offset)) >= 0:
        if _size(data, offset, number, later=True) is not None:
            return True
        offset += 1
    return False


def _records(body: memoryview, place: str) -> Iterator[Record]:
    offset, count, end = 0, 0, len(body) - 1
    while offset < end:
        count += 1
        where = f"{place}, record {count}"
        if offset + _RECORD.size > end:
            raise damaged(f"{where}: it is longer than its batch")
        kind, index, term, size = _RECORD.unpack_from(body, offset)
        offset += _RECORD.size + size
        if offset > end:
            raise damaged(f"{where}: it is longer than its batch")
        if kind not in Kind.__members__.values():
            raise damaged(f"{where}: unknown kind of record {kind}", hint=UPGRADE)
        yield Record(Kind(kind), index, term, bytes(body[offset - size : offset]), where)
