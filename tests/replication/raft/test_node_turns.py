"""A node acts when something is due and not before, and says no more than it has to."""

from __future__ import annotations

import math

from tests.replication.raft.cluster_world import World
from tests.replication.raft.test_node import KEEPERS


def appends(world: World, target: str) -> list[tuple[int, int]]:
    """Of the messages to `target`: how many entries each held, and what it said is committed."""
    return [
        (len(message["entries"]), message["commit"])
        for _, to, message in world.said
        if to == target and message["type"] == "append"
    ]


def test_nothing_happens_before_it_is_due() -> None:
    """Whoever sleeps until `next_tick_at` misses nothing: ticks before it say and change nothing."""
    world = World(*KEEPERS)
    world.start_all()
    world.agree()
    world.run(1.0)
    due = {name: node.next_tick_at() for name, node in world.nodes.items()}
    assert all(math.isfinite(moment) for moment in due.values())
    world.now = min(due.values()) - 1e-6
    for node in world.nodes.values():
        node.tick()
    assert world.sent == []
    assert {name: node.next_tick_at() for name, node in world.nodes.items()} == due


def test_a_leader_is_due_for_its_next_heartbeat() -> None:
    """Then its tick says something to everybody, and the next one is due a heartbeat later."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    world.run(1.0)
    world.now = leader.next_tick_at() + 1e-6
    leader.tick()
    assert {to for _, to, _ in world.sent} == set(KEEPERS) - {leader.name}
    assert leader.next_tick_at() > world.now


def test_what_is_committed_is_said_with_the_next_entries() -> None:
    """One command after the other costs each follower one message, not two."""
    world = World(*KEEPERS)
    leader, follower = world.start_all(), world.follower()
    world.commit(leader, 1)
    world.agree()
    world.run(1.0)
    world.said.clear()
    for number in range(2, 12):
        world.propose(leader, number)
        world.deliver()
    got = appends(world, follower.name)
    assert [entries for entries, _ in got] == [1] * 10
    assert got[-1][1] == leader.commit_index - 1


def test_what_is_committed_is_said_soon_without_entries() -> None:
    """A follower that waits for nothing has it a moment later, long before the heartbeat."""
    world = World(*KEEPERS)
    leader, follower = world.start_all(), world.follower()
    world.commit(leader, 1)
    world.agree()
    world.now = leader.next_tick_at() + 1e-6
    leader.tick()  # a heartbeat: the next one is as far away as can be
    world.deliver()
    world.propose(leader, 2)
    world.deliver()
    begun = world.now
    assert follower.commit_index == leader.commit_index - 1
    world.now = leader.next_tick_at() + 1e-6
    leader.tick()
    world.deliver()
    assert follower.commit_index == leader.commit_index
    assert world.now - begun < leader.timing.heartbeat_s / 2


def test_a_follower_that_asked_hears_at_once() -> None:
    """Its own proposal ends without waiting for anything but the messages."""
    world = World(*KEEPERS)
    world.start_all()
    world.agree()
    outcome = world.propose(world.follower(), 1)
    world.deliver()
    assert len(outcome) == 1


def test_a_new_leader_sends_what_the_others_lack_at_once() -> None:
    """Its first message holds its no-op: nobody has to say first that it is missing."""
    world = World(*KEEPERS)
    first = world.start_all()
    world.commit(first, 1)
    world.agree()
    world.said.clear()
    world.kill(first.name)
    second = world.leader()
    world.until(lambda: second.commit_index == second.last_index, "the no-op")
    answers = [
        message for _, to, message in world.said if to == second.name and message["type"] == "appended"
    ]
    assert answers
    assert all(answer["success"] for answer in answers)


def test_the_first_to_notice_a_death_asks_in_the_same_turn() -> None:
    """The first by name of those that are left does not wait for a moment to pass."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.agree()
    world.said.clear()
    world.kill(leader.name)
    asked = {sender for sender, _, data in world.sent if b"pre_vote" in data}
    assert asked == {min(world.nodes)}
