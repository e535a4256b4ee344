"""What the fabric remembers, and for how long."""

import asyncio
import sqlite3

import pytest

from fedkeeper.fabric.recorder import Retention
from fedkeeper.fabric.store import Document, Query, Store


def action(name, *, updated_ms=1, blob=""):
    """An action of the namespace `ns`."""
    return Document(kind="action", scope="ns", name=name, updated_ms=updated_ms, body={"n": name}, blob=blob)


@pytest.fixture
async def store(tmp_path):
    """An open store."""
    store = await Store.open(tmp_path / "store", retention=Retention(records_max=50, bytes_max=5_000))
    yield store
    await store.close()


async def test_old_activations_are_forgotten_by_count_and_by_bytes(store):
    """The newest stay, a fiftieth more at most; what still runs is never forgotten."""
    await store.begin("running", "ns", "a", 0, {})
    for number in range(100):
        await store.begin(f"id{number}", "ns", "a", number, {})
        await store.end(f"id{number}", "ns", "a", number, {"n": number}, {"n": number})
    kept = await store.activations(Query(scope="ns", limit=200), full=False)
    assert [item["n"] for item in kept] in [list(range(99, oldest, -1)) for oldest in (49, 48)]
    assert [found for found, _, _ in await store.interrupted()] == ["running"]
    for number in range(100, 110):
        await store.begin(f"id{number}", "ns", "a", number, {})
        await store.end(f"id{number}", "ns", "a", number, {"n": number}, {"n": number, "logs": "x" * 1100})
    kept = await store.activations(Query(scope="ns", limit=200), full=False)
    assert [item["n"] for item in kept] == [109, 108, 107, 106]


async def test_what_is_kept_is_counted_at_the_next_start(tmp_path):
    """The bound holds for what an earlier fabric wrote."""
    for number in range(4):
        store = await Store.open(tmp_path, retention=Retention(records_max=2))
        await store.begin(f"id{number}", "ns", "a", number, {})
        await store.end(f"id{number}", "ns", "a", number, {"n": number}, {"n": number})
        kept = await store.activations(Query(scope="ns"), full=False)
        assert [item["n"] for item in kept] == [n for n in (number, number - 1) if n >= 0]
        await store.close()


async def test_what_gathers_is_committed_together_and_fails_alone(store):
    """A statement that cannot be carried out is its caller's error; those around it are written."""
    asked = [store.begin(f"id{number % 99}", "ns", "a", number, {}) for number in range(100)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 99 + [sqlite3.IntegrityError]
    assert len(await store.interrupted()) == 99


async def test_what_becomes_of_an_activation_is_written_behind_another_writer(store, tmp_path):
    """In the order in which it was said."""
    other = sqlite3.connect(tmp_path / "store" / "fabric.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = store.begin("id", "ns", "a", 1, {})
    await asyncio.sleep(0.05)
    assert not begun.done()
    other.execute("COMMIT")
    await begun
    await store.end("id", "ns", "a", 1, {"n": 1}, {"n": 1})
    assert await store.activation("ns", "id") == {"n": 1}
    other.close()


async def test_documents_are_read_as_they_were_written_last(store):
    """Whether they are read from memory or from disk."""
    for number in range(3):
        await store.put(action("a", updated_ms=number))
        for _ in range(2):
            found = await store.get("action", "ns", "a")
            assert found.updated_ms == number
    assert found.body == {"n": "a"}
    await store.forget("action", before_ms=9)
    assert await store.get("action", "ns", "a") is None


async def test_code_without_a_document_is_deleted_at_the_next_start(tmp_path):
    """And code that one refers to stays."""
    folder = tmp_path / "store"
    store = await Store.open(folder)
    kept, lost = await store.put_blob(b"kept"), await store.put_blob(b"lost")
    await store.put(action("a", blob=kept))
    await store.close()
    store = await Store.open(folder)
    assert await store.blob(kept) == b"kept"
    assert not (folder / "blobs" / lost).exists()
    await store.close()


async def test_a_cancelled_writer_has_written(store):
    """Who asks may go away: what was begun is finished."""
    writing = asyncio.create_task(store.put(action("a")))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await store.get("action", "ns", "a") is not None


async def test_pages_by_name_and_by_time(store):
    """`after` pages by name; `newest` by time of writing."""
    for name, updated_ms in (("a", 3), ("b", 1), ("c", 2)):
        await store.put(action(name, updated_ms=updated_ms))
    assert [d.name for d in await store.newest("action", "ns", skip=0, limit=2)] == ["a", "c"]
    assert [d.name for d in await store.after("action", "ns", name="a", limit=9)] == ["b", "c"]
    await store.forget("action", before_ms=2)
    assert await store.count("action", "ns") == 2
    assert await store.remove("action", "ns", "a")
    assert not await store.remove("action", "ns", "a")
