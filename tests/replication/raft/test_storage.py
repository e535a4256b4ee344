"""What a keeper must not forget is on disk after `sync`, in order, and comes back at the next start."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from fedkeeper.errors import JournalDamaged, JournalError
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.storage import Storage

NO_OP = (b"\x02", 1, 0)  # PySyncObj's first entry


def entry(index: int, term: int = 1) -> tuple[bytes, int, int]:
    """As it is in the log."""
    return b'{"n":%d}' % index, index, term


def opened(folder, owner: str = "k1", **more) -> Storage:
    """On the real disk."""
    return Storage(folder, disk=FolderDisk(), fsync=True, owner=owner, **more)


@contextmanager
def begun(folder, last: int = 1, owner: str = "k1") -> Iterator[Storage]:
    """A keeper of cluster "c" in term 1, with entries up to `last` on disk."""
    with closing(opened(folder, owner)) as storage:
        storage.join("c", {"k1": "", "k2": "h:1"})
        storage.add(*NO_OP)
        storage.setCurrentTerm(1, owner)
        for index in range(2, last + 1):
            storage.add(*entry(index))
        storage.sync()
        yield storage


def test_an_empty_folder_gets_a_new_incarnation(tmp_path):
    """And nothing else: the keeper has never been in a cluster."""
    with closing(opened(tmp_path / "a")) as one, closing(opened(tmp_path / "b")) as other:
        assert one.identity.incarnation != other.identity.incarnation
        assert (one.identity.name, one.identity.cluster, len(one)) == ("k1", "", 0)
        assert (one.getCurrentTerm(), one.getVotedForNodeId(), one.getRaftCommitIndex()) == (0, None, 1)
        assert one.snapshot() is None


def test_everything_comes_back(tmp_path):
    """Entries, term, vote, commit index, identity."""
    with begun(tmp_path, 5) as storage:
        storage.setRaftCommitIndex(4)
        storage.setCurrentTerm(2, "k2")
        storage.sync()
        before = storage.identity
    with closing(opened(tmp_path)) as storage:
        assert storage[:] == [NO_OP, *map(entry, range(2, 6))]
        assert (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (2, "k2")
        assert storage.getRaftCommitIndex() == 4
        assert storage.identity == before
        assert (storage.dirty, storage.durable_index) == (False, 5)


def test_only_the_owner_may_read(tmp_path):
    """Folder 0700, files 0600, even in a folder that was open to others."""
    folder = tmp_path / "k1"
    folder.mkdir(mode=0o755)
    with begun(folder, 4) as storage:
        storage.save_snapshot(b"s", (entry(3), entry(4)), {})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"journal": 0o600, "snapshot": 0o600, "lock": 0o600}


def test_a_folder_has_one_keeper(tmp_path):
    """The second is told which process has it; one that ends lets go."""
    with begun(tmp_path), pytest.raises(JournalError, match=r"in use by process \d+"):
        opened(tmp_path)
    with begun(tmp_path):
        pass


def test_a_folder_of_another_keeper_is_refused(tmp_path):
    """Two keepers that exchange folders would vote twice."""
    with begun(tmp_path):
        pass
    with pytest.raises(JournalError, match="belongs to keeper 'k1', this one is 'k2'"):
        opened(tmp_path, "k2")


def test_cut_entries_are_gone_and_others_take_their_place(tmp_path):
    """Also after a restart; until `sync`, the entries on disk are those before the cut."""
    with begun(tmp_path, 6) as storage:
        storage.deleteEntriesFrom(3)
        assert (storage.dirty, storage.durable_index) == (True, 3)
        storage.setCurrentTerm(3, None)
        storage.add(*entry(4, 3))
        storage.sync()
        assert storage.durable_index == 4
    with closing(opened(tmp_path)) as storage:
        assert storage[1:] == [entry(2), entry(3), entry(4, 3)]


def test_a_snapshot_takes_the_place_of_the_entries_in_it(tmp_path):
    """All but its last two, which PySyncObj wants; those after it are kept."""
    with begun(tmp_path, 9) as storage:
        storage.setRaftCommitIndex(6)
        storage.save_snapshot(b"state", (entry(5), entry(6)), {"k1": "", "k3": "h:3"})
        assert storage[:] == list(map(entry, range(5, 10)))
    with closing(opened(tmp_path)) as storage:
        assert storage[:] == list(map(entry, range(5, 10)))
        snapshot = storage.snapshot()
        assert snapshot is not None
        assert (snapshot.state, snapshot.index, snapshot.cluster) == (b"state", 6, "c")
        assert snapshot.members == {"k1": "", "k3": "h:3"}


def test_a_leader_s_snapshot_is_installed(tmp_path):
    """In the place of a log that ends before it."""
    with begun(tmp_path / "k1", 9) as leader, begun(tmp_path / "k2", 3, "k2") as follower:
        leader.save_snapshot(b"state", (entry(7), entry(8)), {})
        snapshot = follower.install_snapshot(leader.snapshot_bytes(), "k1")
        assert snapshot is not None
        assert snapshot.state == b"state"
        assert follower[:] == [entry(7), entry(8)]
        assert follower.getRaftCommitIndex() == 8
        assert follower.install_snapshot(leader.snapshot_bytes(), "k1") is None


def test_a_snapshot_that_was_hurt_on_its_way_is_refused(tmp_path):
    """Nothing has changed then."""
    with begun(tmp_path / "k1", 9) as leader, begun(tmp_path / "k2", 3, "k2") as follower:
        leader.save_snapshot(b"state", (entry(7), entry(8)), {})
        data = leader.snapshot_bytes()
        with pytest.raises(JournalDamaged, match="the snapshot that k1 sent: the checksum is wrong"):
            follower.install_snapshot(data[:-1] + b"x", "k1")
        assert len(follower) == 3
