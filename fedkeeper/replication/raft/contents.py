"""What the records of a journal say: who the keeper is, its term and vote, its entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fedkeeper.errors import JournalDamaged
from fedkeeper.replication.codec import UPGRADE
from fedkeeper.replication.raft.records import Kind, Record, damaged, record
from fedkeeper.replication.raft.snapshots import Entry, Snapshot

VERSION: Final = 1


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who a keeper is, for as long as its folder lives."""

    v: int = VERSION
    name: str
    incarnation: str  # made when the folder was found empty
    cluster: str = ""  # the cluster's id; empty: has never been in one
    founders: dict[str, str] = {}  # its first members, name -> address: before the first entry of its log
    newcomer_until: int = 0  # neither votes nor campaigns until it has this entry; 0: it may

    def record(self, kind: Kind, *, index: int = 0) -> bytes:
        """The record that says so."""
        return record(kind, index=index, data=msgspec.json.encode(self))


@dataclass(slots=True)
class Contents:
    """All that a keeper has on disk but the snapshot's state."""

    identity: Identity
    base: int = 0  # index of the snapshot that the entries go on from; 0: none
    term: int = 0
    voted: str | None = None
    commit: int = 1  # a hint: at least this is committed
    entries: list[Entry] = field(default_factory=list)  # from 1; with a snapshot, from the last but one in it

    @property
    def last_index(self) -> int:
        """Of the last entry; 0: there is none."""
        return self.entries[-1][1] if self.entries else 0

    def records(self) -> bytes:
        """All of it, as the beginning of a journal."""
        vote = (self.voted or "").encode()
        parts = [self.identity.record(Kind.BEGIN, index=self.base)]
        parts.append(record(Kind.TERM, term=self.term, data=vote))
        parts.extend(record(Kind.ENTRY, index=i, term=t, data=command) for command, i, t in self.entries)
        parts.append(record(Kind.COMMIT, index=self.commit))
        return b"".join(parts)

    def go_on_from(self, snapshot: Snapshot) -> None:
        """Let `snapshot`, which is not older than the base, take the place of the entries in it.

        The entries after it are kept if they follow from it: if its last one is here, with the same term.
        Otherwise they are those of a leader that lost, and go (Raft, figure 13).
        """
        after: list[Entry] = []
        position = snapshot.index - self.entries[0][1] if self.entries else -1
        if 0 <= position < len(self.entries) and self.entries[position][2] == snapshot.term:
            after = self.entries[position + 1 :]
        self.entries = [snapshot.previous, snapshot.last, *after]
        self.base = snapshot.index
        self.commit = max(self.commit, snapshot.index)
        if self.term < snapshot.term:  # it has not voted in that term: that would be on disk
            self.term, self.voted = snapshot.term, None


def replay(records: Iterable[Record]) -> Contents:
    """Follow `records`, the first of which is a BEGIN. Raises JournalDamaged."""
    first, *rest = records
    contents = Contents(identity=_identity(first), base=first.index)
    for item in rest:
        _follow(contents, item)
    contents.commit = max(1, min(contents.commit, contents.last_index))
    return contents


def _follow(contents: Contents, item: Record) -> None:
    entries = contents.entries
    following = entries[-1][1] + 1 if entries else max(1, contents.base - 1)
    match item.kind:
        case Kind.ENTRY:
            if item.index != following:
                raise damaged(f"{item.place}: entry {item.index} where {following} belongs")
            if entries and item.term < entries[-1][2]:
                raise damaged(f"{item.place}: entry {item.index} of term {item.term} after {entries[-1][2]}")
            entries.append((item.data, item.index, item.term))
        case Kind.CUT:
            if not entries or not entries[0][1] <= item.index < following:
                raise damaged(f"{item.place}: cuts off from entry {item.index}, which is not there")
            del entries[item.index - entries[0][1] :]
        case Kind.TERM:
            if item.term < contents.term:
                raise damaged(f"{item.place}: term {item.term} after term {contents.term}")
            contents.term, contents.voted = item.term, item.data.decode() or None
        case Kind.COMMIT:
            contents.commit = item.index
        case Kind.IDENTITY:
            contents.identity = _identity(item)
        case Kind.BEGIN:
            raise damaged(f"{item.place}: a journal begins within a journal")


def _identity(item: Record) -> Identity:
    try:
        if (version := msgspec.json.decode(item.data, type=_Version).v) != VERSION:
            raise JournalDamaged(f"{item.place}: version {version} of the journal", hint=UPGRADE)
        return msgspec.json.decode(item.data, type=Identity)
    except msgspec.MsgspecError as exc:
        raise JournalDamaged(f"{item.place}: {exc}", hint=UPGRADE) from exc


class _Version(msgspec.Struct):
    v: int
