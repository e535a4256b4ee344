"""Files that were hurt, lost or exchanged: named, with the way out, and never half-read."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedkeeper.errors import JournalDamaged
from fedkeeper.replication.codec import UPGRADE
from fedkeeper.replication.raft.contents import Identity
from fedkeeper.replication.raft.records import REJOIN, Kind, batch, record
from fedkeeper.replication.raft.simulated_disk import Platter
from tests.replication.raft.folders import (
    FOLDER,
    JOURNAL,
    SNAPSHOT,
    begun,
    disk_with,
    entry,
    files_on,
    folder,
    opened,
    other,
    seen,
)

OLD = Path(__file__).parent / "folders"


@pytest.mark.parametrize("path", [JOURNAL, SNAPSHOT], ids=lambda path: path.name)
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(path, flip):
    """The file is named, and the way out; nothing is read in part."""
    files = folder()
    for position in range(len(files[path])):
        hurt = bytearray(files[path])
        hurt[position] ^= flip
        with pytest.raises(JournalDamaged, match=str(path)) as raised:
            opened(disk_with({**files, path: bytes(hurt)}))
        assert raised.value.hint == REJOIN


def test_a_file_that_was_cut_short_is_noticed():
    """Only its last batch is cut off; in the batch that begins a journal, or a snapshot, it is damage."""
    files = folder()
    whole = seen(opened(disk_with(files)))
    first = len(files[JOURNAL]) - len(batch(2, record(Kind.ENTRY, data=entry(6)[0])))
    shorter = seen(opened(disk_with({**files, JOURNAL: files[JOURNAL][:first]})))
    assert shorter[0] == [entry(number) for number in (3, 4, 5)]
    assert shorter[1:] == whole[1:]
    for size in range(len(files[JOURNAL])):
        platter = disk_with({**files, JOURNAL: files[JOURNAL][:size]})
        if size < first:
            with pytest.raises(JournalDamaged, match=r"journal, batch 1 \(byte 0\): not the whole beginning"):
                opened(platter)
        else:
            assert seen(opened(platter)) == shorter
    for size in range(len(files[SNAPSHOT])):
        with pytest.raises(JournalDamaged, match="snapshot: the checksum is wrong"):
            opened(disk_with({**files, SNAPSHOT: files[SNAPSHOT][:size]}))


def test_a_torn_batch_is_told():
    """With its place: a sector that was not written reads as zeros, and the batch before it stays."""
    platter = Platter(1)
    storage = begun(platter, 3)
    storage.add(b"y" * 2000, 4, 1)
    storage.sync()
    files = files_on(platter)
    end = len(files[JOURNAL])
    hole = bytearray(files[JOURNAL])
    hole[1024:1536] = bytes(512)
    with capture_logs() as logs:
        assert opened(disk_with({JOURNAL: bytes(hole)}))[:] == [entry(number) for number in (1, 2, 3)]
    (line,) = logs
    assert line["event"] == "torn batch cut off"
    begin = end - line["bytes"]
    assert line["place"] == f"{JOURNAL} (byte {begin})"
    assert files[JOURNAL][begin : begin + 4] == b"FKB\n"


def test_zeros_before_the_last_batch_are_damage():
    """That batch was acknowledged before the next was begun."""
    platter = Platter(1)
    storage = begun(platter, 3)
    for index in (4, 5):
        storage.add(b"y" * 2000, index, 1)
        storage.sync()
    hole = bytearray(files_on(platter)[JOURNAL])
    hole[512:1024] = bytes(512)
    with pytest.raises(JournalDamaged, match=r"journal, batch 5 \(byte \d+\): the checksum is wrong"):
        opened(disk_with({JOURNAL: bytes(hole)}))


def test_a_header_of_zeros_is_a_torn_batch_only_at_the_end():
    """Its length cannot be read then: a batch with a higher number after it tells."""
    platter = Platter(1)
    storage = begun(platter, 3)
    storage.add(b"", 4, 1)
    before = len(files_on(platter)[JOURNAL])
    # The header of entry 5 begins 8 bytes before a sector does.
    storage.add(b"y" * (-(before + len(batch(3, record(Kind.ENTRY) * 2))) % 512 + 504), 5, 1)
    storage.sync()
    sector = len(files_on(platter)[JOURNAL]) + 8
    assert sector % 512 == 0
    for index in (6, 7):
        storage.add(b"y" * 2000, index, 1)
        storage.sync()
    whole = files_on(platter)[JOURNAL]
    hurt = whole[:sector] + bytes(512) + whole[sector + 512 :]
    with pytest.raises(JournalDamaged, match=rf"\(byte {sector - 8}\): the checksum is wrong"):
        opened(disk_with({JOURNAL: hurt}))
    assert opened(disk_with({JOURNAL: hurt[: sector + 600]}))[-1][1] == 5


def test_a_commit_index_beyond_the_log_is_cut_to_it():
    """It is a hint, and never makes a keeper apply what it does not have."""
    records = BEGIN + record(Kind.ENTRY, index=1) + record(Kind.COMMIT, index=9)
    assert opened(disk_with({JOURNAL: batch(1, records)})).getRaftCommitIndex() == 1
    assert (
        opened(disk_with({JOURNAL: batch(1, BEGIN + record(Kind.COMMIT, index=9))})).getRaftCommitIndex() == 1
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files.pop(JOURNAL), r"journal is missing, and snapshot is there"),
        (lambda files: files.pop(SNAPSHOT), r"journal goes on from entry 4, \S+snapshot is missing"),
        (lambda files: files.update({SNAPSHOT: other(last=3)}), r"from entry 4, \S+snapshot is of entry 3"),
        (lambda files: files.update({SNAPSHOT: other(cluster="d")}), "is of cluster d, journal of c"),
        (lambda files: files.update({SNAPSHOT: other(term=9)}), "its last entries are not the first of"),
        (lambda files: files.update({JOURNAL: b""}), "not the whole beginning of a journal"),
        (lambda files: files.update({JOURNAL: files[JOURNAL] * 2}), "the checksum is wrong"),
    ],
)
def test_files_that_do_not_belong_together_are_named(change, problem):
    """Lost, exchanged, empty, or doubled."""
    files = folder()
    change(files)
    with pytest.raises(JournalDamaged, match=problem):
        opened(disk_with(files))


BEGIN = Identity(name="k1", incarnation="i1", cluster="c").record(Kind.BEGIN)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (record(Kind.TERM), "begins with another record"),
        (BEGIN + BEGIN, "record 2: a journal begins within a journal"),
        (BEGIN + record(Kind.ENTRY, index=2), "record 2: entry 2 where 1 belongs"),
        (
            BEGIN + record(Kind.ENTRY, index=1, term=2) + record(Kind.ENTRY, index=2, term=1),
            "record 3: entry 2 of term 1 after 2",
        ),
        (BEGIN + record(Kind.CUT, index=1), "record 2: cuts off from entry 1, which is not there"),
        (BEGIN + record(Kind.TERM, term=2) + record(Kind.TERM, term=1), "record 3: term 1 after term 2"),
        (BEGIN + b"x", "record 2: it is longer than its batch"),
        (BEGIN + record(Kind.ENTRY, index=1, data=b"ab")[:-1], "record 2: it is longer than its batch"),
        (record(Kind.BEGIN, data=b"{"), "record 1: Input data was truncated"),
    ],
)
def test_records_that_contradict_each_other_are_named(records, problem):
    """Although the checksum is right."""
    with pytest.raises(JournalDamaged, match=rf"journal, batch 1 \(byte 0\).*{problem}"):
        opened(disk_with({JOURNAL: batch(1, records)}))


def test_what_a_newer_version_wrote_is_left_to_it():
    """The hint says so, and the files stay as they are."""
    newer = Identity(v=2, name="k1", incarnation="i1")
    unknown = bytearray(record(Kind.TERM))
    unknown[0] = 99
    later = other().replace(b'"v":1', b'"v":2')
    later = b"%08x " % zlib.crc32(later[9:]) + later[9:]
    for files, problem in (
        ({JOURNAL: batch(1, newer.record(Kind.BEGIN))}, "record 1: version 2 of the journal"),
        ({JOURNAL: batch(1, BEGIN + unknown)}, "record 2: unknown kind of record 99"),
        ({**folder(), SNAPSHOT: later}, "snapshot: RaftSnapshot version 2"),
    ):
        platter = disk_with(files)
        with pytest.raises(JournalDamaged, match=problem) as raised:
            opened(platter)
        assert raised.value.hint == UPGRADE
        assert files_on(platter) == files


def test_folders_of_this_version_are_read_by_later_ones():
    """Written by version 1 of the format; it writes the same bytes still."""
    old = {FOLDER / path.name: path.read_bytes() for path in (OLD / "v1").iterdir()}
    assert sorted(path.name for path in old) == ["journal", "snapshot"]
    storage = opened(disk_with(old))
    assert storage[:] == [entry(number) for number in (3, 4, 5, 6)]
    assert (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (1, "k1")
    snapshot = storage.snapshot()
    assert snapshot is not None
    assert snapshot.state == b"state"
    assert storage.identity == Identity(name="k1", incarnation="i1", cluster="c", founders={"k1": ""})
    assert folder() == old
