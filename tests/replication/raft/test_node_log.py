"""Followers and leaders under late, repeated and lost messages: nothing acknowledged is ever taken back."""

from __future__ import annotations

from typing import Any

import msgspec

from fedkeeper.errors import KeeperStopped
from fedkeeper.replication.raft.base import Message
from fedkeeper.replication.raft.node import RaftNode
from tests.replication import toy
from tests.replication.raft.cluster_world import World
from tests.replication.raft.test_node import KEEPERS, toy_line


def append(leader: RaftNode, before: int, entries: list[Any], *, commit: int = 1) -> dict[str, Any]:
    """The message that `leader` would send."""
    return {
        "type": "append",
        "term": leader.term,
        "commit": commit,
        "before": before,
        "before_term": leader.entry(before)[2],
        "entries": entries,
        "quiet": False,
    }


def log_of(node: RaftNode) -> list[Any]:
    """Index and term of its entries."""
    return [(index, term) for _, index, term in node.entries[:]]


def test_a_repeated_message_takes_nothing_back() -> None:
    """The library cuts the log after it, with what was acknowledged and counted."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, *range(1, 11))
    world.agree()
    follower = world.follower()
    before = log_of(follower)
    follower.received(leader.name, [append(leader, 1, leader.entries[1:4])])
    follower.received(leader.name, [append(leader, 2, [])])
    assert log_of(follower) == before


def test_only_what_conflicts_is_cut() -> None:
    """An old leader's entries that nobody else has go, and those before them stay."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.commit(old, 1, 2, 3)
    world.agree()
    kept = old.last_index
    world.part(old.name)
    world.propose(old, 4)
    world.propose(old, 5)
    assert old.last_index == kept + 2
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    world.heal()
    world.commit(next(node for node in others if node.leads), 4)
    assert world.agree() == 4
    assert log_of(old) == log_of(others[0])


def test_a_follower_commits_only_what_was_compared() -> None:
    """A heartbeat of the leader's commit index says nothing on entries that only this keeper has."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.agree()
    common = old.last_index
    world.part(old.name)
    for number in (1, 2, 3):
        world.propose(old, number)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    leader = next(node for node in others if node.leads)
    old.received(leader.name, [append(leader, common, [], commit=common + 3)])
    assert old.commit_index == common
    assert old.applied_index == common


def test_a_leader_of_an_earlier_term_is_told_so_and_obeyed_in_nothing() -> None:
    """Its messages may come late."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.commit(old, 1)
    world.agree()
    late = append(old, old.last_index, [], commit=old.last_index)
    term = old.term
    world.part(old.name)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    leader = next(node for node in others if node.leads)
    leader.received(old.name, [{**late, "term": term}])
    assert leader.leads
    assert ("appended", leader.term) in [
        (message["type"], message["term"])
        for sender, target, message in [world_message(one) for one in world.sent]
        if (sender, target) == (leader.name, old.name)
    ]


def world_message(sent: tuple[str, str, bytes]) -> tuple[str, str, Message]:
    """One that is on its way."""
    return sent[0], sent[1], msgspec.msgpack.decode(sent[2])


def test_acknowledgements_of_another_term_do_not_count() -> None:
    """Late ones of an earlier leadership speak of another log; later ones end this one."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    world.loses = lambda sender, target, message: message["type"] in ("append", "appended")
    world.propose(leader, 1)
    committed = leader.commit_index
    answer = {
        "type": "appended",
        "term": leader.term - 1,
        "next": leader.last_index + 1,
        "reset": False,
        "success": True,
        "newcomer": False,
    }
    for follower in KEEPERS:
        if follower != leader.name:
            leader.received(follower, [answer])
    assert leader.commit_index == committed
    leader.received(follower_of(world, leader), [{**answer, "term": 99}])
    assert not leader.leads
    assert leader.term == 99


def follower_of(world: World, leader: RaftNode) -> str:
    """The name of one that does not lead."""
    return next(name for name in world.nodes if name != leader.name)


def test_a_leader_counts_no_acknowledgement_of_what_it_has_not() -> None:
    """A follower cannot have more of the leader's log than the leader."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    peer = follower_of(world, leader)
    answer = {"type": "appended", "reset": False, "success": True, "newcomer": False, "term": leader.term}
    leader.received(peer, [{**answer, "next": leader.last_index + 100}])
    assert leader.leading.match_of(peer) <= leader.last_index


def test_what_a_peer_had_counts_no_more_once_it_reconnects() -> None:
    """It may come with another folder; it has to say again what it has."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1)
    world.agree()
    peer = follower_of(world, leader)
    assert leader.leading.match_of(peer) == leader.last_index
    leader.disconnected(peer)
    leader.connected(world.nodes[peer].hello())
    assert leader.leading.match_of(peer) == 0


def test_lost_messages_are_sent_again() -> None:
    """Whatever is lost, everything arrives in the end."""
    world = World(*KEEPERS)
    leader = world.start_all()
    count = 0

    def every_third(sender: str, target: str, message: Message) -> bool:
        nonlocal count
        count += 1
        return count % 3 == 0

    world.loses = every_third
    for number in range(1, 31):
        world.propose(leader, number)
        world.run(0.02)
    world.loses = lambda sender, target, message: False
    world.until(lambda: leader.commit_index == leader.last_index, "commit")
    assert world.agree() == 30


def test_a_follower_far_behind_takes_a_snapshot_and_the_rest() -> None:
    """In pieces, while others go on."""
    world = World(*KEEPERS, snapshot_every=20)
    leader = world.start_all()
    gone = follower_of(world, leader)
    world.kill(gone)
    world.commit(world.leader(), *range(1, 101))
    world.until(lambda: world.leader().storage.snapshot_index > 50, "a snapshot")
    node = world.start(gone)
    world.commit(world.leader(), 101)
    assert world.agree() == 101
    assert node.storage.snapshot_index > 50


def test_an_older_snapshot_changes_nothing() -> None:
    """The library would roll the state back."""
    world = World(*KEEPERS, snapshot_every=20)
    leader = world.start_all()
    world.commit(leader, *range(1, 31))
    world.agree()
    world.until(lambda: leader.storage.snapshot_index > 0, "a snapshot")
    data, index = leader.storage.snapshot_bytes(), leader.storage.snapshot_index
    world.commit(leader, *range(31, 36))
    world.agree()
    follower = world.follower()
    before = (log_of(follower), follower.applied_index)
    follower.received(
        leader.name,
        [
            {
                "type": "snapshot",
                "term": leader.term,
                "index": index,
                "offset": 0,
                "size": len(data),
                "data": data,
            }
        ],
    )
    assert (log_of(follower), follower.applied_index) == before
    assert follower.state == toy.after(35)


def test_a_snapshot_is_told_of_with_its_own_state() -> None:
    """Also if entries after it came in the same read, and are applied by the end of the turn."""
    world = World(*KEEPERS, snapshot_every=20)
    leader = world.start_all()
    gone = follower_of(world, leader)
    world.kill(gone)
    world.commit(leader, *range(1, 61))
    world.until(lambda: leader.storage.snapshot_index > 20, "a snapshot")
    world.loses = lambda sender, target, message: target == gone
    node = world.start(gone)
    told: list[tuple[int, int]] = []
    node._on_installed = lambda index, state: told.append((index, toy.count(state)))
    data, index = leader.storage.snapshot_bytes(), leader.storage.snapshot_index
    snapshot = {"type": "snapshot", "term": leader.term, "index": index, "offset": 0, "size": len(data)}
    rest = [leader.entry(after) for after in range(index + 1, leader.last_index + 1)]
    assert rest
    after = append(leader, index, rest, commit=leader.commit_index)
    node.received(leader.name, [{**snapshot, "data": data}, after])
    assert told == [(index, toy.count(leader.state) - len(rest))]
    assert [applied for applied, _ in world.applied[gone]] == [one for _, one, _ in rest]


def test_a_snapshot_on_its_way_commits_nothing_of_the_keepers_own() -> None:
    """An old leader that comes back behind a shortened log must not acknowledge its lost command."""
    world = World(*KEEPERS, snapshot_every=20)
    old = world.start_all()
    world.part(old.name)
    outcome = world.propose(old, 1)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    leader = next(node for node in others if node.leads)
    world.commit(leader, *range(1, 60))
    world.until(lambda: leader.storage.snapshot_index > 20, "a snapshot")
    world.loses = lambda sender, target, message: message["type"] == "snapshot"
    world.heal()
    world.run(1.0)
    assert old.applied_index < 5
    assert not any(isinstance(one, list) for one in outcome)


def test_a_message_that_makes_no_sense_changes_nothing() -> None:
    """Peers have proved who they are, and may be of another version."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    follower = world.follower()
    good = append(leader, leader.last_index, [])
    for bad in (
        {},
        {"type": 7},
        {"type": "unheard of"},
        {**good, "term": "7"},
        {**good, "entries": [[b"", 9, 1]]},
        {**good, "entries": [[b"\0", leader.last_index + 2, 1]]},
        {**good, "entries": [7]},
    ):
        follower.received(leader.name, [bad])
    assert follower.failure is None
    assert world.agree() == 0


def test_two_leaders_of_one_term_are_the_end_of_whoever_sees_it() -> None:
    """Only a copied folder can do that; going on would make it worse."""
    world = World(*KEEPERS)
    leader = world.start_all()
    leader.received(follower_of(world, leader), [append(leader, 1, [])])
    assert isinstance(leader.failure, KeeperStopped)


def test_a_committed_entry_is_never_replaced() -> None:
    """A leader that wants to has lost its disk's memory; this keeper stops instead."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1, 2)
    world.agree()
    follower = world.follower()
    other = [toy_line(9), leader.last_index, leader.term + 1]
    message = append(leader, leader.last_index - 1, [other])
    follower.received(leader.name, [{**message, "term": leader.term + 1}])
    assert isinstance(follower.failure, KeeperStopped)
