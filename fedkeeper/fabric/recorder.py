"""Writes what becomes of activations: on the event loop, all that came in one of its turns in one commit.

A commit in SQLite's write-ahead log waits for no disk (`synchronous = NORMAL`: only checkpoints do, and they
are the store thread's). It costs less than the two changes of thread that it would take to have it done
elsewhere. Where the store's thread is writing at that moment, the rows are handed to it instead.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_BEGIN: Final = "INSERT INTO activations VALUES (?,?,?,?,0,?,'')"
_END: Final = "REPLACE INTO activations VALUES (?,?,?,?,1,?,?)"
_SLACK: Final = 50  # a fiftieth above a bound, the oldest activations go until it is kept
_CHECKPOINT_ROWS: Final = 400  # some 1000 pages of the log
_Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which ended activations are forgotten: the oldest beyond a count, or beyond a total of bytes."""

    records_max: int = 20_000
    bytes_max: int = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Row:
    sql: str
    values: tuple[Any, ...]
    nbytes: int  # of the record; -1: it has not ended
    done: asyncio.Future[None]


class Recorder:
    """Rows of the table of activations. `ask` has the store's thread do something, in the order of calls."""

    def __init__(
        self, db: sqlite3.Connection, retention: Retention, ask: Callable[[_Work], asyncio.Future[Any]]
    ) -> None:
        """`db`: a connection of the event loop's own."""
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        self._db = db
        self._retention = retention
        self._ask = ask
        self._gathered: list[_Row] = []
        self._rows = 0  # since the last checkpoint
        self._records, self._bytes = _count(db)  # of activations that have ended
        self._forgetting = False

    def begin(self, values: tuple[str, str, str, int, str]) -> asyncio.Future[None]:
        """(id, scope, name, start, what is known of it): it was accepted."""
        return self._write(_BEGIN, values, -1)

    def end(self, values: tuple[str, str, str, int, str, str]) -> asyncio.Future[None]:
        """(id, scope, name, start, summary, record): it has ended."""
        return self._write(_END, values, len(values[5]))

    def close(self) -> None:
        """Write what is left."""
        self._commit()
        self._db.close()

    def _write(self, sql: str, values: tuple[Any, ...], nbytes: int) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        row = _Row(sql, values, nbytes, loop.create_future())
        if not self._gathered:
            loop.call_soon(self._commit)
        self._gathered.append(row)
        return row.done

    def _commit(self) -> None:
        rows, self._gathered = self._gathered, []
        if not rows:
            return
        if self._forgetting:
            self._hand_over(rows)
            return
        try:
            results = _carry_out(self._db, rows)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # the store's thread is writing
                self._hand_over(rows)
                return
            results = [exc] * len(rows)
        except sqlite3.Error as exc:
            results = [exc] * len(rows)
        self._tell(rows, results)

    def _hand_over(self, rows: list[_Row]) -> None:
        def told(asked: asyncio.Future[list[Exception | None]]) -> None:
            if asked.cancelled():
                return
            problem = asked.exception()
            self._tell(rows, [problem] * len(rows) if isinstance(problem, Exception) else asked.result())

        self._ask(lambda db: [_one(db, row) for row in rows]).add_done_callback(told)

    def _tell(self, rows: list[_Row], results: list[Exception | None]) -> None:
        for row, problem in zip(rows, results, strict=True):
            if problem is None and row.nbytes >= 0:
                self._records += 1
                self._bytes += row.nbytes
        self._keep_house(len(rows))
        for row, problem in zip(rows, results, strict=True):
            if row.done.done():
                continue  # nobody waits any more
            if problem is None:
                row.done.set_result(None)
            else:
                row.done.set_exception(problem)

    def _keep_house(self, rows: int) -> None:
        """Before anybody is told: who then reads finds no more than the bounds allow."""
        self._rows += rows
        if self._rows >= _CHECKPOINT_ROWS:
            self._rows = 0
            self._ask(_checkpoint).add_done_callback(_seen)
        kept = self._retention
        if not self._forgetting and (
            self._records > kept.records_max + kept.records_max // _SLACK
            or self._bytes > kept.bytes_max + kept.bytes_max // _SLACK
        ):
            self._forgetting = True
            self._records = self._bytes = 0  # of those that come meanwhile
            self._ask(lambda db: _forget(db, kept)).add_done_callback(self._forgotten)

    def _forgotten(self, asked: asyncio.Future[tuple[int, int]]) -> None:
        self._forgetting = False
        if not asked.cancelled() and asked.exception() is None:
            records, nbytes = asked.result()
            self._records += records
            self._bytes += nbytes


def _carry_out(db: sqlite3.Connection, rows: list[_Row]) -> list[Exception | None]:
    """One commit; what is wrong with each row. Raises if nothing was written."""
    if len(rows) == 1:
        db.execute(rows[0].sql, rows[0].values)
        return [None]
    db.execute("BEGIN IMMEDIATE")
    try:
        results = [_one(db, row) for row in rows]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return results


def _one(db: sqlite3.Connection, row: _Row) -> Exception | None:
    try:
        db.execute(row.sql, row.values)
    except sqlite3.IntegrityError as exc:  # its caller's; the next one is written
        return exc
    return None


def _checkpoint(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _forget(db: sqlite3.Connection, kept: Retention) -> tuple[int, int]:
    db.execute(
        "DELETE FROM activations WHERE id IN (SELECT id FROM (SELECT id,"
        " row_number() OVER newest AS place, sum(length(record)) OVER newest AS nbytes"
        " FROM activations WHERE ended = 1 WINDOW newest AS (ORDER BY start_ms DESC, id))"
        " WHERE place > ? OR nbytes > ?)",
        (kept.records_max, kept.bytes_max),
    )
    return _count(db)


def _count(db: sqlite3.Connection) -> tuple[int, int]:
    sql = "SELECT count(*), coalesce(sum(length(record)), 0) FROM activations WHERE ended = 1"
    found: tuple[int, int] = db.execute(sql).fetchone()
    return found


def _seen(asked: asyncio.Future[Any]) -> None:
    if not asked.cancelled():
        asked.exception()
