"""Members come and go one at a time, only while majorities of the old and the new ones are healthy."""

from __future__ import annotations

from fedkeeper.errors import FedKeeperError, KeeperStopped, MembershipRefused, NoLeader
from fedkeeper.replication.raft.node import RaftNode
from tests.replication.raft.cluster_world import World
from tests.replication.raft.test_node import KEEPERS, kinds
from tests.replication.raft.test_node_elections import FIVE
from tests.replication.raft.test_node_log import follower_of

Outcome = list[FedKeeperError | None]


def add(node: RaftNode, name: str) -> Outcome:
    """Ask `node` to; the list gets the outcome."""
    outcome: Outcome = []
    node.add_member(name, f"{name}:1", outcome.append)
    return outcome


def remove(node: RaftNode, name: str) -> Outcome:
    """Ask `node` to; the list gets the outcome."""
    outcome: Outcome = []
    node.remove_member(name, outcome.append)
    return outcome


def test_a_keeper_is_taken_in_once_it_has_caught_up() -> None:
    """And votes and counts from then on; the others know it."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, *range(1, 31))
    world.start("k4", members=(*KEEPERS, "k4"))
    outcome = add(leader, "k4")
    world.until(lambda: bool(outcome), "the change")
    assert outcome == [None]
    assert world.agree() == 30
    assert all(set(node.membership.members) == {*KEEPERS, "k4"} for node in world.nodes.values())
    assert world.nodes["k1"].address_of("k4") == "k4:1"
    world.kill(follower_of(world, leader))
    world.commit(leader, 31)


def test_one_that_is_not_up_blocks_nobody_and_is_refused_in_time() -> None:
    """It is never a member, so the majority stays what it was."""
    world = World(*KEEPERS)
    leader = world.start_all()
    outcome = add(leader, "k4")
    world.kill(follower_of(world, leader))
    world.commit(leader, 1)
    world.until(lambda: bool(outcome), "the end")
    assert isinstance(outcome[0], MembershipRefused)
    assert set(leader.membership.members) == set(KEEPERS)


def test_one_that_dies_while_it_catches_up_is_refused_in_time() -> None:
    """The cluster goes on as it was."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.loses = lambda sender, target, message: "k4" in (sender, target) and message["type"] == "appended"
    world.start("k4", members=(*KEEPERS, "k4"))
    outcome = add(leader, "k4")
    world.run(1.0)
    world.kill("k4")
    world.commit(leader, 1)
    world.until(lambda: bool(outcome), "the end")
    assert isinstance(outcome[0], MembershipRefused)


def test_a_leader_that_loses_the_lead_while_one_joins_says_so() -> None:
    """Its successor knows nothing of it."""
    world = World(*KEEPERS)
    leader = world.start_all()
    outcome = add(leader, "k4")
    leader.transfer(follower_of(world, leader), lambda _: None)
    world.until(lambda: bool(outcome), "the end")
    assert isinstance(outcome[0], NoLeader)


def test_a_removed_keeper_learns_of_it_and_stops() -> None:
    """The others go on, with a majority of those that are left."""
    world = World(*KEEPERS)
    leader = world.start_all()
    name = follower_of(world, leader)
    outcome = remove(leader, name)
    world.until(lambda: bool(outcome) and world.nodes[name].failure is not None, "the end")
    assert outcome == [None]
    failure = world.nodes[name].failure
    assert isinstance(failure, KeeperStopped)
    assert "was removed" in str(failure)
    world.kill(name)
    world.commit(leader, 1)
    assert world.agree() == 1


def test_a_keeper_that_was_away_when_it_was_removed_is_told_when_it_comes() -> None:
    """By the leader, which lets it connect for that."""
    world = World(*FIVE)
    leader = world.start_all()
    name = follower_of(world, leader)
    world.kill(name)
    outcome = remove(leader, name)
    world.until(lambda: bool(outcome), "the change")
    node = world.start(name)
    world.until(lambda: node.failure is not None, "its end")
    assert "was removed" in str(node.failure)


def test_a_removed_keeper_may_come_again_with_an_empty_folder() -> None:
    """It goes through the history of its own removal."""
    world = World(*KEEPERS)
    leader = world.start_all()
    name = follower_of(world, leader)
    outcome = remove(leader, name)
    world.until(lambda: bool(outcome) and world.nodes[name].failure is not None, "its removal")
    world.kill(name, wipe=True)
    world.commit(leader, 1)
    world.start(name)
    outcome = add(leader, name)
    world.until(lambda: bool(outcome), "its return")
    assert outcome == [None]
    world.until(lambda: world.nodes[name].ready, "it")
    assert world.agree() == 1


def test_a_leader_does_not_remove_itself() -> None:
    """It hands over first."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1)
    outcome = remove(leader, leader.name)
    assert isinstance(outcome[0], MembershipRefused)
    assert "hand" in outcome[0].hint


def test_nothing_is_removed_without_a_healthy_majority_of_those_that_stay() -> None:
    """Nor of those that are: an isolated leader would shrink the cluster until it is one by itself."""
    world = World(*FIVE)
    leader = world.start_all()
    world.commit(leader, 1)
    names = [name for name in FIVE if name != leader.name]
    for name in names[:2]:
        world.kill(name)
    world.run(0.5)
    assert kinds(remove(leader, names[3])) == [MembershipRefused]
    world.part(leader.name)
    for name in names[2:]:
        assert kinds(remove(leader, name)) == [MembershipRefused]
    assert set(leader.membership.members) == set(FIVE)


def test_a_keeper_that_catches_up_is_not_counted_as_healthy() -> None:
    """With two left, one of which has forgotten everything, a restart of the other stops both for good."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.commit(old, 1)
    wiped, other = (name for name in KEEPERS if name != old.name)
    world.kill(wiped, wipe=True)
    world.loses = lambda sender, target, message: target == wiped and bool(message.get("entries"))
    world.start(wiped)
    world.until(lambda: wiped in old.connected_names, "the connection")
    old.transfer(other, lambda _: None)
    leader = world.nodes[other]
    world.until(lambda: leader.leads and leader.commit_index >= leader.noop_index, "the next leader")
    assert kinds(remove(leader, old.name)) == [MembershipRefused]
    world.loses = lambda sender, target, message: False
    world.until(lambda: world.nodes[wiped].beginning.counts, "its catching up")
    world.run(0.2)
    outcome = remove(leader, old.name)
    world.until(lambda: bool(outcome), "the change")
    assert outcome == [None]


def test_changes_are_made_one_at_a_time() -> None:
    """The next only when the last is committed; the library's own guard is never set."""
    world = World(*FIVE)
    leader = world.start_all()
    world.commit(leader, 1)
    one, two = [name for name in FIVE if name != leader.name][:2]
    first = remove(leader, one)
    second = remove(leader, two)
    third = add(leader, "k6")
    assert not first
    assert kinds(second) == kinds(third) == [MembershipRefused]
    world.until(lambda: bool(first), "the first change")
    world.run(0.3)
    again = remove(leader, two)
    world.until(lambda: bool(again), "the second")
    assert again == [None]


def test_a_new_leader_commits_something_before_it_changes_anything() -> None:
    """Otherwise a change of its predecessor may still be under way."""
    world = World(*FIVE)
    world.loses = lambda sender, target, message: message["type"] == "appended"
    for name in FIVE:
        world.start(name)
    world.until(lambda: any(node.leads for node in world.nodes.values()), "a leader")
    leader = next(node for node in world.nodes.values() if node.leads)
    outcome = remove(leader, follower_of(world, leader))
    assert isinstance(outcome[0], MembershipRefused)
    assert "elected" in str(outcome[0])


def test_a_change_that_comes_to_nothing_is_taken_back() -> None:
    """With the entry; it took effect when it was appended."""
    world = World(*FIVE)
    old = world.start_all()
    world.commit(old, 1)
    world.agree()
    name = follower_of(world, old)
    world.loses = lambda sender, target, message: sender == old.name and message["type"] == "append"
    outcome = remove(old, name)
    assert name not in old.membership.members
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    world.loses = lambda sender, target, message: False
    world.until(lambda: bool(outcome), "the outcome")
    assert isinstance(outcome[0], NoLeader)
    world.commit(world.leader(), 2)
    assert world.agree() == 2
    assert set(old.membership.members) == set(FIVE)


def test_members_are_found_again_after_a_restart() -> None:
    """In the log, and in the snapshot once the log is short; whatever the config says."""
    world = World(*KEEPERS, snapshot_every=20)
    leader = world.start_all()
    world.start("k4", members=(*KEEPERS, "k4"))
    outcome = add(leader, "k4")
    world.until(lambda: bool(outcome), "the change")
    for entries in (3, 60):
        world.commit(world.leader(), *range(entries - 2, entries + 1))
        for name in list(world.nodes):
            world.kill(name, power=True)
        for name in (*KEEPERS, "k4"):
            world.start(name)
        world.leader()
        assert all(set(node.membership.members) == {*KEEPERS, "k4"} for node in world.nodes.values())


def test_one_keeper_becomes_two_and_one_again() -> None:
    """The smallest cluster grows and shrinks as well."""
    world = World("k1")
    leader = world.start("k1")
    world.run(0.2)
    world.start("k2", members=("k1", "k2"))
    outcome = add(leader, "k2")
    world.until(lambda: bool(outcome), "two")
    assert outcome == [None]
    world.commit(leader, 1)
    outcome = remove(leader, "k2")
    world.until(lambda: bool(outcome), "one")
    assert outcome == [None]
    world.kill("k2")
    world.commit(leader, 2)
    assert world.agree() == 2
