"""Disks that refuse and files that were hurt: named, with the way out, and never half-read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedkeeper.errors import JournalDamaged, JournalError, JournalFull, JournalUnconfirmed
from fedkeeper.replication.codec import UPGRADE
from fedkeeper.replication.raft.contents import Identity
from fedkeeper.replication.raft.records import REJOIN, Kind, batch, record
from fedkeeper.replication.raft.simulated_disk import Platter, SimulatedDisk
from fedkeeper.replication.raft.snapshots import Entry, Snapshot
from fedkeeper.replication.raft.storage import Storage

FOLDER = Path("/data/k1")
JOURNAL = FOLDER / "journal"
SNAPSHOT = FOLDER / "snapshot"
OLD = Path(__file__).parent / "folders"


def _entry(index: int) -> Entry:
    return b'{"n":%d}' % index, index, 1


def _opened(platter: Platter, owner: str = "k1") -> Storage:
    return Storage(FOLDER, disk=SimulatedDisk(platter), fsync=True, owner=owner, incarnation=lambda: "i1")


def _begun(platter: Platter, last: int, *, snapshot: int = 0, owner: str = "k1") -> Storage:
    """Three batches, and a snapshot after entry `snapshot`."""
    storage = _opened(platter, owner)
    storage.join("c", {"k1": ""})
    storage.setCurrentTerm(1, "k1")
    for index in range(1, last):
        storage.add(*_entry(index))
    storage.sync()
    if snapshot:
        storage.setRaftCommitIndex(snapshot)
        storage.save_snapshot(b"state", (_entry(snapshot - 1), _entry(snapshot)), {"k1": ""})
    storage.add(*_entry(last))
    storage.sync()
    return storage


def _files(platter: Platter) -> dict[Path, bytes]:
    """As a killed process leaves them."""
    disk = SimulatedDisk(platter)
    return {FOLDER / name: disk.read(FOLDER / name) for name in disk.names(FOLDER)}


def _with(files: Mapping[Path, bytes]) -> Platter:
    platter = Platter(1)
    disk = SimulatedDisk(platter)
    for path, data in files.items():
        disk.append(path, data)
    return platter


def _seen(storage: Storage) -> tuple[object, ...]:
    return (
        storage[:],
        storage.getCurrentTerm(),
        storage.getVotedForNodeId(),
        storage.getRaftCommitIndex(),
        storage.identity,
        storage.snapshot(),
    )


def _folder() -> dict[Path, bytes]:
    platter = Platter(1)
    _begun(platter, 6, snapshot=4)
    return _files(platter)


@pytest.mark.parametrize("path", [JOURNAL, SNAPSHOT], ids=lambda path: path.name)
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(path, flip):
    """The file is named, and the way out; nothing is read in part."""
    files = _folder()
    for position in range(len(files[path])):
        hurt = bytearray(files[path])
        hurt[position] ^= flip
        with pytest.raises(JournalDamaged, match=str(path)) as raised:
            _opened(_with({**files, path: bytes(hurt)}))
        assert raised.value.hint == REJOIN


def test_a_file_that_was_cut_short_is_noticed():
    """Only its last batch is cut off; in the batch that begins a journal, or a snapshot, it is damage."""
    files = _folder()
    whole = _seen(_opened(_with(files)))
    first = len(files[JOURNAL]) - len(batch(2, record(Kind.ENTRY, data=_entry(6)[0])))
    shorter = _seen(_opened(_with({**files, JOURNAL: files[JOURNAL][:first]})))
    assert shorter[0] == [_entry(number) for number in (3, 4, 5)]
    assert shorter[1:] == whole[1:]
    for size in range(len(files[JOURNAL])):
        platter = _with({**files, JOURNAL: files[JOURNAL][:size]})
        if size < first:
            with pytest.raises(JournalDamaged, match=r"journal, batch 1 \(byte 0\): not the whole beginning"):
                _opened(platter)
        else:
            assert _seen(_opened(platter)) == shorter
    for size in range(len(files[SNAPSHOT])):
        with pytest.raises(JournalDamaged, match="snapshot: the checksum is wrong"):
            _opened(_with({**files, SNAPSHOT: files[SNAPSHOT][:size]}))


def test_a_torn_batch_is_told():
    """With its place: a sector that was not written reads as zeros, and the batch before it stays."""
    platter = Platter(1)
    storage = _begun(platter, 3)
    storage.add(b"y" * 2000, 4, 1)
    storage.sync()
    files = _files(platter)
    end = len(files[JOURNAL])
    hole = bytearray(files[JOURNAL])
    hole[1024:1536] = bytes(512)
    with capture_logs() as logs:
        assert _opened(_with({JOURNAL: bytes(hole)}))[:] == [_entry(number) for number in (1, 2, 3)]
    (line,) = logs
    assert line["event"] == "torn batch cut off"
    begin = end - line["bytes"]
    assert line["place"] == f"{JOURNAL} (byte {begin})"
    assert files[JOURNAL][begin : begin + 4] == b"FKB\n"


def test_zeros_before_the_last_batch_are_damage():
    """That batch was acknowledged before the next was begun."""
    platter = Platter(1)
    storage = _begun(platter, 3)
    for index in (4, 5):
        storage.add(b"y" * 2000, index, 1)
        storage.sync()
    hole = bytearray(_files(platter)[JOURNAL])
    hole[512:1024] = bytes(512)
    with pytest.raises(JournalDamaged, match=r"journal, batch 5 \(byte \d+\): the checksum is wrong"):
        _opened(_with({JOURNAL: bytes(hole)}))


def test_a_header_of_zeros_is_a_torn_batch_only_at_the_end():
    """Its length cannot be read then: a batch with a higher number after it tells."""
    platter = Platter(1)
    storage = _begun(platter, 3)
    ends = []
    for index in (4, 5, 6):
        storage.add(b"y" * 2000, index, 1)
        storage.sync()
        ends.append(len(_files(platter)[JOURNAL]))
    sector = ends[0] - ends[0] % 512
    hole = bytearray(_files(platter)[JOURNAL])
    hole[sector : sector + 512] = bytes(512)
    with pytest.raises(JournalDamaged, match=r"journal, batch \d+ \(byte \d+\): the checksum is wrong"):
        _opened(_with({JOURNAL: bytes(hole)}))
    hole = bytearray(_files(platter)[JOURNAL][: ends[0]] + bytes(600))
    assert _opened(_with({JOURNAL: bytes(hole)}))[-1][1] == 4


def test_a_commit_index_beyond_the_log_is_cut_to_it():
    """It is a hint, and never makes a keeper apply what it does not have."""
    records = BEGIN + record(Kind.ENTRY, index=1) + record(Kind.COMMIT, index=9)
    assert _opened(_with({JOURNAL: batch(1, records)})).getRaftCommitIndex() == 1
    assert _opened(_with({JOURNAL: batch(1, BEGIN + record(Kind.COMMIT, index=9))})).getRaftCommitIndex() == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files.pop(JOURNAL), r"journal is missing, and snapshot is there"),
        (lambda files: files.pop(SNAPSHOT), r"journal goes on from entry 4, \S+snapshot is missing"),
        (lambda files: files.update({SNAPSHOT: _other(last=3)}), r"from entry 4, \S+snapshot is of entry 3"),
        (lambda files: files.update({SNAPSHOT: _other(cluster="d")}), "is of cluster d, journal of c"),
        (lambda files: files.update({SNAPSHOT: _other(term=9)}), "its last entries are not the first of"),
        (lambda files: files.update({JOURNAL: b""}), "not the whole beginning of a journal"),
        (lambda files: files.update({JOURNAL: files[JOURNAL] * 2}), "the checksum is wrong"),
    ],
)
def test_files_that_do_not_belong_together_are_named(change, problem):
    """Lost, exchanged, empty, or doubled."""
    files = _folder()
    change(files)
    with pytest.raises(JournalDamaged, match=problem):
        _opened(_with(files))


def _other(*, last: int = 4, cluster: str = "c", term: int = 1) -> bytes:
    entries = (_entry(last - 1), (b"other", last, term))
    return Snapshot(
        cluster=cluster, previous=entries[0], last=entries[1], members={}, state=b"state"
    ).encode()


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
        _opened(_with({JOURNAL: batch(1, records)}))


def test_what_a_newer_version_wrote_is_left_to_it():
    """The hint says so, and the files stay as they are."""
    newer = Identity(v=2, name="k1", incarnation="i1")
    unknown = bytearray(record(Kind.TERM))
    unknown[0] = 99
    later = _other().replace(b'"v":1', b'"v":2')
    later = b"%08x " % zlib.crc32(later[9:]) + later[9:]
    for files, problem in (
        ({JOURNAL: batch(1, newer.record(Kind.BEGIN))}, "record 1: version 2 of the journal"),
        ({JOURNAL: batch(1, BEGIN + unknown)}, "record 2: unknown kind of record 99"),
        ({**_folder(), SNAPSHOT: later}, "snapshot: RaftSnapshot version 2"),
    ):
        platter = _with(files)
        with pytest.raises(JournalDamaged, match=problem) as raised:
            _opened(platter)
        assert raised.value.hint == UPGRADE
        assert _files(platter) == files


def _with_an_unsynced_entry(platter: Platter) -> Storage:
    storage = _begun(platter, 3)
    storage.add(b"y" * 100, 4, 1)
    return storage


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_refuses_stops_the_keeper(fault):
    """Nothing of the batch stays on disk, and nothing more is written, even when there is space again."""
    platter = Platter(1)
    storage = _with_an_unsynced_entry(platter)
    before = _files(platter)
    platter.space_bytes = sum(map(len, before.values())) + 50
    platter.read_only = fault == "read-only"
    with pytest.raises(JournalFull, match="No space left" if fault == "full" else "Read-only"):
        storage.sync()
    assert (storage.durable_index, _files(platter)) == (3, before)
    platter.space_bytes, platter.read_only = None, False
    for act in (storage.sync, storage.caught_up, lambda: storage.join("c", {})):
        with pytest.raises(JournalFull):
            act()
    storage.close()
    assert _files(platter) == before
    assert _opened(platter)[:] == [_entry(number) for number in (1, 2, 3)]


def test_an_fsync_that_failed_is_not_tried_again():
    """The next would say that all is well. What the start finds then is there to stay."""
    for seed in range(60):
        platter = Platter(seed)
        storage = _with_an_unsynced_entry(platter)
        platter.sync_fails = True
        with pytest.raises(JournalUnconfirmed, match="journal: Input/output error"):
            storage.sync()
        platter.sync_fails = False
        with pytest.raises(JournalUnconfirmed):
            storage.sync()
        assert storage.durable_index == 3
        storage.close()
        found = _opened(platter)[:]
        assert found[:3] == [_entry(number) for number in (1, 2, 3)]
        platter.cut_power()
        assert _opened(platter)[:] == found


def test_a_snapshot_that_cannot_be_written_is_left():
    """The log goes on as it is, and no part of a file stays behind."""
    platter = Platter(1)
    storage = _begun(platter, 6)
    before = _files(platter)
    platter.space_bytes = sum(map(len, before.values())) + 200
    pending = storage.begin_snapshot(b"s" * 1000, (_entry(3), _entry(4)), {})
    with pytest.raises(JournalFull, match=r"snapshot.1.new cannot be written: No space left"):
        pending.write()
    assert _files(platter) == before
    storage.add(*_entry(7))
    storage.sync()
    assert storage.durable_index == 7


def test_a_journal_that_cannot_be_begun_anew_stops_the_keeper():
    """With the snapshot in place and the old journal: the next start goes on from both."""
    platter = Platter(1)
    storage = _begun(platter, 6)
    pending = storage.begin_snapshot(b"state", (_entry(3), _entry(4)), {})
    pending.write()
    platter.space_bytes = sum(map(len, _files(platter).values())) + 10
    for _ in range(2):
        with pytest.raises(JournalFull, match=r"journal\.new cannot be written"):
            storage.finish(pending)
        with pytest.raises(JournalFull):
            storage.sync()
    storage.close()
    platter.space_bytes = None
    storage = _opened(platter)
    assert (storage.snapshot_index, storage[:]) == (4, [_entry(number) for number in (3, 4, 5, 6)])


def test_a_snapshot_that_was_not_synced_is_at_the_next_start():
    """By a keeper that was told to do without fsync, and no longer is."""
    for seed in range(30):
        platter = Platter(seed)
        storage = Storage(FOLDER, disk=SimulatedDisk(platter), fsync=False, owner="k1")
        storage.join("c", {})
        for index in (1, 2, 3):
            storage.add(*_entry(index))
        storage.save_snapshot(b"state", (_entry(2), _entry(3)), {})
        storage.close()
        before = _seen(_opened(platter))
        platter.cut_power()
        assert _seen(_opened(platter)) == before


def test_snapshots_may_overtake_each_other():
    """What came while one was written is kept; one that is older than what is there by then is left."""
    platter = Platter(1)
    storage = _begun(platter, 6)
    slow = storage.begin_snapshot(b"4", (_entry(3), _entry(4)), {})
    quick = storage.begin_snapshot(b"5", (_entry(4), _entry(5)), {})
    for pending in (slow, quick):
        pending.write()
        storage.add(*_entry(storage[-1][1] + 1))
    assert storage.finish(quick)
    assert not storage.finish(slow)
    assert sorted(path.name for path in _files(platter)) == ["journal", "snapshot"]
    assert storage[:] == [_entry(number) for number in (4, 5, 6, 7, 8)]
    storage._files._disk.close()
    assert _opened(platter)[:] == [_entry(number) for number in (4, 5, 6, 7, 8)]


def test_a_batch_that_can_be_neither_written_nor_taken_back_is_told_as_such(monkeypatch):
    """Only the next start can tell; the part that is there was never acknowledged, and is cut off."""
    platter = Platter(1)
    storage = _with_an_unsynced_entry(platter)
    whole = _files(platter)[JOURNAL]
    platter.space_bytes = len(whole) + 50

    def refuse(disk: SimulatedDisk, path: Path, size: int) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(SimulatedDisk, "truncate", refuse)
    with pytest.raises(JournalUnconfirmed, match="journal: Input/output error"):
        storage.sync()
    storage.close()
    assert len(_files(platter)[JOURNAL]) == len(whole) + 50
    platter.space_bytes = None
    assert _opened(platter)[:] == [_entry(number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "act",
    [
        lambda storage: storage.clear(),
        lambda storage: storage.deleteEntriesTo(1),
        lambda storage: storage.setCurrentTerm(0, None),
        lambda storage: storage.setCurrentTerm(1, "k2"),
        lambda storage: storage.setCurrentTerm(1, None),
        lambda storage: storage.join("d", {}),
    ],
)
def test_what_raft_forbids_is_refused(act: Callable[[Storage], None]):
    """To forget entries, to go back a term, to vote twice, to change the cluster. Nothing has changed."""
    platter = Platter(1)
    storage = _begun(platter, 3)
    before = _seen(storage)
    with pytest.raises(JournalError):
        act(storage)
    assert not storage.dirty
    assert _seen(storage) == before


def test_a_newcomer_is_one_until_it_has_what_it_misses():
    """Also after a restart."""
    platter = Platter(1)
    storage = _opened(platter)
    storage.join("c", {"k1": "", "k2": "h:1"}, newcomer_until=2)
    storage.add(*_entry(1))
    with pytest.raises(JournalError, match="entry 2 is still missing"):
        storage.caught_up()
    storage.close()
    storage = _opened(platter)
    assert storage.identity.newcomer_until == 2
    storage.add(*_entry(2))
    storage.caught_up()
    platter.cut_power()
    storage = _opened(platter)
    assert (storage.identity.newcomer_until, storage.durable_index) == (0, 2)
    assert storage.identity.founders == {"k1": "", "k2": "h:1"}


def test_another_cluster_s_snapshot_is_refused():
    """And one that is no newer than what is committed here changes nothing."""
    storage = _begun(Platter(1), 6)
    with pytest.raises(JournalError, match="that k2 sent is of cluster 'd', this keeper of 'c'"):
        storage.install_snapshot(_other(cluster="d"), "k2")
    storage.setRaftCommitIndex(4)
    assert storage.install_snapshot(_other(), "k2") is None
    assert len(storage) == 6


def test_entries_after_an_installed_snapshot_are_kept_only_if_they_follow_from_it():
    """Raft, figure 13: with the same term at its end they do, with another they are a lost leader's."""
    storage = _begun(Platter(1), 6)
    assert storage.install_snapshot(_other(last=4), "k2")
    assert storage[2:] == [_entry(5), _entry(6)]
    storage = _begun(Platter(1), 6)
    storage.setCurrentTerm(2, None)
    assert storage.install_snapshot(_other(last=4, term=2), "k2")
    assert storage[:] == [_entry(3), (b"other", 4, 2)]
    storage = _begun(Platter(1), 6)
    assert storage.install_snapshot(_other(last=9, term=3), "k2")
    assert (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (3, None)


def test_folders_of_this_version_are_read_by_later_ones():
    """Written by version 1 of the format; it writes the same bytes still."""
    old = {FOLDER / path.name: path.read_bytes() for path in (OLD / "v1").iterdir()}
    assert sorted(path.name for path in old) == ["journal", "snapshot"]
    storage = _opened(_with(old))
    assert storage[:] == [_entry(number) for number in (3, 4, 5, 6)]
    assert (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (1, "k1")
    snapshot = storage.snapshot()
    assert snapshot is not None
    assert snapshot.state == b"state"
    assert storage.identity == Identity(name="k1", incarnation="i1", cluster="c", founders={"k1": ""})
    assert _folder() == old
