"""The keeper's face of the weights store in MongoDB: outcomes and claims of many keys, and tidying up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from bson import ObjectId
from bson.errors import BSONError
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import NetworkTimeout, PyMongoError

from fedkeeper.errors import StoreRefused
from fedkeeper.runtime import mongo
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.wire import Claim, Outcome

log = structlog.get_logger(__name__)

T = TypeVar("T")
_Document = dict[str, Any]
_BATCH = 500
HUNG_S = 2.0  # beyond the driver's own limit for an answer


class MongoUpdates:
    """weights.base.UpdateStore over MongoDB. Belongs to the event loop that it is first used on."""

    def __init__(self, address: StoreAddress) -> None:
        """Returns at once: the first use connects. StoreRefused for an address that makes no sense."""
        self._address = address
        self._abandoned: set[asyncio.Task[None]] = set()
        self._open()

    def _open(self) -> None:
        address = self._address
        try:
            self._client: AsyncMongoClient[_Document] = AsyncMongoClient(**mongo.client_options(address))
        except (PyMongoError, ValueError) as exc:
            raise mongo.store_error(exc, address, "opening the store") from exc
        names = mongo.Names(address.collection)
        database = self._client.get_database(address.database, **mongo.database_options(address))
        self._objects = database[names.objects]
        self._claims = database[names.claims]
        self._outcomes = database[names.outcomes]
        self._meta = database[names.meta]
        self._files = database[f"{names.blobs}.files"]
        self._chunks = database[f"{names.blobs}.chunks"]

    async def ping(self) -> None:
        """Return if the store answers, the credentials may read and write, and the format is ours.

        Makes the indexes, too. StoreRefused if a newer FedKeeper has made these collections.
        """

        async def act() -> int:
            ours = {"$setOnInsert": {"version": mongo.FORMAT_VERSION}}
            await self._meta.update_one({"_id": "format"}, ours, upsert=True)
            found = await self._meta.find_one({"_id": "format"}) or {"version": mongo.FORMAT_VERSION}
            for collection in (self._objects, self._claims, self._outcomes):
                await collection.create_index([("run", 1), ("round", 1)])
            await self._objects.create_index("blob", sparse=True)
            return int(found["version"])

        version = await self._patiently("connecting", act)
        if version > mongo.FORMAT_VERSION:
            raise StoreRefused(
                f"collections {self._address.collection}.* have format {version},"
                f" this FedKeeper knows {mongo.FORMAT_VERSION}",
                hint="use a newer FedKeeper, or another mongo_config.collection",
            )

    async def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What became of `keys`, as far as it is known: one query however many there are."""
        found = await self._find(lambda: self._outcomes, keys, {"update": False})
        return {key: mongo.outcome_of(document) for key, document in found.items()}

    async def claims(self, keys: Collection[str]) -> dict[str, Claim]:
        """Who works, or worked, on `keys`: one query however many there are."""
        found = await self._find(lambda: self._claims, keys)
        return {key: mongo.claim_of(document) for key, document in found.items()}

    async def prune(self, run: str, *, before_round: int) -> int:
        """Delete what rounds below `before_round` left, but for data assignments; how many objects."""
        old = {"run": run, "round": {"$lt": before_round}}
        what = f"pruning {run!r}"
        return await self._patiently(what, lambda: self._delete(old, {**old, "kind": {"$ne": mongo.ROWS}}))

    async def drop(self, run: str) -> int:
        """Delete everything of `run`; how many objects."""
        return await self._patiently(f"dropping {run!r}", lambda: self._delete({"run": run}, {"run": run}))

    async def sweep(self, *, older_than_s: float) -> int:
        """Delete blobs that no object names and that are older than that; how many.

        They come from uploads that were killed, and from replacements. `older_than_s` must exceed the time
        between an upload and its publication on any machine, clocks' differences included: a day is safe.
        """
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        return await self._patiently("sweeping", lambda: self._sweep(before))

    async def close(self) -> None:
        """Give the connections back."""
        for closing in self._abandoned:
            closing.cancel()
        await self._client.close()

    async def _find(
        self,
        collection: Callable[[], AsyncCollection[_Document]],
        keys: Collection[str],
        fields: Mapping[str, bool] | None = None,
    ) -> dict[str, _Document]:
        if not keys:
            return {}

        async def act() -> list[_Document]:
            return await collection().find({"_id": {"$in": list(keys)}}, fields).to_list()

        found = await self._patiently("looking for updates", lambda: self._in_time(act))
        return {document["_id"]: document for document in found}

    async def _delete(self, old: _Document, old_objects: _Document) -> int:
        """Manifests before blobs: what is cut short leaves orphans for the sweep, never a bare name."""
        await self._claims.delete_many(old)
        handed_in = await self._outcomes.delete_many({**old, "update": {"$exists": True}})
        await self._outcomes.delete_many(old)
        count = handed_in.deleted_count
        while True:
            found = await self._objects.find(old_objects, {"blob": True}).limit(_BATCH).to_list()
            if not found:
                return count
            # By blob as well: an object that was replaced since we looked is another one.
            done = await self._objects.delete_many(
                {"$or": [{"_id": each["_id"], "blob": each.get("blob")} for each in found]}
            )
            count += done.deleted_count
            await self._delete_unnamed([each["blob"] for each in found if "blob" in each])

    async def _delete_unnamed(self, blobs: list[ObjectId]) -> int:
        """Delete those of `blobs` that no object names."""
        named = set(await self._objects.distinct("blob", {"blob": {"$in": blobs}})) if blobs else set()
        unnamed = [blob for blob in blobs if blob not in named]
        if unnamed:  # in GridFS' own order
            await self._files.delete_many({"_id": {"$in": unnamed}})
            await self._chunks.delete_many({"files_id": {"$in": unnamed}})
        return len(unnamed)

    async def _sweep(self, before: datetime) -> int:
        count = 0
        old = self._files.find({"uploadDate": {"$lt": before}}, {"_id": True}).batch_size(_BATCH)
        batch: list[ObjectId] = []
        async for each in old:
            batch.append(each["_id"])
            if len(batch) == _BATCH:
                count, batch = count + await self._delete_unnamed(batch), []
        count += await self._delete_unnamed(batch)
        # Chunks of uploads that were cut short: their file would have been written last.
        cut_short = await self._chunks.aggregate(
            [
                {"$match": {"files_id": {"$lt": ObjectId.from_datetime(before)}}},
                {"$group": {"_id": "$files_id"}},
                {
                    "$lookup": {
                        "from": self._files.name,
                        "localField": "_id",
                        "foreignField": "_id",
                        "as": "f",
                    }
                },
                {"$match": {"f": []}},
                {"$project": {"_id": True}},
            ]
        )
        orphans = [found["_id"] for found in await cut_short.to_list()]
        for start in range(0, len(orphans), _BATCH):
            await self._chunks.delete_many({"files_id": {"$in": orphans[start : start + _BATCH]}})
        return count + len(orphans)

    async def _in_time(self, act: Callable[[], Awaitable[T]]) -> T:
        """What `act` returns; a call that the driver's own limits do not end is given up, with its client.

        A conductor was once seen to stand still for a minute, perhaps in such a call: others had been
        cancelled before while they connected. With a new client the next try is as good as the first.
        """
        limit_s = mongo.answer_ms(self._address) / 1000 + HUNG_S
        client = self._client
        try:
            async with asyncio.timeout(limit_s):
                with _cancellation_kept():
                    return await act()
        except TimeoutError as exc:
            if self._client is client:  # else another call has opened it anew already
                log.warning("the store's driver does not answer, it is opened anew", seconds=limit_s)
                self._open()
                closing = asyncio.create_task(_close_later(client, limit_s))
                self._abandoned.add(closing)
                closing.add_done_callback(self._abandoned.discard)
            raise NetworkTimeout(f"no answer, and no error, in {limit_s:g} s") from exc

    async def _patiently(self, what: str, act: Callable[[], Awaitable[T]]) -> T:
        patience = mongo.Patience(self._address, what)
        while True:
            try:
                with _cancellation_kept():
                    return await act()
            except (PyMongoError, BSONError) as exc:
                pause_s = patience.pause_after(exc)
            await asyncio.sleep(pause_s)


async def _close_later(client: AsyncMongoClient[_Document], delay_s: float) -> None:
    """Close it, once what else was under way on it has ended as well."""
    await asyncio.sleep(delay_s)
    await client.close()


@contextlib.contextmanager
def _cancellation_kept() -> Iterator[None]:
    """Raise CancelledError if it was asked for in the block and the driver made something else of it.

    While it connects, pymongo 4.20 loses cancellations; without this, a keeper could not be stopped.
    """
    task = asyncio.current_task()
    assert task is not None
    asked_before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > asked_before:
            raise asyncio.CancelledError
