"""Nothing that a node sends, counts or acknowledges depends on what a power cut would take away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedkeeper.errors import JournalError
from fedkeeper.replication.raft.base import Message
from fedkeeper.replication.raft.storage import Storage
from tests.replication.raft.blackouts import PROMISES, Room

NAMES = ("k1", "k2", "k3")


def _live(room: Room, steps: int) -> None:
    """Commands, power cuts, of one or of all, between and within the operations of their disks."""
    for _ in range(steps):
        chance = room.chance.random()
        if chance < 0.5:
            room.propose()
        if chance < 0.02:
            for name in sorted(room.nodes):
                room.cut_power(name)
        elif chance < 0.04 and room.nodes:
            room.cut_power(room.chance.choice(sorted(room.nodes)))
        elif chance < 0.06:
            platter = room.platters[room.chance.choice(sorted(room.names))]
            platter.cut_at = platter.operations + room.chance.randint(1, 12)
        elif chance < 0.3:
            for name in room.names:
                if name not in room.nodes:
                    room.start(name)
        room.step()


@pytest.mark.parametrize("seed", range(5))
def test_votes_and_commands_outlive_blackouts(seed):
    """Each promise is checked against a copy of the disk that loses its power at that moment."""
    room = Room(NAMES, seed)
    _live(room, 150)
    room.settle()
    assert room.checked > 100
    assert room.acknowledged


@pytest.mark.parametrize("seed", [1, 5])
def test_wiped_keepers_take_nothing_with_them(seed):
    """One after the other loses its disk, between blackouts: what was acknowledged stays."""
    room = Room(NAMES, seed)
    for _ in range(50):
        _live(room, 12)
        if room.chance.random() < 0.3:
            room.wipe(room.chance.choice(NAMES))
    room.settle()
    assert room.wiped > 3
    assert room.acknowledged


def test_a_cluster_of_one_outlives_blackouts():
    """It counts itself only once it has synced."""
    for seed in range(5):
        room = Room(("k1",), seed)
        _live(room, 150)
        room.settle()
        assert room.acknowledged


def test_without_fsync_the_same_lives_promise_what_is_not_on_disk():
    """So the checks would notice if a sync were forgotten."""
    for seed in range(3):
        with pytest.raises((AssertionError, JournalError)):
            _live(Room(NAMES, seed, fsync=False), 200)


@pytest.mark.parametrize("kind", ["request_vote", "response_vote", "appended"])
def test_what_is_sent_before_the_sync_is_noticed(monkeypatch, kind):
    """A node that syncs after it has sent, not before, is found out by each kind of promise."""
    sync, check = Storage.sync, Room.check_promise
    late: list[Storage] = []

    def sync_later(storage: Storage) -> None:
        late.append(storage)

    def sync_now() -> None:
        while late:
            sync(late.pop())

    def check_one_kind(room: Room, name: str, peer: str, message: Message) -> None:
        if message["type"] == kind:
            check(room, name, peer, message)
        if message["type"] in PROMISES:
            sync_now()

    monkeypatch.setattr(Storage, "sync", sync_later)
    monkeypatch.setattr(Room, "check_promise", check_one_kind)
    room = Room(NAMES, 1)
    with pytest.raises(AssertionError, match="on its disk"):
        _run(room, sync_now)


def test_a_leader_that_counts_what_it_has_not_synced_is_noticed(monkeypatch):
    """Of two keepers both are needed, and one of them never syncs while it leads."""
    sync = Storage.sync
    room = Room(("k1", "k2"), 1)

    def sync_unless_it_leads(storage: Storage) -> None:
        leader = room.leader
        if leader is None or leader.storage is not storage:
            sync(storage)

    monkeypatch.setattr(Storage, "sync", sync_unless_it_leads)
    with pytest.raises(AssertionError, match="for committed: on 1 disks"):
        _run(room, lambda: None)


def _run(room: Room, sync_now: Callable[[], None]) -> None:
    for _ in range(200):
        sync_now()
        room.propose()
        room.step()
