"""The functions' face of the weights store: tensors, claims and outcomes in MongoDB. See runtime.mongo.

An object is uploaded first and published by one small journalled write of its manifest, so a name never
points at half an object. Whatever is read is checked against its sha256 and its manifest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256 as sha256_of
from itertools import groupby, islice
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
_NO_BYTES = {"update": False}  # of an outcome: all but what was handed in
_BATCH = 128  # objects that are opened with one question;
_BATCH_BYTES = 4 * 1024 * 1024  # about as many bytes come with that, of small ones all
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
        self._handed_in: dict[str, _Document] = {}  # updates that wait for their key's outcome

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
        return self._put(name, description, pieces, run, round_no)

    def _put(
        self,
        name: str,
        description: Sequence[Mapping[str, Any]],
        pieces: Callable[[], Iterator[bytes]],
        run: str,
        round_no: int,
        *,
        whole: bool = False,
    ) -> Ref:
        content = self._patiently(f"storing {name!r}", lambda: self._blobs.write(name, pieces(), whole=whole))
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

    def hand_in(self, key: str, update: Tensors, *, run: str, round_no: int, whole: bool = False) -> Ref:
        """Store what a client has trained, a small one by the `publish` that follows. See runtime.base."""
        data = codec.pack(update)
        if len(data) > mongo.INLINE_BYTES_MAX:
            return self._put(key, codec.describe(data), lambda: iter([data]), run, round_no, whole=whole)
        ref = Ref(name=key, sha256=sha256_of(data).hexdigest(), nbytes=len(data))
        self._handed_in[key] = {"sha256": ref.sha256, "nbytes": ref.nbytes, "data": data}
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
        if stored.manifest.get("tensors") not in (None, codec.describe(data)):
            raise ObjectDamaged(f"{name!r}: the tensors are not those of its manifest")
        if sha256 and len(data) <= _KEPT_BYTES_MAX:
            self._kept = (name, sha256, data)
        return tensors

    def open(self, name: str, *, sha256: str = "") -> MongoObject:
        """To read it in parts. ObjectMissing; ObjectDamaged if its sha256 is said to be another one."""
        what = f"reading {name!r}"
        found = self._patiently(what, lambda: self._manifests([name], handed_in=False))
        return self._object(found.get(name), name, sha256)

    def open_each(self, refs: Sequence[Ref]) -> Iterator[MongoObject | ObjectMissing | ObjectDamaged]:
        """As `open`, of each in turn; some MB of small ones are fetched at once. See runtime.base."""
        for small, some in _in_batches(refs):
            names = [ref.name for ref in some]
            what = f"reading {names[0]!r} and {len(names) - 1} more"
            found = self._patiently(what, partial(self._manifests, names, handed_in=small))
            for ref in some:
                try:
                    yield self._object(found.get(ref.name), ref.name, ref.sha256)
                except (ObjectMissing, ObjectDamaged) as exc:
                    yield exc

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
                lambda some=some: list(self._outcomes.find({"_id": {"$in": some}}, _NO_BYTES)),  # type: ignore[misc]
            )
            found.update({document["_id"]: mongo.outcome_of(document) for document in documents})
        return found

    def publish(self, outcome: Outcome) -> bool:
        """Record what became of a key. The first outcome of a key stands: False if there was another."""
        document = mongo.outcome_document(outcome)
        update = self._handed_in.pop(outcome.key, None)
        if update is not None and outcome.ok:
            document["update"] = update
        what = f"publishing {outcome.key!r}"
        return bool(self._patiently(what, lambda: _insert_or_find(self._outcomes, document)) == document)

    def close(self) -> None:
        """Give the connections back, for all in this process who opened the same address."""
        _opened.pop((os.getpid(), self._address), None)
        self._client.close()

    def _manifests(self, names: Sequence[str], *, handed_in: bool) -> dict[str, _Document]:
        """Of those of `names` that there are; `handed_in`: probably in their outcomes, so there first."""
        looks = [self._in_objects, self._in_outcomes]
        found: dict[str, _Document] = {}
        for look in reversed(looks) if handed_in else looks:
            if missing := [name for name in names if name not in found]:
                found |= look(missing)
        return found

    def _in_objects(self, names: Sequence[str]) -> dict[str, _Document]:
        found = self._objects.find({"_id": {"$in": names}}, batch_size=len(names) + 1)
        return {one["_id"]: one for one in found}

    def _in_outcomes(self, names: Sequence[str]) -> dict[str, _Document]:
        wanted = {"_id": {"$in": names}, "update": {"$exists": True}}
        found = self._outcomes.find(wanted, {"update": True}, batch_size=len(names) + 1)
        return {one["_id"]: mongo.update_of(one) for one in found}

    def _object(self, manifest: _Document | None, name: str, sha256: str) -> MongoObject:
        if manifest is None:
            raise ObjectMissing(f"no object {name!r} in {self._address.database}.{self._address.collection}")
        if sha256 and manifest["sha256"] != sha256:
            raise ObjectDamaged(f"{name!r}: sha256 is {manifest['sha256']}, {sha256} was expected")
        return MongoObject(self._address, self._objects, self._blobs, manifest)

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


def _in_batches(refs: Sequence[Ref]) -> Iterator[tuple[bool, list[Ref]]]:
    """(whether they are small, those to be opened with one question), in their order."""
    for small, some in groupby(refs, lambda ref: ref.nbytes <= mongo.INLINE_BYTES_MAX):
        batch: list[Ref] = []
        room = _BATCH_BYTES
        for ref in some:
            comes = ref.nbytes if small else ref.nbytes // 64  # of a large one its manifest
            if batch and (len(batch) == _BATCH or comes > room):
                yield small, batch
                batch, room = [], _BATCH_BYTES
            batch.append(ref)
            room -= comes
        yield small, batch


def _insert_or_find(collection: Any, document: _Document) -> Mapping[str, Any]:
    """The document that stands under this `_id`: ours, or the one that was there first."""
    try:
        collection.insert_one(document)
    except DuplicateKeyError:
        return collection.find_one({"_id": document["_id"]}) or {**document, "activation_id": None}
    return document
