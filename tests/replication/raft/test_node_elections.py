"""Elections: a dead leader is replaced at once, a silent one in time, a healthy one by nobody."""

from __future__ import annotations

import pytest

from fedkeeper.errors import MembershipRefused, NoLeader
from fedkeeper.replication.base import Role
from fedkeeper.replication.raft.node import RaftNode
from tests.replication.raft.cluster_world import TIMING, World
from tests.replication.raft.test_node import KEEPERS
from tests.replication.raft.test_node_log import follower_of

FIVE = ("k1", "k2", "k3", "k4", "k5")


def request(node: RaftNode, kind: str, term: int) -> dict[str, object]:
    """For the votes of others, by one that has all that `node` has."""
    if kind == "pre_vote":
        return {"type": kind, "term": term, "last_index": node.last_index, "last_term": node.last_term}
    return {"type": kind, "term": term, "last_log_index": node.last_index, "last_log_term": node.last_term}


@pytest.mark.parametrize("names", [KEEPERS, FIVE])
@pytest.mark.parametrize("attempt", range(4))
def test_a_dead_leader_is_replaced_before_its_silence_is_long(names: tuple[str, ...], attempt: int) -> None:
    """Its connections break, and the others ask one after the other."""
    world = World(*names)
    world.run(0.01 * attempt)
    leader = world.start_all()
    world.commit(leader, 1)
    world.agree()
    died = world.now
    world.kill(leader.name)
    world.until(lambda: any(node.leads for node in world.nodes.values()), "another leader")
    assert world.now - died < TIMING.silence_min_s / 2


def test_a_frozen_leader_is_replaced_when_its_silence_is_long_enough() -> None:
    """Its connections stand; and it follows when it goes on."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.frozen = {old.name}
    froze = world.now
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    assert TIMING.silence_min_s <= world.now - froze + TIMING.heartbeat_s
    assert world.now - froze < 3 * TIMING.silence_max_s
    world.frozen = set()
    assert world.leader() is not old
    world.commit(world.leader(), 1)
    assert world.agree() == 1


def test_a_leader_without_a_majority_steps_down() -> None:
    """After the longest silence; the library's default would be half a minute."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.part(leader.name)
    world.run(TIMING.silence_max_s + 2 * TIMING.tick_s)
    assert leader.status().role is not Role.LEADER


def test_one_that_was_cut_off_deposes_nobody() -> None:
    """It has not raised its term meanwhile, and is refused when it asks."""
    world = World(*FIVE)
    leader = world.start_all()
    world.agree()
    term = leader.term
    world.part(follower_of(world, leader))
    world.run(10.0)
    world.heal()
    world.run(5.0)
    assert world.leader() is leader
    assert {node.term for node in world.nodes.values()} == {term}


def test_one_that_hears_only_the_others_deposes_nobody() -> None:
    """Its link to the leader alone is broken: the others hear the leader, and refuse."""
    world = World(*KEEPERS)
    leader = world.start_all()
    term, lonely = leader.term, follower_of(world, leader)
    world.cut = {frozenset((leader.name, lonely))}
    world.run(5.0)
    assert leader.leads
    assert leader.term == term


def test_a_follower_grants_no_pre_vote_while_it_hears_a_leader() -> None:
    """Nor does asking change anything on it."""
    world = World(*KEEPERS)
    leader = world.start_all()
    follower = world.follower()
    asker = next(name for name in KEEPERS if name not in (leader.name, follower.name))
    world.said.clear()
    term = follower.term
    follower.received(asker, [request(follower, "pre_vote", term + 1)])
    world.deliver()
    answers = [m["granted"] for s, t, m in world.said if (s, m["type"]) == (follower.name, "pre_vote_answer")]
    assert answers == [False]
    assert follower.term == term


def test_one_that_heard_the_leader_a_moment_ago_grants_as_its_link_breaks() -> None:
    """The kernels do not close all connections in the same instant."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    follower = world.follower()
    asker = next(name for name in KEEPERS if name not in (leader.name, follower.name))
    follower.received(asker, [request(follower, "pre_vote", follower.term + 1)])
    world.deliver()
    world.said.clear()
    follower.disconnected(leader.name)
    world.deliver()
    answers = [m["granted"] for s, t, m in world.said if (s, m["type"]) == (follower.name, "pre_vote_answer")]
    assert answers == [True]


def test_votes_are_counted_once_per_voter_and_only_in_their_term() -> None:
    """The library counts messages, whoever they are from."""
    world = World(*FIVE)
    leader = world.start_all()
    world.agree()
    candidate = world.follower()
    world.part(candidate.name)
    world.links.clear()
    candidate.follow(candidate.term + 1)
    candidate._SyncObj__raftState = 1  # a candidate, with its own vote
    candidate._SyncObj__votesCount = 1
    vote = {"type": "response_vote", "term": candidate.term}
    voter = next(name for name in FIVE if name not in (candidate.name, leader.name))
    for message in (vote, vote, {**vote, "term": candidate.term - 1}):
        candidate.received(voter, [message])
    candidate.received("k9", [vote])
    assert not candidate.leads
    candidate.received(leader.name, [{**vote, "term": candidate.term - 1}])
    assert not candidate.leads
    candidate.received(leader.name, [vote])
    assert candidate.leads


def test_a_vote_is_on_disk_before_it_is_given() -> None:
    """A keeper that is started again in the middle of an election does not vote twice."""
    world = World(*KEEPERS)
    world.start_all()
    world.agree()
    follower = world.follower()
    name, term = follower.name, follower.term + 5
    one, other = (keeper for keeper in KEEPERS if keeper != name)
    follower.received(one, [request(follower, "request_vote", term)])
    world.kill(name, power=True)
    again = world.start(name)
    world.sent.clear()
    again.received(other, [request(again, "request_vote", term)])
    assert not [sent for sent in world.sent if b"response_vote" in sent[2]]
    assert again.voted_for == one


def test_the_lead_is_handed_over() -> None:
    """To a keeper that has everything, in a moment."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1, 2)
    to = follower_of(world, leader)
    outcome: list[object] = []
    leader.transfer(to, outcome.append)
    world.run(0.1)
    assert outcome == [None]
    assert world.leader().name == to
    world.commit(world.nodes[to], 3)
    assert world.agree() == 3


def test_a_handover_that_cannot_be_ends_in_time_and_the_leader_goes_on() -> None:
    """Its proposals are refused meanwhile, for certain."""
    world = World(*KEEPERS)
    leader = world.start_all()
    to = follower_of(world, leader)
    outcome: list[object] = []
    leader.transfer("k9", outcome.append)
    assert isinstance(outcome.pop(), MembershipRefused)
    world.loses = lambda sender, target, message: message["type"] == "timeout_now"
    leader.transfer(to, outcome.append)
    assert isinstance(world.propose(leader, 1)[0], NoLeader)
    world.until(lambda: bool(outcome), "the end")
    assert isinstance(outcome[0], NoLeader)
    world.commit(leader, 1)
    assert world.agree() == 1
