"""The bytes of objects in MongoDB, written and read in pieces, with little in memory at a time.

In GridFS' format (github.com/mongodb/specifications, source/gridfs), but not by its driver: that one gathers
48 MB before it writes, and takes 16 MB at a time when it reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any, Final

from bson import ObjectId
from bson.errors import BSONError
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import PyMongoError

from fedkeeper.errors import ObjectDamaged, ObjectMissing
from fedkeeper.runtime import mongo
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.tensors import describe

CHUNK_BYTES: Final = mongo.CHUNK_BYTES
WRITTEN_AT_ONCE: Final = 8  # chunks in one message, each of which waits for the disk
READ_AT_ONCE: Final = 4
DIGEST_BYTES: Final = 32
REPLACED_MAX: Final = 5  # times, while it is being read

_Document = dict[str, Any]


class Blobs:
    """A GridFS bucket."""

    def __init__(self, database: Database[_Document], bucket: str) -> None:
        self._files = database[f"{bucket}.files"]
        self._chunks = database[f"{bucket}.chunks"]
        self._indexed = False

    def write(self, name: str, pieces: Iterable[bytes], *, whole: bool = False) -> _Document:
        """Store the bytes; what the manifest says of them.

        That is `sha256`, `nbytes`, and either the bytes themselves (`data`) or `blob`. `blocks` has the
        sha256 of each chunk, so that a part can be checked alone; it is left out of what is only read as a
        `whole`, since hashing costs more than storing. Durable when it returns.
        """
        blob, total, digests, nbytes = ObjectId(), sha256(), bytearray(), 0
        batch: list[_Document] = []
        for number, chunk in enumerate(_in_chunks(pieces)):
            if len(batch) == WRITTEN_AT_ONCE:
                self._insert(batch)
                batch = []
            total.update(chunk)
            if number == 0:
                digests += total.digest()
            elif not whole:
                digests += sha256(chunk).digest()
            nbytes += len(chunk)
            batch.append({"_id": ObjectId(), "files_id": blob, "n": number, "data": chunk})
        known = {"sha256": total.hexdigest(), "nbytes": nbytes}
        if nbytes <= mongo.INLINE_BYTES_MAX:
            return known | {"data": batch[0]["data"] if batch else b""}
        self._insert(batch)
        self._files.insert_one(
            {
                "_id": blob,
                "filename": name,
                "length": nbytes,
                "chunkSize": CHUNK_BYTES,
                "uploadDate": datetime.now(UTC),
            }
        )
        return known | {"blob": blob} | ({} if whole else {"blocks": bytes(digests)})

    def chunks(self, blob: ObjectId, first: int, last: int) -> Iterator[bytes]:
        """Chunks `first` to `last` - 1, as far as there are such without a gap."""
        wanted = {"files_id": blob, "n": {"$gte": first, "$lt": last}}
        with self._chunks.find(wanted, sort=[("n", 1)], batch_size=READ_AT_ONCE) as found:
            for number, chunk in enumerate(found, first):
                if chunk["n"] != number:
                    return
                yield chunk["data"]

    def _insert(self, batch: list[_Document]) -> None:
        if not self._indexed:  # as the driver would have them
            self._chunks.create_index([("files_id", 1), ("n", 1)], unique=True)
            self._files.create_index([("filename", 1), ("uploadDate", 1)])
            self._indexed = True
        self._chunks.insert_many(batch)


class MongoObject:
    """runtime.base.StoredObject in MongoDB."""

    def __init__(
        self,
        address: StoreAddress,
        objects: Collection[_Document],
        blobs: Blobs,
        manifest: Mapping[str, Any],
    ) -> None:
        self.manifest = manifest
        self.nbytes = int(manifest["nbytes"])
        self._address = address
        self._objects = objects
        self._blobs = blobs

    @cached_property
    def layout(self) -> Layout:
        """Where its tensors are. ObjectDamaged if such tensors cannot be averaged."""
        if "tensors" in self.manifest:
            return Layout.of(self.manifest["tensors"], self.nbytes)
        data = self._inline  # it came with an outcome
        return _layout(data[: 8 + int.from_bytes(data[:8], "little")], self.nbytes)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Its bytes from `begin` to `end`, chunk by chunk.

        What touches all chunks is checked as a whole, else each chunk is; of an object that an older
        FedKeeper stored, all must be read to check any.
        """
        if begin >= end:
            return
        if "data" in self.manifest:
            yield self._inline[begin:end]
            return
        digests = self.manifest.get("blocks", b"")
        chunks = -(-self.nbytes // CHUNK_BYTES)
        first, last = begin // CHUNK_BYTES, -(-end // CHUNK_BYTES)
        if whole := not digests or (first, last) == (0, chunks):
            first, last = 0, chunks
        total = sha256()
        for number, chunk in enumerate(self._chunks(first, last), first):
            if whole:
                total.update(chunk)
            else:
                known = digests[DIGEST_BYTES * number : DIGEST_BYTES * (number + 1)]
                self._check(sha256(chunk).hexdigest(), known.hex(), f"chunk {number}")
            at = number * CHUNK_BYTES
            if piece := chunk[max(0, begin - at) : max(0, end - at)]:
                yield piece
        if whole:
            self._check(total.hexdigest(), self.manifest["sha256"], "it")

    @cached_property
    def _inline(self) -> bytes:
        data = bytes(self.manifest["data"])
        self._check(sha256(data).hexdigest(), self.manifest["sha256"], "it")
        return data

    def _chunks(self, first: int, last: int) -> Iterator[bytes]:
        """All of them. A store that is away is waited for; what is replaced by the same is read on."""
        blob, patience, replaced = self.manifest["blob"], self._patience(), 0
        while True:
            try:
                for chunk in self._blobs.chunks(blob, first, last):
                    self._check_length(first, chunk)
                    yield chunk
                    first, patience = first + 1, self._patience()
                if first == last:
                    return
                found = self._replacement(blob)
            except (PyMongoError, BSONError) as exc:
                time.sleep(patience.pause_after(exc))
                continue
            replaced += 1
            if found is None or replaced > REPLACED_MAX:
                name = self.manifest["_id"]
                raise ObjectDamaged(f"{name!r}: its chunk {first} of {last} cannot be read")
            blob = found

    def _replacement(self, blob: ObjectId) -> ObjectId | None:
        """Another blob with the same bytes, that the name points at now. ObjectMissing if it is gone."""
        name = self.manifest["_id"]
        now = self._objects.find_one({"_id": name}, {"blob": True, "sha256": True})
        if now is None:
            raise ObjectMissing(f"{name!r} was deleted while it was being read")
        same = now["sha256"] == self.manifest["sha256"] and now.get("blob") != blob
        return now["blob"] if same else None

    def _patience(self) -> mongo.Patience:
        return mongo.Patience(self._address, f"reading {self.manifest['_id']!r}")

    def _check_length(self, number: int, chunk: bytes) -> None:
        wanted = min(CHUNK_BYTES, self.nbytes - number * CHUNK_BYTES)
        if len(chunk) != wanted:
            name = self.manifest["_id"]
            raise ObjectDamaged(f"{name!r}: its chunk {number} has {len(chunk)} bytes, not {wanted}")

    def _check(self, found: str, known: str, what: str) -> None:
        if found != known:
            name = self.manifest["_id"]
            raise ObjectDamaged(f"{name!r}: sha256 of {what} is {found}, its manifest says {known}")


@lru_cache(maxsize=8)  # a round's updates have one
def _layout(header: bytes, nbytes: int) -> Layout:
    """That of an object which begins with this header of safetensors. ObjectDamaged if it is none."""
    try:
        return Layout.of(describe(header), nbytes)
    except (ValueError, KeyError, TypeError) as exc:
        raise ObjectDamaged(f"its tensors cannot be told: {exc!r}") from exc


def _in_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, CHUNK_BYTES at a time."""
    rest = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        if rest:
            taken = min(len(view), CHUNK_BYTES - len(rest))
            rest += view[:taken]
            view = view[taken:]
            if len(rest) == CHUNK_BYTES:
                yield bytes(rest)
                rest.clear()
        whole = len(view) // CHUNK_BYTES * CHUNK_BYTES
        for at in range(0, whole, CHUNK_BYTES):
            yield bytes(view[at : at + CHUNK_BYTES])
        rest += view[whole:]
    if rest:
        yield bytes(rest)
