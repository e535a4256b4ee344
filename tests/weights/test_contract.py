"""What every weights store must do, on both of its faces: one suite, every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import pytest

from fedkeeper.errors import ObjectDamaged, ObjectMissing
from fedkeeper.runtime import tensors as codec
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.store import MongoObjects, open_store
from fedkeeper.runtime.wire import Outcome, assignment_name, weights_name
from fedkeeper.weights.base import UpdateStore
from fedkeeper.weights.memory import MemoryUpdates
from fedkeeper.weights.mongo import MongoUpdates

SMALL = {
    "conv/kernel": np.linspace(-1, 1, 50, dtype=np.float32).reshape(5, 5, 2),
    "bias": np.zeros(2, np.float32),
}
MIB = 1024 * 1024
LARGE = {"dense": np.random.default_rng(1).normal(size=(700, 600)).astype(np.float32)}  # 1.7 MB


@dataclass
class Store:
    """Both faces over the same data, and how to spoil a byte of a stored object."""

    objects: ObjectStore
    updates: UpdateStore
    spoil: Callable[[str], None]


def outcome(key: str, *, run: str = "run", activation_id: str = "a1") -> Outcome:
    """What a client that trained would publish."""
    result = {"samples": 12, "loss": None, "seconds": {"train.step": 0.5, "$x": 1}}
    return Outcome(
        key=key,
        run=run,
        ok=True,
        result=result,
        reason="",
        activation_id=activation_id,
        at_ms=1_700_000_000_000,
    )


class StoreContract:
    """Subclass it once per store and supply the `store` fixture."""

    @pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
    async def test_what_is_put_is_got(self, store, tensors):
        """Bit for bit, in the order put, under its hash."""
        ref = store.objects.put("run/w0", tensors, run="run", round_no=0)
        back = store.objects.get("run/w0", sha256=ref.sha256)
        assert list(back) == list(tensors)
        for name, array in tensors.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)

    async def test_same_tensors_have_the_same_hash(self, store):
        """The hash is of the tensors, not of when or under what name they were stored."""
        first = store.objects.put("run/w0", SMALL, run="run", round_no=0)
        second = store.objects.put("run/w1", dict(SMALL), run="run", round_no=1)
        assert (first.sha256, first.nbytes) == (second.sha256, second.nbytes)

    @pytest.mark.parametrize("before", [SMALL, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("after", [SMALL, LARGE], ids=["small", "large"])
    async def test_the_same_name_again_replaces(self, store, before, after):
        """And nothing of what was replaced is left behind."""
        store.objects.put("run/w0", before, run="run", round_no=0)
        ref = store.objects.put("run/w0", after, run="run", round_no=0)
        assert list(store.objects.get("run/w0", sha256=ref.sha256)) == list(after)
        assert await store.updates.sweep(older_than_s=-60) == 0

    async def test_a_missing_object_is_said_to_be_missing(self, store):
        """By its name."""
        with pytest.raises(ObjectMissing, match="run/w9"):
            store.objects.get("run/w9")

    async def test_another_hash_than_expected_is_damage(self, store):
        """The caller's reference decides, not what the store believes."""
        store.objects.put("run/w0", SMALL, run="run", round_no=0)
        with pytest.raises(ObjectDamaged, match="expected"):
            store.objects.get("run/w0", sha256="0" * 64)

    @pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
    async def test_a_changed_byte_is_damage(self, store, tensors):
        """Found on every read, whether or not the caller knows the hash."""
        store.objects.put("run/w0", tensors, run="run", round_no=0)
        store.spoil("run/w0")
        with pytest.raises(ObjectDamaged, match="run/w0"):
            store.objects.get("run/w0")

    @pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
    async def test_any_part_of_an_object_can_be_read(self, store, tensors):
        """Its bytes from here to there are those of the whole; and its layout says what they are."""
        data = codec.pack(tensors)
        ref = store.objects.put("run/w0", tensors, run="run", round_no=0)
        stored = store.objects.open("run/w0", sha256=ref.sha256)
        assert stored.layout == Layout.of(codec.describe(data), len(data))
        middle = stored.layout.header_bytes + 24
        for begin, end in (
            (0, len(data)),
            (0, 8),
            (middle, len(data) - 3),
            (len(data) - 9, len(data)),
            (7, 7),
        ):
            assert b"".join(stored.read(begin, end)) == data[begin:end]

    @pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 9 * MIB, 20 * MIB + 5])
    async def test_bytes_in_pieces_are_stored_as_they_are(self, store, size):
        """Whatever the pieces; what makes them may be asked again, and a part has no header of its own."""
        data = np.random.default_rng(size).bytes(size)

        def pieces():
            for at in range(0, size, 700_001):
                yield data[at : at + 700_001]

        ref = store.objects.put_bytes("run/r1/aggregate/s0/a0", [], pieces, run="run", round_no=1)
        assert (ref.nbytes, ref.sha256) == (size, sha256(data).hexdigest())
        stored = store.objects.open(ref.name, sha256=ref.sha256)
        assert b"".join(stored.read(0, size)) == data
        assert b"".join(stored.read(size // 2, size)) == data[size // 2 :]
        assert await store.updates.sweep(older_than_s=-60) == 0
        assert await store.updates.prune("run", before_round=2) == 1
        assert await store.updates.sweep(older_than_s=-60) == 0

    async def test_an_unknown_or_other_object_cannot_be_opened(self, store):
        """Before any of its bytes is read."""
        store.objects.put("run/w0", SMALL, run="run", round_no=0)
        with pytest.raises(ObjectMissing, match="run/w9"):
            store.objects.open("run/w9")
        with pytest.raises(ObjectDamaged, match="expected"):
            store.objects.open("run/w0", sha256="0" * 64)

    @pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
    async def test_damage_is_found_by_whoever_reads_that_part(self, store, tensors):
        """The last byte: of the whole, and of the last part."""
        ref = store.objects.put("run/w0", tensors, run="run", round_no=0)
        store.spoil("run/w0")
        for begin in (0, ref.nbytes - 9):
            with pytest.raises(ObjectDamaged, match="run/w0"):
                b"".join(store.objects.open("run/w0").read(begin, ref.nbytes))

    async def test_the_first_claim_wins_and_may_be_repeated(self, store):
        """A second activation of the same key stands back; the first may ask again."""
        assert store.objects.claim("run/r1/c0/a0", run="run", activation_id="one")
        assert not store.objects.claim("run/r1/c0/a0", run="run", activation_id="two")
        assert store.objects.claim("run/r1/c0/a0", run="run", activation_id="one")
        claims = await store.updates.claims(["run/r1/c0/a0", "run/r1/c1/a0"])
        assert {key: claim.activation_id for key, claim in claims.items()} == {"run/r1/c0/a0": "one"}
        assert claims["run/r1/c0/a0"].at_ms > 1_700_000_000_000

    async def test_the_first_outcome_stands(self, store):
        """It comes back as it was; publishing the very same again is no conflict."""
        first = outcome("run/r1/c0/a0")
        assert store.objects.publish(first)
        assert store.objects.outcomes([first.key, f"{first.key}0"]) == {first.key: first}
        assert store.objects.outcomes([]) == {}
        assert not store.objects.publish(replace(first, activation_id="late"))
        assert store.objects.publish(first)
        assert await store.updates.outcomes({"run/r1/c0/a0", "run/r1/c1/a0"}) == {first.key: first}

    @pytest.mark.parametrize("whole", [False, True], ids=["in parts", "whole"])
    @pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
    async def test_what_is_handed_in_is_there_with_its_outcome(self, store, tensors, whole):
        """It is read, in parts too, and pruned like any other object; the outcome does not bring it along."""
        key, data = "run/r1/c0/a0", codec.pack(tensors)
        ref = store.objects.hand_in(key, tensors, run="run", round_no=1, whole=whole)
        assert (ref.name, ref.sha256, ref.nbytes) == (key, sha256(data).hexdigest(), len(data))
        done = outcome(key)
        assert store.objects.publish(done)
        assert await store.updates.outcomes([key]) == store.objects.outcomes([key]) == {key: done}
        stored = store.objects.open(key, sha256=ref.sha256)
        assert stored.layout == Layout.of(codec.describe(data), len(data))
        assert b"".join(stored.read(8, len(data))) == data[8:]
        assert list(store.objects.get(key, sha256=ref.sha256)) == list(tensors)
        with pytest.raises(ObjectDamaged, match="expected"):
            store.objects.open(key, sha256="0" * 64)
        assert await store.updates.prune("run", before_round=2) == 1
        with pytest.raises(ObjectMissing):
            store.objects.open(key)
        assert await store.updates.sweep(older_than_s=-60) == 0

    async def test_many_objects_are_opened_in_their_order(self, store):
        """Small and large, put and handed in, and one of them twice; what is wrong stands in its place."""
        refs = []
        for number in range(300):
            tensors = {"w": np.full(4, number, np.float32)}
            if number % 3:
                refs.append(store.objects.put(f"run/p{number}", tensors, run="run", round_no=1))
            else:
                refs.append(store.objects.hand_in(f"run/r1/c{number}/a0", tensors, run="run", round_no=1))
                store.objects.publish(outcome(f"run/r1/c{number}/a0"))
        refs[7] = store.objects.put("run/large", {"w": LARGE["dense"] * 0 + 7}, run="run", round_no=1)
        refs[9] = refs[10]
        refs[11] = replace(refs[11], name="run/unknown")
        refs[12] = replace(refs[12], sha256="0" * 64)
        found = list(store.objects.open_each(refs))
        assert len(found) == 300
        for number, (ref, one) in enumerate(zip(refs, found, strict=True)):
            if number in (11, 12):
                assert isinstance(one, ObjectMissing if number == 11 else ObjectDamaged)
                assert ref.name in str(one)
                continue
            last = b"".join(one.read(ref.nbytes - 4, ref.nbytes))
            assert last == np.float32(10 if number == 9 else number).tobytes()
        assert list(store.objects.open_each([])) == []

    async def test_no_keys_no_answers(self, store):
        """Nothing is asked for, nothing is found."""
        assert await store.updates.outcomes([]) == {}
        assert await store.updates.claims([]) == {}

    async def test_prune_takes_old_rounds_and_leaves_the_rest(self, store):
        """Old weights, updates, claims and outcomes go; this round's, other runs' and the data rows stay."""
        for run in ("run", "run2"):
            store.objects.put(assignment_name(run, "c0"), {"rows": np.arange(9)}, run=run, round_no=0)
            for number in range(4):
                key = f"{run}/r{number}/c0/a0"
                store.objects.put(weights_name(run, number), LARGE, run=run, round_no=number)
                store.objects.put(key, SMALL, run=run, round_no=number)
                store.objects.claim(key, run=run, activation_id="a1")
                store.objects.publish(outcome(key, run=run))
        assert await store.updates.prune("run", before_round=2) == 4
        assert await store.updates.prune("run", before_round=2) == 0
        keys = [f"{run}/r{number}/c0/a0" for run in ("run", "run2") for number in range(4)]
        assert set(await store.updates.outcomes(keys)) == set(keys[2:])
        assert set(await store.updates.claims(keys)) == set(keys[2:])
        assert list(store.objects.get("run/rows/c0")) == ["rows"]
        store.objects.get("run/w2")
        with pytest.raises(ObjectMissing):
            store.objects.get("run/w1")
        assert await store.updates.sweep(older_than_s=-60) == 0

    async def test_drop_takes_a_run_and_no_other(self, store):
        """Its data assignments as well."""
        for run in ("run", "run2"):
            store.objects.put(assignment_name(run, "c0"), {"rows": np.arange(9)}, run=run, round_no=0)
            store.objects.put(weights_name(run, 0), LARGE, run=run, round_no=0)
            store.objects.publish(outcome(f"{run}/init/a0", run=run))
        assert await store.updates.drop("run") == 2
        assert set(await store.updates.outcomes(["run/init/a0", "run2/init/a0"])) == {"run2/init/a0"}
        with pytest.raises(ObjectMissing):
            store.objects.get("run/rows/c0")
        store.objects.get("run2/w0")

    async def test_ping_may_be_repeated(self, store):
        """It changes nothing that anybody sees."""
        await store.updates.ping()
        await store.updates.ping()


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        objects = MemoryObjects()

        def spoil(name: str) -> None:
            held = objects.shelf.objects[name]
            held.data = held.data[:-1] + bytes([held.data[-1] ^ 1])

        return Store(objects, MemoryUpdates(objects.shelf), spoil)


class TestMongo(StoreContract):
    @pytest.fixture
    async def store(self, address: StoreAddress) -> AsyncIterator[Store]:
        objects = open_store(address)
        updates = MongoUpdates(address)
        yield Store(objects, updates, lambda name: spoil(objects, name))
        await updates.close()
        objects.close()

    async def test_a_small_update_without_a_good_outcome_is_never_there(self, store):
        """Nor does a later outcome of another activation bring it."""
        for number, ok in enumerate((True, False)):
            key = f"run/r1/c{number}/a0"
            store.objects.hand_in(key, SMALL, run="run", round_no=1)
            with pytest.raises(ObjectMissing):
                store.objects.open(key)
            if ok:  # the first outcome stands
                other = MongoObjects(store.objects._address)
                assert other.publish(outcome(key))
                other.close()
            assert store.objects.publish(replace(outcome(key, activation_id="a2"), ok=ok)) == (not ok)
            assert store.objects.publish(outcome(key)) == ok
            with pytest.raises(ObjectMissing):
                store.objects.open(key)

    async def test_a_handed_in_update_whose_bytes_changed_is_damage(self, store):
        """Whether it is read or only looked at."""
        key = "run/r1/c0/a0"
        store.objects.hand_in(key, SMALL, run="run", round_no=1)
        store.objects.publish(outcome(key))
        change = {"$set": {"update.data": codec.pack(LARGE)[:-1]}}
        store.objects._outcomes.update_one({"_id": key}, change)
        with pytest.raises(ObjectDamaged, match=key):
            store.objects.get(key)
        with pytest.raises(ObjectDamaged, match=key):
            _ = store.objects.open(key).layout

    async def test_damage_elsewhere_does_not_matter(self, store):
        """Each chunk is checked alone: a shard does not need the others."""
        ref = store.objects.put("run/w0", LARGE, run="run", round_no=0)
        store.spoil("run/w0")
        data = codec.pack(LARGE)
        assert b"".join(store.objects.open("run/w0").read(8, 1000)) == data[8:1000]
        with pytest.raises(ObjectDamaged):
            b"".join(store.objects.open("run/w0").read(8, ref.nbytes))

    async def test_what_an_older_version_stored_is_checked_as_a_whole(self, store):
        """It has no sha256 of its chunks, so all of them are read whatever part is wanted."""
        store.objects.put("run/w0", LARGE, run="run", round_no=0)
        store.objects._objects.update_one({"_id": "run/w0"}, {"$unset": {"blocks": 1}})
        data = codec.pack(LARGE)
        assert b"".join(store.objects.open("run/w0").read(8, 1000)) == data[8:1000]
        store.spoil("run/w0")
        with pytest.raises(ObjectDamaged):
            b"".join(store.objects.open("run/w0").read(8, 1000))

    async def test_a_missing_chunk_is_damage(self, store):
        """In the middle, say."""
        store.objects.put_bytes("run/p", [], lambda: iter([bytes(3 * MIB)]), run="run", round_no=1)
        stored = store.objects.open("run/p")
        store.objects._database[f"{store.objects._address.collection}.blobs.chunks"].delete_one({"n": 1})
        with pytest.raises(ObjectDamaged, match="chunk 1 of 3"):
            b"".join(stored.read(0, 3 * MIB))

    async def test_reading_goes_on_when_the_same_bytes_are_stored_again(self, store):
        """Two aggregators of one key: the second takes the first one's blob away, and nobody notices."""
        data = np.random.default_rng(1).bytes(9 * MIB)
        store.objects.put_bytes("run/w1", [], lambda: iter([data]), run="run", round_no=1)
        reading = store.objects.open("run/w1").read(0, len(data))
        begun = next(reading)
        store.objects.put_bytes("run/w1", [], lambda: iter([data]), run="run", round_no=1)
        assert begun + b"".join(reading) == data

    async def test_what_is_written_is_gridfs(self, store):
        """The driver reads it, and what the driver has written is read."""
        data = np.random.default_rng(2).bytes(3 * MIB + 1)
        store.objects.put_bytes("run/w1", [], lambda: iter([data]), run="run", round_no=1)
        manifest = store.objects._objects.find_one({"_id": "run/w1"})
        with store.objects._bucket.open_download_stream(manifest["blob"]) as stream:
            assert (stream.read(), stream.filename) == (data, "run/w1")
        blob = store.objects._bucket.upload_from_stream("other", data)
        store.objects._objects.update_one({"_id": "run/w1"}, {"$set": {"blob": blob}})
        assert b"".join(store.objects.open("run/w1").read(0, len(data))) == data


def spoil(objects: MongoObjects, name: str) -> None:
    """Flip a bit of the object's last byte, wherever it is stored."""
    manifest = objects._objects.find_one({"_id": name})
    assert manifest
    if "data" in manifest:
        data = manifest["data"]
        objects._objects.update_one({"_id": name}, {"$set": {"data": data[:-1] + bytes([data[-1] ^ 1])}})
        return
    chunks = objects._database[f"{objects._address.collection}.blobs.chunks"]
    last = chunks.find_one({"files_id": manifest["blob"]}, sort=[("n", -1)])
    assert last
    data = last["data"]
    chunks.update_one({"_id": last["_id"]}, {"$set": {"data": data[:-1] + bytes([data[-1] ^ 1])}})
