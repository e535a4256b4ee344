"""What the fabric remembers: functions, operations and activations in SQLite (WAL), code as files by sha256.

One thread owns the connection; methods hand their statements to it, so that no disk is waited for on the
event loop. What has gathered meanwhile is committed together. What becomes of activations is written by the
recorder, which has its own connection. A call that has returned survives kill -9 of the fabric.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from fedkeeper.fabric.recorder import Recorder, Retention

T = TypeVar("T")
_ENCODER: Final = msgspec.json.Encoder()

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS documents (
  kind TEXT NOT NULL, scope TEXT NOT NULL, name TEXT NOT NULL, updated_ms INTEGER NOT NULL,
  revision TEXT NOT NULL, blob TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, scope, name));
CREATE TABLE IF NOT EXISTS activations (
  id TEXT PRIMARY KEY, scope TEXT NOT NULL, name TEXT NOT NULL, start_ms INTEGER NOT NULL,
  ended INTEGER NOT NULL, summary TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS activations_by_start ON activations (scope, start_ms DESC);
CREATE INDEX IF NOT EXISTS activations_running ON activations (ended) WHERE ended = 0;
"""
_FILE: Final = "fabric.sqlite"
_BUSY_S: Final = 5.0  # for the recorder to end a commit
_BATCH_MAX: Final = 256  # statements committed together
_CACHED_MAX: Final = 4096  # documents kept in memory
_CACHED_BYTES_MAX: Final = 64 * 1024  # of one such document's body
_Row = tuple[str, str, str, int, str, str, str]  # of the table of documents
_Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """An action, a Cloud Function, an operation or an upload: `body` is the API's own JSON object."""

    kind: str  # action | function | operation | upload
    scope: str  # namespace, "projects/p/locations/l", or the project
    name: str
    updated_ms: int
    body: Mapping[str, Any]
    revision: str = ""
    blob: str = ""  # sha256 of its code


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which activations of a namespace, newest start first. Times are Unix ms, inclusive."""

    scope: str
    name: str = ""
    since_ms: int | None = None
    upto_ms: int | None = None
    skip: int = 0
    limit: int = 30


class Store:
    """Opened once by the fabric's process; see the module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._cached: dict[tuple[str, str, str], Document] = {}  # changed by the store's thread only
        self._recorder: Recorder

    @classmethod
    async def open(cls, folder: Path, *, retention: Retention | None = None) -> Self:
        """Open or create the store in `folder`; code that nothing refers to any more is deleted."""
        self = cls(folder)
        loop = asyncio.get_running_loop()
        db = await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._work, args=(loop, db), name="fabric-store", daemon=True)
        self._thread.start()
        self._recorder = await asyncio.to_thread(
            lambda: Recorder(self._connect(timeout_s=0), retention or Retention(), self._ask)
        )
        return self

    async def close(self) -> None:
        """Write everything out and give the files back."""
        if self._thread is not None:
            self._recorder.close()
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
        self._thread = None

    # --- documents

    async def put(self, document: Document) -> None:
        """Write the document in place of the one of its kind, scope and name."""
        row = (
            document.kind, document.scope, document.name, document.updated_ms,
            document.revision, document.blob, json.dumps(document.body),
        )  # fmt: skip
        await self._run(lambda db: self._put(db, row))

    async def get(self, kind: str, scope: str, name: str) -> Document | None:
        """The document, or None if there is none."""
        found = self._cached.get((kind, scope, name))
        if found is None:
            found = await self._run(lambda db: self._get(db, (kind, scope, name)))
        return found

    async def remove(self, kind: str, scope: str, name: str) -> bool:
        """Delete it; False if there was none."""
        return await self._run(lambda db: self._remove(db, (kind, scope, name)))

    async def forget(self, kind: str, *, before_ms: int) -> None:
        """Delete the documents of a kind that were last written before that time."""
        await self._run(lambda db: self._forget(db, kind, before_ms))

    async def newest(self, kind: str, scope: str, *, skip: int, limit: int) -> list[Document]:
        """A page of the documents of one scope, last updated first."""
        where = "kind = ? AND scope = ? ORDER BY updated_ms DESC, name LIMIT ? OFFSET ?"
        return await self._run(lambda db: _documents(db, where, (kind, scope, limit, skip)))

    async def after(self, kind: str, scope: str, *, name: str, limit: int) -> list[Document]:
        """A page of the documents of one scope whose names sort after `name`. Scope "" means all."""
        where = "kind = ? AND (scope = ? OR ? = '') AND name > ? ORDER BY name LIMIT ?"
        return await self._run(lambda db: _documents(db, where, (kind, scope, scope, name, limit)))

    async def count(self, kind: str, scope: str) -> int:
        """How many documents the scope has."""
        sql = "SELECT count(*) FROM documents WHERE kind = ? AND scope = ?"
        return await self._run(lambda db: int(db.execute(sql, (kind, scope)).fetchone()[0]))

    # --- code

    async def put_blob(self, content: bytes) -> str:
        """Keep `content`; returns its sha256, by which `blob` finds it."""
        return await self._run(lambda _: self._write_blob(content))

    async def blob(self, sha256: str) -> bytes:
        """What was kept under `sha256`."""
        return await self._run(lambda _: (self._folder / "blobs" / sha256).read_bytes())

    # --- activations

    def begin(
        self, activation_id: str, scope: str, name: str, start_ms: int, body: object
    ) -> asyncio.Future[None]:
        """Note that an activation was accepted; `body` is what is known of it, for `interrupted`.

        Asked for when this returns, written when it is awaited.
        """
        return self._recorder.begin((activation_id, scope, name, start_ms, _text(body)))

    async def end(
        self, activation_id: str, scope: str, name: str, start_ms: int, summary: object, record: object
    ) -> None:
        """Write how it went, `begin` or not: `summary` for lists, `record` in full."""
        await self._recorder.end((activation_id, scope, name, start_ms, _text(summary), _text(record)))

    async def activation(self, scope: str, activation_id: str) -> dict[str, Any] | None:
        """The full record; None while it runs, or if there is none."""
        sql = "SELECT record FROM activations WHERE id = ? AND scope = ? AND ended = 1"
        row = await self._run(lambda db: db.execute(sql, (activation_id, scope)).fetchone())
        return None if row is None else _object(row[0])

    async def activations(self, query: Query, *, full: bool) -> list[dict[str, Any]]:
        """Ended activations: summaries, or full records."""
        where, values = _where(query)
        column = "record" if full else "summary"
        order = "ORDER BY start_ms DESC, id LIMIT ? OFFSET ?"
        sql = f"SELECT {column} FROM activations WHERE {where} {order}"  # noqa: S608 - constants only
        rows = await self._run(lambda db: db.execute(sql, (*values, query.limit, query.skip)).fetchall())
        return [_object(row[0]) for row in rows]

    async def count_activations(self, query: Query) -> int:
        """How many ended activations match, `skip` of them left out."""
        where, values = _where(query)
        sql = f"SELECT count(*) FROM activations WHERE {where}"  # noqa: S608 - constants only
        row = await self._run(lambda db: db.execute(sql, values).fetchone())
        return max(0, int(row[0]) - query.skip)

    async def interrupted(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(id, name, what `begin` was told) of activations that never ended: a fabric before us died."""
        sql = "SELECT id, name, summary FROM activations WHERE ended = 0"
        rows = await self._run(lambda db: db.execute(sql).fetchall())
        return [(row[0], row[1], _object(row[2])) for row in rows]

    # --- on the store's thread

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on the store's thread, committed; done even when the caller is cancelled."""
        return await self._ask(work)

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """The same, in the order of the calls. To cancel what this returns is not to be told, no more."""
        assert self._thread is not None, "the store is closed"
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((work, done))
        return done

    def _work(self, loop: asyncio.AbstractEventLoop, db: sqlite3.Connection) -> None:
        """The store's thread: do what is asked for until None is."""
        with contextlib.closing(db):
            while True:
                batch = [self._jobs.get()]
                with contextlib.suppress(queue.Empty):
                    while batch[-1] is not None and len(batch) < _BATCH_MAX:
                        batch.append(self._jobs.get_nowait())
                jobs = [job for job in batch if job is not None]
                if jobs:
                    loop.call_soon_threadsafe(_tell, jobs, self._transact(db, [work for work, _ in jobs]))
                if batch[-1] is None:
                    return

    def _transact(
        self, db: sqlite3.Connection, works: list[Callable[[sqlite3.Connection], Any]]
    ) -> list[Any]:
        """The result of each, or the exception with which it failed. A failed statement changes nothing."""
        results: list[Any] = []
        try:
            if len(works) > 1:  # one alone commits itself
                db.execute("BEGIN IMMEDIATE")  # the recorder may write in between what is read and written
            for work in works:
                try:
                    results.append(work(db))
                except Exception as exc:  # noqa: BLE001 - the caller's, and the next one is served
                    results.append(exc)
            if len(works) > 1:
                db.execute("COMMIT")  # fails too if a full disk has ended the transaction before
        except sqlite3.Error as exc:
            self._cached.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [exc] * len(works)
        return results

    def _open(self) -> sqlite3.Connection:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / "blobs").mkdir(mode=0o700, exist_ok=True)
        file = self._folder / _FILE
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        db = self._connect(timeout_s=_BUSY_S)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        wanted = {row[0] for row in db.execute("SELECT DISTINCT blob FROM documents")}
        for blob in (self._folder / "blobs").iterdir():
            if blob.name not in wanted:
                blob.unlink()
        return db

    def _connect(self, *, timeout_s: float) -> sqlite3.Connection:
        file = self._folder / _FILE
        return sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=timeout_s)

    def _put(self, db: sqlite3.Connection, row: _Row) -> None:
        self._cached.pop(row[:3], None)
        db.execute("REPLACE INTO documents VALUES (?,?,?,?,?,?,?)", row)
        self._cache(row)

    def _get(self, db: sqlite3.Connection, key: tuple[str, str, str]) -> Document | None:
        sql = "SELECT * FROM documents WHERE kind = ? AND scope = ? AND name = ?"
        row: _Row | None = db.execute(sql, key).fetchone()
        return None if row is None else self._cache(row)

    def _remove(self, db: sqlite3.Connection, key: tuple[str, str, str]) -> bool:
        self._cached.pop(key, None)
        sql = "DELETE FROM documents WHERE kind = ? AND scope = ? AND name = ?"
        return db.execute(sql, key).rowcount > 0

    def _forget(self, db: sqlite3.Connection, kind: str, before_ms: int) -> None:
        self._cached.clear()
        db.execute("DELETE FROM documents WHERE kind = ? AND updated_ms < ?", (kind, before_ms))

    def _cache(self, row: _Row) -> Document:
        document = _document(row)
        if len(row[6]) <= _CACHED_BYTES_MAX:
            if len(self._cached) >= _CACHED_MAX:
                del self._cached[next(iter(self._cached))]
            self._cached[row[:3]] = document
        return document

    def _write_blob(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._folder / "blobs" / sha256
        if not path.exists():
            scratch = path.with_name(f"{sha256}.{threading.get_ident()}")
            scratch.write_bytes(content)
            scratch.replace(path)
        return sha256


def _tell(jobs: list[_Job], results: list[Any]) -> None:
    """Give each caller its result, on the event loop."""
    for (_, done), result in zip(jobs, results, strict=True):
        if done.done():
            continue
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)


def _documents(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[Document]:
    rows = db.execute(f"SELECT * FROM documents WHERE {where}", values)  # noqa: S608 - constants only
    return [_document(row) for row in rows]


def _document(row: _Row) -> Document:
    kind, scope, name, at, revision, blob, body = row
    return Document(
        kind=kind, scope=scope, name=name, updated_ms=at, revision=revision, blob=blob, body=_object(body)
    )


def _where(query: Query) -> tuple[str, tuple[Any, ...]]:
    terms: list[str] = ["scope = ?", "ended = 1"]
    values: list[Any] = [query.scope]
    for term, value in (
        ("name = ?", query.name or None), ("start_ms >= ?", query.since_ms), ("start_ms <= ?", query.upto_ms)
    ):  # fmt: skip
        if value is not None:
            terms.append(term)
            values.append(value)
    return " AND ".join(terms), tuple(values)


def _text(value: object) -> str:
    """JSON. msgspec takes a tenth of the time; what it has no form of (large integers) json has."""
    try:
        return _ENCODER.encode(value).decode()
    except (ValueError, OverflowError):
        return json.dumps(value)


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value
