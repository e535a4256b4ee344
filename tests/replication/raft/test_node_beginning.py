"""First starts, and folders that were wiped: no keeper counts for what it has forgotten."""

from __future__ import annotations

import random

from fedkeeper.errors import KeeperStopped
from fedkeeper.replication.raft.beginning import cluster_id
from tests.replication.raft.cluster_world import World
from tests.replication.raft.test_node import KEEPERS
from tests.replication.raft.test_node_elections import request
from tests.replication.raft.test_node_log import follower_of


def test_a_cluster_begins_only_when_all_are_there() -> None:
    """Afterwards a majority is enough."""
    world = World(*KEEPERS)
    for name in ("k1", "k2"):
        world.start(name)
    world.run(3.0)
    assert not any(node.leader for node in world.nodes.values())
    assert world.nodes["k1"].status().problem == (
        "a new cluster begins when all its keepers are up: waiting for k3"
    )
    world.start("k3")
    leader = world.leader()
    world.kill(follower_of(world, leader))
    world.commit(leader, 1)


def test_a_cluster_begins_although_messages_are_lost() -> None:
    """What others have to know is said again."""
    world = World(*KEEPERS)
    chance = random.Random(7)  # noqa: S311
    world.loses = lambda sender, target, message: chance.random() < 0.6
    for name in KEEPERS:
        world.start(name)
    world.until(lambda: all(node.beginning.counts for node in world.nodes.values()), "the beginning")


def test_a_founder_that_was_away_in_that_moment_is_one_all_the_same() -> None:
    """Its incarnation is in the cluster's id."""
    world = World(*KEEPERS)
    world.loses = lambda sender, target, message: target == "k3"
    for name in KEEPERS:
        world.start(name)
    world.until(lambda: world.nodes["k1"].beginning.counts, "the beginning")
    assert not world.nodes["k3"].beginning.is_member
    world.kill("k3")
    world.loses = lambda sender, target, message: False
    node = world.start("k3")
    world.until(lambda: node.beginning.counts, "the founder")
    world.commit(world.leader(), 1)
    assert world.agree() == 1


def test_keepers_with_different_configs_begin_nothing() -> None:
    """They say so."""
    world = World(*KEEPERS)
    for name in KEEPERS:
        world.start(name, members=("k1", "k2", "k3", "k4") if name == "k1" else ())
    world.run(2.0)
    assert not any(node.leader for node in world.nodes.values())
    assert "different keepers" in world.nodes["k2"].status().problem


def test_one_that_belongs_to_another_beginning_stops() -> None:
    """Its config named others."""
    world = World("k1", "k2")
    world.start("k1", members=("k1", "k2", "k3"))
    node = world.nodes["k1"]
    begun = {"type": "begun", "cluster": "", "founders": {"k1": "", "k2": ""}, "members": {}}
    world.start("k2")
    world.run(0.1)
    mine = {name: world.nodes[name].storage.identity.incarnation for name in ("k1", "k2")}
    node.received("k2", [{**begun, "cluster": cluster_id(mine)}])
    assert isinstance(node.failure, KeeperStopped)


def test_a_wiped_keeper_comes_back_and_counts_again() -> None:
    """Once it has what its leader had when it came, and one entry more."""
    world = World(*KEEPERS)
    world.commit(world.start_all(), *range(1, 21))
    wiped = follower_of(world, world.leader())
    world.kill(wiped, wipe=True)
    node = world.start(wiped)
    world.until(lambda: node.beginning.counts, "the end of its time as a newcomer")
    assert world.agree() == 20
    other = next(name for name in KEEPERS if name not in (wiped, world.leader().name))
    world.kill(other)
    world.commit(world.leader(), 21)


def test_a_wiped_keeper_does_not_count_before() -> None:
    """It may have promised something to somebody else: the leader needs a majority without it."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1)
    wiped = follower_of(world, leader)
    other = next(name for name in KEEPERS if name not in (wiped, leader.name))
    world.kill(other)
    world.kill(wiped, wipe=True)
    node = world.start(wiped)
    outcome = world.propose(leader, 2)
    world.run(3.0)
    assert not any(isinstance(one, list) for one in outcome)
    assert not node.beginning.counts
    assert not any(one.leads for one in world.nodes.values())
    world.start(other)
    world.until(lambda: node.beginning.counts, "everybody")
    world.commit(world.leader(), 3)


def test_a_newcomer_neither_votes_nor_grants_nor_stands() -> None:
    """Whatever it is asked."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1)
    wiped = follower_of(world, leader)
    world.kill(wiped, wipe=True)
    world.loses = lambda sender, target, message: target == wiped and bool(message.get("entries"))
    node = world.start(wiped)
    world.until(lambda: node.beginning.is_member, "its welcome")
    world.run(1.0)
    world.sent.clear()
    for kind in ("request_vote", "pre_vote"):
        node.received(leader.name, [request(leader, kind, leader.term + 3)])
    node.received(leader.name, [{"type": "timeout_now", "term": leader.term}])
    world.loses = lambda sender, target, message: True
    answers = [sent for sent in world.sent if sent[0] == wiped and b"vote" in sent[2]]
    assert not answers
    world.run(3.0)
    assert node.newcomer
    assert node.status().role.value == "follower"


def test_the_welcome_of_a_leader_of_another_term_is_worth_nothing() -> None:
    """Only an entry of the leader that is followed proves that it can still commit."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1)
    wiped = follower_of(world, leader)
    world.kill(wiped, wipe=True)
    world.loses = lambda sender, target, message: message["type"] == "welcome"
    node = world.start(wiped)
    world.run(1.0)
    cluster = leader.storage.identity
    welcome = {
        "type": "welcome",
        "term": leader.term - 1,
        "cluster": cluster.cluster,
        "founders": dict(cluster.founders),
        "until": 1,
    }
    node.received(leader.name, [welcome])
    other = next(name for name in KEEPERS if name not in (wiped, leader.name))
    node.received(other, [{**welcome, "term": leader.term}])
    assert not node.beginning.counts


def test_a_wiped_keeper_finds_a_leader_that_its_config_does_not_know() -> None:
    """The others tell it who the members are."""
    world = World("k1", "k2")
    leader = world.start_all()
    world.start("k3", members=KEEPERS)
    outcome: list[object] = []
    leader.add_member("k3", "k3:1", outcome.append)
    world.until(lambda: bool(outcome), "k3 as a member")
    assert outcome == [None]
    world.until(lambda: world.nodes["k3"].beginning.counts, "k3")
    world.leader().transfer("k3", lambda _: None)
    world.until(lambda: world.nodes["k3"].leads, "k3's lead")
    world.kill("k1", wipe=True)
    world.members = {"k1": "", "k2": ""}
    node = world.start("k1")
    world.until(lambda: node.beginning.counts, "k1 again")
    world.commit(node, 1)
    assert world.agree() == 1
