"""The functions' face of the weights store: tensors, claims and outcomes in MongoDB. See runtime.mongo.

An object is uploaded first and published by one small journalled write of its manifest, so a name never
points at half an object. Whatever is read is checked against its sha256 and its manifest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from bson.errors import BSONError
from gridfs import GridFSBucket
from gridfs.errors import NoFile
from numpy.typing import NDArray
from pymongo import MongoClient, ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from fedkeeper.errors import ObjectDamaged, ObjectMissing, StoreError
from fedkeeper.runtime import mongo
from fedkeeper.runtime import tensors as codec
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.blobs import Blobs, MongoObject
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.wire import Outcome, Ref

T = TypeVar("T")
_Document = dict[str, Any]
_KEYS_AT_ONCE = 10_000  # in a query: of 100 bytes each, a sixteenth of what a request may have
_KEPT_BYTES_MAX = 8 * 1024 * 1024  # of an object that stays in memory between activations

# Kept for the next activation of a warm worker. By process: a connection does not survive a fork, and one
# that was inherited is left alone, because its sockets are the parent's.
_opened: dict[tuple[int, StoreAddress], MongoObjects] = {}


def open_store(address: StoreAddress) -> MongoObjects:
    """This process's store at `address`; opened by the first call, and again after `close`.

    Returns at once: the first use connects. Raises StoreRefused for an address that makes no sense.
    """
    place = (os.getpid(), address)
    if place not in _opened:
        made = MongoObjects(address)
        if _opened.setdefault(place, made) is not made:  # another thread was faster; a lock may not be forked
            made._client.close()
    return _opened[place]


class MongoObjects:
    """runtime.base.ObjectStore over MongoDB. Safe for threads; not for use across a fork (see open_store).

    Every call raises StoreUnavailable when the store is away for `address.wait_s`, StoreRefused on
    wrong credentials.
    """

    def __init__(self, address: StoreAddress) -> None:
        self._address = address
        try:
            self._client: MongoClient[_Document] = MongoClient(**mongo.client_options(address))
        except (PyMongoError, ValueError) as exc:
            raise mongo.store_error(exc, address, "opening the store") from exc
        names = mongo.Names(address.collection)
        self._database = self._client.get_database(address.database, **mongo.database_options(address))
        self._objects = self._database[names.objects]
        self._claims = self._database[names.claims]
        self._outcomes = self._database[names.outcomes]
        self._bucket = GridFSBucket(self._database, names.blobs, chunk_size_bytes=mongo.CHUNK_BYTES)
        self._blobs = Blobs(self._database, names.blobs)
        self._kept: tuple[str, str, bytes] | None = None  # name, sha256, content

    def put(self, name: str, tensors: Tensors, *, run: str, round_no: int) -> Ref:
        """Store `tensors` under `name`; the same name again replaces it. Durable when it returns."""
        data = codec.pack(tensors)
        return self.put_bytes(name, codec.describe(data), lambda: iter([data]), run=run, round_no=round_no)

    def put_bytes(
        self,
        name: str,
        description: Sequence[Mapping[str, Any]],
        pieces: Callable[[], Iterator[bytes]],
        *,
        run: str,
        round_no: int,
    ) -> Ref:
        """As `put`, of bytes that are never in memory all at once. See runtime.base."""
        content = self._patiently(f"storing {name!r}", lambda: self._blobs.write(name, pieces()))
        ref = Ref(name=name, sha256=content["sha256"], nbytes=content["nbytes"])
        manifest: _Document = {
            "_id": name,
            "run": run,
            "round": round_no,
            "kind": mongo.kind_of(name, run),
            "tensors": description,
            "at_ms": time.time_ns() // 1_000_000,
            **content,
        }
        replaced = self._patiently(f"storing {name!r}", lambda: self._publish(manifest))
        # A repeated publish finds itself.
        if replaced and replaced.get("blob") not in (None, manifest.get("blob")):
            with contextlib.suppress(NoFile, PyMongoError):  # the sweep takes what is left over
                self._bucket.delete(replaced["blob"])
        return ref

    def get(self, name: str, *, sha256: str = "") -> dict[str, NDArray[np.generic]]:
        """The tensors under `name`, in their order.

        What was read last by its sha256 is kept for the next activation of this process: clients of a round
        train the same weights. ObjectMissing; ObjectDamaged if bytes, sha256, manifest and tensors disagree.
        """
        kept = self._kept
        if kept is not None and kept[:2] == (name, sha256):
            return codec.unpack(kept[2])[0]
        stored, data = self._read(name, sha256)
        try:
            tensors, _ = codec.unpack(data)
        except ObjectDamaged as exc:
            raise ObjectDamaged(f"{name!r}: {exc}") from exc
        if codec.describe(data) != stored.manifest["tensors"]:
            raise ObjectDamaged(f"{name!r}: the tensors are not those of its manifest")
        if sha256 and len(data) <= _KEPT_BYTES_MAX:
            self._kept = (name, sha256, data)
        return tensors

    def open(self, name: str, *, sha256: str = "") -> MongoObject:
        """To read it in parts. ObjectMissing; ObjectDamaged if its sha256 is said to be another one."""
        manifest = self._patiently(f"reading {name!r}", lambda: self._objects.find_one({"_id": name}))
        if manifest is None:
            raise ObjectMissing(f"no object {name!r} in {self._address.database}.{self._address.collection}")
        if sha256 and manifest["sha256"] != sha256:
            raise ObjectDamaged(f"{name!r}: sha256 is {manifest['sha256']}, {sha256} was expected")
        return MongoObject(self._address, self._objects, self._blobs, manifest)

    def claim(self, key: str, *, run: str, activation_id: str) -> bool:
        """True for the first to claim `key`, and for the same activation again; else False."""
        document = mongo.claim_document(key, run, activation_id, time.time_ns() // 1_000_000)
        standing = self._patiently(f"claiming {key!r}", lambda: _insert_or_find(self._claims, document))
        return bool(standing["activation_id"] == activation_id)

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known; several queries if they are thousands."""
        found, left = {}, iter(keys)
        while some := list(islice(left, _KEYS_AT_ONCE)):
            documents = self._patiently(
                f"reading {len(some)} outcomes",
                lambda some=some: list(self._outcomes.find({"_id": {"$in": some}})),  # type: ignore[misc]
            )
            found.update({document["_id"]: mongo.outcome_of(document) for document in documents})
        return found

    def publish(self, outcome: Outcome) -> bool:
        """Record what became of a key. The first outcome of a key stands: False if there was another."""
        document = mongo.outcome_document(outcome)
        what = f"publishing {outcome.key!r}"
        return bool(self._patiently(what, lambda: _insert_or_find(self._outcomes, document)) == document)

    def close(self) -> None:
        """Give the connections back, for all in this process who opened the same address."""
        _opened.pop((os.getpid(), self._address), None)
        self._client.close()

    def _publish(self, manifest: _Document) -> _Document | None:
        for attempt in range(3):
            try:
                return self._objects.find_one_and_replace(
                    {"_id": manifest["_id"]},
                    manifest,
                    upsert=True,
                    projection={"blob": True},
                    return_document=ReturnDocument.BEFORE,
                )
            except DuplicateKeyError:  # another one made the name at this moment: replace theirs
                if attempt == 2:
                    raise
        return None

    def _read(self, name: str, sha256: str) -> tuple[MongoObject, bytes]:
        """An object and its bytes. Read again when it is replaced meanwhile, which takes its blob away."""
        for _ in range(5):
            stored = self.open(name, sha256=sha256)
            try:
                return stored, b"".join(stored.read(0, stored.nbytes))
            except ObjectDamaged:
                if self.open(name, sha256=sha256).manifest.get("blob") == stored.manifest.get("blob"):
                    raise
        raise StoreError(f"{name!r} was replaced again and again while it was being read")

    def _patiently(self, what: str, act: Callable[[], T]) -> T:
        patience = mongo.Patience(self._address, what)
        while True:
            try:
                return act()
            except (PyMongoError, BSONError) as exc:
                pause_s = patience.pause_after(exc)
            time.sleep(pause_s)


def _insert_or_find(collection: Any, document: _Document) -> Mapping[str, Any]:
    """The document that stands under this `_id`: ours, or the one that was there first."""
    try:
        collection.insert_one(document)
    except DuplicateKeyError:
        return collection.find_one({"_id": document["_id"]}) or {**document, "activation_id": None}
    return document
