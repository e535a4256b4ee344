"""Raft nodes over messages, clocks and disks in memory."""

from __future__ import annotations

from fedkeeper.replication.base import Role
from tests.replication.raft.cluster_world import World


def test_three_keepers_begin_elect_and_commit() -> None:
    """Everything that is proposed is applied by all, in one order."""
    world = World("k1", "k2", "k3")
    leader = world.start_all()
    world.commit(leader, 1, 2, 3)
    assert world.agree() == 3


def test_a_follower_has_its_proposals_committed() -> None:
    """They are forwarded; the outcome is that of its own machine."""
    world = World("k1", "k2", "k3")
    leader = world.start_all()
    follower = next(node for node in world.nodes.values() if node is not leader)
    world.commit(follower, 1, 2)
    assert world.agree() == 2


def test_one_keeper_begins_at_once() -> None:
    """There is nobody to wait for."""
    world = World("k1")
    leader = world.start("k1")
    world.run(0.1)
    assert leader.status().role is Role.LEADER
    outcome = world.propose(leader, 1, 2)
    assert [applied.rejected for applied in outcome[0]] == ["", ""]


def test_all_killed_at_once_come_back_with_everything() -> None:
    """From their disks."""
    world = World("k1", "k2", "k3")
    world.commit(world.start_all(), *range(1, 51))
    for name in list(world.nodes):
        world.kill(name, power=True)
    world.start_all()
    assert world.agree() == 50
