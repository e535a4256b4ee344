"""The MongoDB store when things go wrong: killed, away, hung, refused, half written, forked."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from bson import ObjectId
from pymongo.asynchronous.cursor import AsyncCursor

from fedkeeper.errors import ObjectDamaged, ObjectMissing, StoreRefused, StoreUnavailable
from fedkeeper.runtime import wire
from fedkeeper.runtime.store import open_store
from fedkeeper.weights.mongo import MongoUpdates

SMALL = {"w": np.arange(100, dtype=np.float32)}
LARGE = {"w": np.random.default_rng(1).normal(size=(700, 600)).astype(np.float32)}  # 1.7 MB


def mongod_of(mongo, *, after: int = 0) -> psutil.Process:
    """The database's process; the guard's child changes when the one with pid `after` was killed."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        for child in psutil.Process(mongo.running.info["pid"]).children():
            if child.pid != after and child.status() != psutil.STATUS_ZOMBIE:
                return child
        time.sleep(0.02)
    raise AssertionError("the guard has no mongod")


async def test_a_put_waits_for_a_killed_mongod_and_nothing_acknowledged_is_lost(mongo, address):
    """kill -9 in the middle of a stream of writes, twice: all succeed, all are there, outcomes stand once."""
    objects = open_store(address)
    acknowledged: dict[str, str] = {}
    kills = threading.Event()

    def write() -> None:
        for number in range(400):
            key = f"run/r{number}/c/a0"
            tensors = LARGE if number % 10 == 0 else SMALL
            ref = objects.put(key, tensors, run="run", round_no=number)
            assert objects.claim(key, run="run", activation_id=str(number))
            done = wire.Outcome(
                key=key, run="run", ok=True, result={}, reason="", activation_id="a", at_ms=number
            )
            assert objects.publish(done)
            acknowledged[key] = ref.sha256
            if kills.is_set() and number > 100:
                return

    writer = asyncio.create_task(asyncio.to_thread(write))
    for _ in range(2):
        count = len(acknowledged)
        while len(acknowledged) < count + 20 and not writer.done():  # noqa: ASYNC110 - a thread's work
            await asyncio.sleep(0.005)
        victim = mongod_of(mongo)
        victim.kill()
        mongod_of(mongo, after=victim.pid)
    kills.set()
    await writer
    assert len(acknowledged) > 100
    updates = MongoUpdates(address)
    assert set(await updates.outcomes(list(acknowledged))) == set(acknowledged)
    assert set(await updates.claims(list(acknowledged))) == set(acknowledged)
    for key, sha256 in acknowledged.items():
        objects.get(key, sha256=sha256)
    await updates.close()
    objects.close()


async def test_the_keeper_waits_for_a_killed_mongod_too(mongo, address):
    """Its query succeeds once the guard has started mongod again."""
    updates = MongoUpdates(address)
    await updates.ping()
    mongod_of(mongo).kill()
    assert await updates.outcomes(["run/r1/c/a0"]) == {}
    await updates.close()


@pytest.mark.parametrize("secret", ["wrong-password", ""])
async def test_a_wrong_password_is_refused_at_once(address, secret):
    """Not waited for like an outage, and the password is not in the message."""
    wrong = replace(address, password=secret) if secret else replace(address, username="")
    objects, updates = open_store(wrong), MongoUpdates(wrong)
    started = time.monotonic()
    with pytest.raises(StoreRefused) as caught:
        objects.put("run/w0", SMALL, run="run", round_no=0)
    with pytest.raises(StoreRefused):
        await updates.ping()
    assert time.monotonic() - started < address.wait_s / 2
    assert "mongo_config" in caught.value.hint
    assert not secret or secret not in str(caught.value) + repr(caught.value.__cause__)
    await updates.close()
    objects.close()


async def test_a_database_without_rights_is_refused(address):
    """The app's user may use the databases it was given, and no other."""
    other = replace(address, database="elsewhere")
    objects, updates = open_store(other), MongoUpdates(other)
    with pytest.raises(StoreRefused, match="elsewhere"):
        objects.put("run/w0", SMALL, run="run", round_no=0)
    with pytest.raises(StoreRefused):
        await updates.ping()
    await updates.close()
    objects.close()


async def test_a_store_that_stays_away_is_given_up_after_its_wait(address):
    """Both faces say so, name the place, and do not say that the write did not happen."""
    away = replace(address, hosts="127.0.0.1:1", wait_s=0.3)
    objects, updates = open_store(away), MongoUpdates(away)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1\b") as caught:
        objects.put("run/w0", SMALL, run="run", round_no=0)
    assert not caught.value.definite
    assert len(str(caught.value)) < 500
    with pytest.raises(StoreUnavailable):
        await updates.ping()
    await updates.close()
    objects.close()


async def test_a_mongod_that_hangs_is_given_up_too(mongo, address):
    """Stopped, not dead: the connection stands and no answer comes."""
    short = replace(address, wait_s=0.2)
    objects = open_store(short)
    objects.put("run/w0", SMALL, run="run", round_no=0)
    mongod = mongod_of(mongo)
    mongod.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            await asyncio.to_thread(objects.get, "run/w0")
    finally:
        mongod.send_signal(signal.SIGCONT)
    objects.get("run/w0")
    objects.close()


async def test_what_was_read_by_its_hash_is_read_once(address):
    """The clients of a round that share a worker train the same weights; each gets arrays of its own."""
    objects = open_store(address)
    ref = objects.put("run/w0", SMALL, run="run", round_no=0)
    first = objects.get("run/w0", sha256=ref.sha256)
    first["w"][0] = 7
    objects._objects.delete_one({"_id": "run/w0"})
    np.testing.assert_array_equal(objects.get("run/w0", sha256=ref.sha256)["w"], SMALL["w"])
    with pytest.raises(ObjectMissing):
        objects.get("run/w0")
    with pytest.raises(ObjectMissing):
        objects.get("run/w0", sha256="0" * 64)
    objects.close()


async def test_the_sweep_takes_half_uploads_and_leaves_named_blobs(address):
    """Files that no manifest names and chunks without a file go, when they are old enough."""
    objects, updates = open_store(address), MongoUpdates(address)
    ref = objects.put("run/w0", LARGE, run="run", round_no=0)
    objects._bucket.upload_from_stream("unnamed", b"x" * 3_000_000)
    chunks = objects._database[f"{address.collection}.blobs.chunks"]
    chunks.insert_many({"files_id": ObjectId("0" * 24), "n": n, "data": b"x"} for n in range(3))
    assert await updates.sweep(older_than_s=86_400) == 1  # that id is of 1970
    assert await updates.sweep(older_than_s=-60) == 1
    assert await updates.sweep(older_than_s=-60) == 0
    objects.get("run/w0", sha256=ref.sha256)
    await updates.close()
    objects.close()


async def test_a_lost_chunk_is_damage(address):
    """A blob that is not whole never becomes tensors."""
    objects = open_store(address)
    objects.put("run/w0", LARGE, run="run", round_no=0)
    objects._database[f"{address.collection}.blobs.chunks"].delete_one({"n": 1})
    with pytest.raises(ObjectDamaged, match="run/w0"):
        objects.get("run/w0")
    objects.close()


async def test_a_manifest_that_does_not_fit_its_bytes_is_damage(address):
    """Shapes and dtypes are checked against the manifest, not only the hash."""
    objects = open_store(address)
    objects.put("run/w0", SMALL, run="run", round_no=0)
    objects._objects.update_one({"_id": "run/w0"}, {"$set": {"tensors.0.shape": [10, 10]}})
    with pytest.raises(ObjectDamaged, match="manifest"):
        objects.get("run/w0")
    objects.close()


async def test_readers_never_see_half_of_a_replacement(address):
    """While a name is replaced again and again, each read gets one whole object or the other."""
    objects = open_store(address)
    whole = {objects.put("run/w0", LARGE, run="run", round_no=0).sha256}
    other = {"w": LARGE["w"] + 1}
    whole.add(objects.put("run/w0", other, run="run", round_no=0).sha256)

    def replace_often() -> None:
        for number in range(30):
            objects.put("run/w0", (LARGE, other)[number % 2], run="run", round_no=0)

    writer = asyncio.create_task(asyncio.to_thread(replace_often))
    while not writer.done():
        found = await asyncio.to_thread(objects.get, "run/w0")
        assert any(np.array_equal(found["w"], each["w"]) for each in (LARGE, other))
    await writer
    objects.close()


def test_a_forked_worker_opens_connections_of_its_own(address):
    """A zygote that has used the store may fork; parent and child both go on."""
    objects = open_store(address)
    objects.put("run/w0", SMALL, run="run", round_no=0)
    child = os.fork()
    if child == 0:
        try:
            mine = open_store(address)
            assert mine is not objects
            mine.get("run/w0")
            mine.put("run/w1", SMALL, run="run", round_no=1)
            mine.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    objects.get("run/w1")
    assert open_store(address) is objects
    objects.close()


async def test_a_newer_format_is_refused(address):
    """Rather than misread."""
    objects, updates = open_store(address), MongoUpdates(address)
    await updates.ping()
    objects._database[f"{address.collection}.meta"].update_one({"_id": "format"}, {"$set": {"version": 9}})
    with pytest.raises(StoreRefused, match="format 9"):
        await updates.ping()
    await updates.close()
    objects.close()


@pytest.mark.filterwarnings(
    # pymongo leaves the socket it was just opening to the garbage collector
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
async def test_a_cancelled_query_ends_at_once(address):
    """At whatever point it is cancelled, connecting too: it neither goes on nor comes back with an answer."""
    for pause_ms in range(0, 30, 2):
        updates = MongoUpdates(address)
        query = asyncio.create_task(updates.outcomes(["run/r1/c/a0"]))
        await asyncio.sleep(pause_ms / 1000)
        if query.done() or not query.cancel():
            await updates.close()
            break
        await asyncio.wait({query}, timeout=5)
        assert query.cancelled()
        await updates.close()


async def test_a_query_can_be_cancelled_while_the_store_is_away(address):
    """So that Ctrl-C does not have to wait for it."""
    updates = MongoUpdates(replace(address, hosts="127.0.0.1:1"))
    query = asyncio.create_task(updates.outcomes(["run/r1/c/a0"]))
    await asyncio.sleep(0.1)
    query.cancel()
    await asyncio.wait({query}, timeout=5)
    assert query.cancelled()
    await updates.close()


async def test_a_call_that_the_driver_never_ends_is_given_up(address, monkeypatch):
    """A call that the driver lost, without an error, costs its time limit; with a new client it succeeds."""
    real, calls = AsyncCursor.to_list, []

    async def lost_once(self, length=None):
        calls.append(1)
        if len(calls) == 1:
            await asyncio.get_running_loop().create_future()
        return await real(self, length)

    monkeypatch.setattr(AsyncCursor, "to_list", lost_once)
    store = MongoUpdates(replace(address, wait_s=0.5))
    first = store._client
    async with asyncio.timeout(30):
        assert await store.outcomes(["a/r1/c/a0"]) == {}
    assert store._client is not first
    await store.close()
