"""Disks that refuse, and what a keeper must refuse: nothing more is written, what was synced stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedkeeper.errors import JournalError, JournalFull, JournalUnconfirmed
from fedkeeper.replication.raft.simulated_disk import Platter, SimulatedDisk
from fedkeeper.replication.raft.storage import Storage
from tests.replication.raft.folders import (
    FOLDER,
    JOURNAL,
    begun,
    entry,
    files_on,
    opened,
    other,
    seen,
)


def _with_an_unsynced_entry(platter: Platter) -> Storage:
    storage = begun(platter, 3)
    storage.add(b"y" * 100, 4, 1)
    return storage


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_refuses_stops_the_keeper(fault):
    """Nothing of the batch stays on disk, and nothing more is written, even when there is space again."""
    platter = Platter(1)
    storage = _with_an_unsynced_entry(platter)
    before = files_on(platter)
    platter.space_bytes = sum(map(len, before.values())) + 50
    platter.read_only = fault == "read-only"
    with pytest.raises(JournalFull, match="No space left" if fault == "full" else "Read-only"):
        storage.sync()
    assert (storage.durable_index, files_on(platter)) == (3, before)
    platter.space_bytes, platter.read_only = None, False
    for act in (storage.sync, storage.caught_up, lambda: storage.join("c", {})):
        with pytest.raises(JournalFull):
            act()
    storage.close()
    assert files_on(platter) == before
    assert opened(platter)[:] == [entry(number) for number in (1, 2, 3)]


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
        found = opened(platter)[:]
        assert found[:3] == [entry(number) for number in (1, 2, 3)]
        platter.cut_power()
        assert opened(platter)[:] == found


def test_a_snapshot_that_cannot_be_written_is_left():
    """The log goes on as it is, and no part of a file stays behind."""
    platter = Platter(1)
    storage = begun(platter, 6)
    before = files_on(platter)
    platter.space_bytes = sum(map(len, before.values())) + 200
    pending = storage.begin_snapshot(b"s" * 1000, (entry(3), entry(4)), {})
    with pytest.raises(JournalFull, match=r"snapshot.1.new cannot be written: No space left"):
        pending.write()
    assert files_on(platter) == before
    storage.add(*entry(7))
    storage.sync()
    assert storage.durable_index == 7


def test_a_journal_that_cannot_be_begun_anew_stops_the_keeper():
    """With the snapshot in place and the old journal: the next start goes on from both."""
    platter = Platter(1)
    storage = begun(platter, 6)
    pending = storage.begin_snapshot(b"state", (entry(3), entry(4)), {})
    pending.write()
    platter.space_bytes = sum(map(len, files_on(platter).values())) + 10
    for _ in range(2):
        with pytest.raises(JournalFull, match=r"journal\.new cannot be written"):
            storage.finish(pending)
        with pytest.raises(JournalFull):
            storage.sync()
    storage.close()
    platter.space_bytes = None
    storage = opened(platter)
    assert (storage.snapshot_index, storage[:]) == (4, [entry(number) for number in (3, 4, 5, 6)])


def test_a_snapshot_that_was_not_synced_is_at_the_next_start():
    """By a keeper that was told to do without fsync, and no longer is."""
    for seed in range(30):
        platter = Platter(seed)
        storage = Storage(FOLDER, disk=SimulatedDisk(platter), fsync=False, owner="k1")
        storage.join("c", {})
        for index in (1, 2, 3):
            storage.add(*entry(index))
        storage.save_snapshot(b"state", (entry(2), entry(3)), {})
        storage.close()
        before = seen(opened(platter))
        platter.cut_power()
        assert seen(opened(platter)) == before


def test_snapshots_may_overtake_each_other():
    """What came while one was written is kept; one that is older than what is there by then is left."""
    platter = Platter(1)
    storage = begun(platter, 6)
    slow = storage.begin_snapshot(b"4", (entry(3), entry(4)), {})
    quick = storage.begin_snapshot(b"5", (entry(4), entry(5)), {})
    for pending in (slow, quick):
        pending.write()
        storage.add(*entry(storage[-1][1] + 1))
    assert storage.finish(quick)
    assert not storage.finish(slow)
    assert sorted(path.name for path in files_on(platter)) == ["journal", "snapshot"]
    assert storage[:] == [entry(number) for number in (4, 5, 6, 7, 8)]
    storage._files._disk.close()
    assert opened(platter)[:] == [entry(number) for number in (4, 5, 6, 7, 8)]


def test_a_batch_that_can_be_neither_written_nor_taken_back_is_told_as_such(monkeypatch):
    """Only the next start can tell; the part that is there was never acknowledged, and is cut off."""
    platter = Platter(1)
    storage = _with_an_unsynced_entry(platter)
    whole = files_on(platter)[JOURNAL]
    platter.space_bytes = len(whole) + 50

    def refuse(disk: SimulatedDisk, path: Path, size: int) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(SimulatedDisk, "truncate", refuse)
    with pytest.raises(JournalUnconfirmed, match="journal: Input/output error"):
        storage.sync()
    storage.close()
    assert len(files_on(platter)[JOURNAL]) == len(whole) + 50
    platter.space_bytes = None
    assert opened(platter)[:] == [entry(number) for number in (1, 2, 3)]


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
    storage = begun(platter, 3)
    before = seen(storage)
    with pytest.raises(JournalError):
        act(storage)
    assert not storage.dirty
    assert seen(storage) == before


def test_a_newcomer_is_one_until_it_has_what_it_misses():
    """Also after a restart."""
    platter = Platter(1)
    storage = opened(platter)
    storage.join("c", {"k1": "", "k2": "h:1"}, newcomer_until=2)
    storage.add(*entry(1))
    with pytest.raises(JournalError, match="entry 2 is still missing"):
        storage.caught_up()
    storage.close()
    storage = opened(platter)
    assert storage.identity.newcomer_until == 2
    storage.add(*entry(2))
    storage.caught_up()
    platter.cut_power()
    storage = opened(platter)
    assert (storage.identity.newcomer_until, storage.durable_index) == (0, 2)
    assert storage.identity.founders == {"k1": "", "k2": "h:1"}


def test_another_cluster_s_snapshot_is_refused():
    """And one that is no newer than what is committed here changes nothing."""
    storage = begun(Platter(1), 6)
    with pytest.raises(JournalError, match="that k2 sent is of cluster 'd', this keeper of 'c'"):
        storage.install_snapshot(other(cluster="d"), "k2")
    storage.setRaftCommitIndex(4)
    assert storage.install_snapshot(other(), "k2") is None
    assert len(storage) == 6


def test_entries_after_an_installed_snapshot_are_kept_only_if_they_follow_from_it():
    """Raft, figure 13: with the same term at its end they do, with another they are a lost leader's."""
    storage = begun(Platter(1), 6)
    assert storage.install_snapshot(other(last=4), "k2")
    assert storage[2:] == [entry(5), entry(6)]
    storage = begun(Platter(1), 6)
    storage.setCurrentTerm(2, None)
    assert storage.install_snapshot(other(last=4, term=2), "k2")
    assert storage[:] == [entry(3), (b"other", 4, 2)]
    storage = begun(Platter(1), 6)
    assert storage.install_snapshot(other(last=9, term=3), "k2")
    assert (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (3, None)
