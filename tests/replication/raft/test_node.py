"""Raft nodes over messages, clocks and disks in memory: what is proposed is applied, or its end is told."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import JournalDamaged, KeeperStopped, NoLeader, OutcomeUnknown
from fedkeeper.replication.base import Role
from tests.replication import toy
from tests.replication.raft.cluster_world import World

KEEPERS = ("k1", "k2", "k3")


def test_three_keepers_begin_elect_and_commit() -> None:
    """Everything that is proposed is applied by all, in one order."""
    world = World(*KEEPERS)
    world.commit(world.start_all(), 1, 2, 3)
    assert world.agree() == 3


def test_a_follower_has_its_proposals_committed() -> None:
    """They are forwarded; the outcome is that of its own machine."""
    world = World(*KEEPERS)
    world.start_all()
    follower = world.follower()
    outcome = world.propose(follower, 1, 2)
    world.until(lambda: bool(outcome), "an outcome")
    assert outcome[0][1].state == toy.after(2) == follower.state
    assert world.agree() == 2


def test_one_keeper_begins_at_once() -> None:
    """There is nobody to wait for."""
    world = World("k1")
    leader = world.start("k1")
    world.run(0.1)
    assert leader.status().role is Role.LEADER
    assert [applied.rejected for applied in world.propose(leader, 1, 2)[0]] == ["", ""]


def test_all_killed_at_once_come_back_with_everything() -> None:
    """From their disks, after a power cut."""
    world = World(*KEEPERS)
    world.commit(world.start_all(), *range(1, 51))
    for name in list(world.nodes):
        world.kill(name, power=True)
    world.start_all()
    assert world.agree() == 50


def test_an_entry_of_many_megabytes_goes_alone() -> None:
    """PySyncObj would pickle it into pieces."""
    world = World(*KEEPERS)
    leader = world.start_all()
    line = b'{"kind":"StopRun","v":1,"run":"run-1","reason":"%b","at_ms":1}' % (b"x" * 5_000_000)
    outcome: list[object] = []
    leader.propose([line], outcome.append)
    world.until(lambda: bool(outcome), "an outcome")
    assert world.agree() == 1


def test_importing_the_library_leaves_socket_as_it_was() -> None:
    """PySyncObj replaces inet_ntop by one that needs Windows."""
    assert socket.inet_ntop.__module__ == "_socket"


# --- applying ---------------------------------------------------------------------------------------


def test_a_machine_that_raises_rejects_the_command_on_every_keeper() -> None:
    """As it is, the library would retry that entry for ever, on every keeper and after every restart."""

    def fragile(state: State, command: Command) -> Applied:
        if command.at_ms == 2:
            raise ZeroDivisionError("boom")
        return toy.apply(state, command)

    world = World(*KEEPERS, apply=fragile)
    leader = world.start_all()
    outcome = world.propose(leader, 1, 2, 3)
    world.until(lambda: bool(outcome), "an outcome")
    assert [bool(applied.rejected) for applied in outcome[0]] == [False, True, False]
    assert "a fault of FedKeeper" in outcome[0][1].rejected
    world.until(lambda: len({n.applied_index for n in world.nodes.values()}) == 1, "all")
    assert len({n.state.now_ms for n in world.nodes.values()}) == 1


def test_a_keeper_without_memory_stops_and_the_others_go_on() -> None:
    """What only one keeper cannot do must not be taken for a rejection by all."""

    def hungry(state: State, command: Command) -> Applied:
        if command.at_ms == 2:
            raise MemoryError
        return toy.apply(state, command)

    world = World(*KEEPERS)
    for name in KEEPERS:
        world.start(name, apply=hungry if name == "k3" else None)
    leader = world.leader()
    world.propose(leader, 1, 2)
    world.until(lambda: world.nodes["k3"].failure is not None, "the end of k3")
    assert isinstance(world.nodes["k3"].failure, KeeperStopped)
    world.kill("k3")
    world.commit(world.leader(), 3)
    assert world.agree() == 3


def test_a_command_of_a_newer_version_stops_the_keeper_that_cannot_read_it() -> None:
    """It must neither guess nor go on without it."""
    world = World("k1")
    leader = world.start("k1")
    world.run(0.1)
    outcome: list[object] = []
    leader.propose([b'{"kind":"Future","v":99}'], outcome.append)
    world.run(0.1)
    assert isinstance(leader.failure, JournalDamaged)
    assert "newer FedKeeper" in leader.failure.hint
    assert isinstance(outcome[0], OutcomeUnknown)
    assert isinstance(world.propose(leader, 1)[0], KeeperStopped)


def test_a_callback_that_raises_makes_no_keeper_apply_twice() -> None:
    """The library calls back before it notes that the entry is applied."""
    world = World(*KEEPERS)
    leader = world.start_all()

    def bad(_: object) -> None:
        raise RuntimeError("mine")

    leader.propose([toy_line(1)], bad)
    with pytest.raises(RuntimeError, match="mine"):
        world.run(1.0)
    world.commit(leader, 2)
    assert world.agree() == 2


def kinds(outcome: Sequence[object]) -> list[type]:
    """Of what came of something."""
    return [type(one) for one in outcome]


def toy_line(number: int) -> bytes:
    """The codec's line of a toy command."""
    from fedkeeper.replication import codec

    return codec.encode(toy.command(number))


# --- every proposal ends ----------------------------------------------------------------------------


def test_without_a_leader_a_proposal_is_refused_for_certain() -> None:
    """Nothing was proposed."""
    world = World(*KEEPERS)
    node = world.start("k1")
    assert kinds(world.propose(node, 1)) == [NoLeader]


def test_what_was_lost_with_its_leader_is_known_to_be_lost() -> None:
    """As soon as the next leader's first entry is applied: then it can be proposed again."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.part(old.name)
    outcome = world.propose(old, 1)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    world.heal()
    world.until(lambda: bool(outcome), "an outcome")
    assert isinstance(outcome[0], NoLeader)
    assert world.agree() == 0


def test_what_was_forwarded_and_lost_ends_as_unknown_in_time() -> None:
    """The library waits for ever for the answer to a message that was lost while the leader stayed."""
    world = World(*KEEPERS)
    world.start_all()
    world.loses = lambda sender, target, message: message["type"] == "forward"
    outcome = world.propose(world.follower(), 1)
    world.run(4.0)
    assert not outcome
    world.run(2.0)
    assert kinds(outcome) == [OutcomeUnknown]


def test_a_forwarded_proposal_whose_leader_has_lost_the_lead_is_refused() -> None:
    """A leader of another term must not append it: it may be proposed again meanwhile."""
    world = World(*KEEPERS)
    leader = world.start_all()
    follower = world.follower()
    old = {"type": "forward", "term": leader.term - 1, "key": b"k", "kind": 0, "body": toy_line(1)}
    leader.received(follower.name, [old])
    world.run(0.5)
    assert world.agree() == 0


def test_a_keeper_that_takes_a_snapshot_does_not_know_of_its_proposals() -> None:
    """They may be in it; as it is, the library never calls back."""
    world = World(*KEEPERS, snapshot_every=20)
    old = world.start_all()
    world.part(old.name)
    outcome = world.propose(old, 1)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    leader = next(node for node in others if node.leads)
    world.commit(leader, *range(1, 60))
    world.until(lambda: leader.storage.snapshot_index > 20, "a snapshot")
    world.heal()
    world.run(0.5)  # long before its time is up
    assert kinds(outcome) == [OutcomeUnknown]
    assert world.agree() == 59


def test_a_barrier_has_what_was_acknowledged_before_it() -> None:
    """Also on a follower."""
    world = World(*KEEPERS)
    leader = world.start_all()
    world.commit(leader, 1, 2)
    seen: list[object] = []
    world.follower().barrier(seen.append)
    world.until(lambda: bool(seen), "the barrier")
    assert seen == [toy.after(2)]


def test_one_that_is_cut_off_answers_no_read() -> None:
    """It may believe for a while that it leads, and what others commit meanwhile it does not have."""
    world = World(*KEEPERS)
    old = world.start_all()
    world.commit(old, 1)
    world.part(old.name)
    seen: list[object] = []
    old.barrier(seen.append)
    others = [node for node in world.nodes.values() if node is not old]
    world.until(lambda: any(node.leads for node in others), "another leader")
    world.commit(next(node for node in others if node.leads), 2)
    world.heal()
    world.until(lambda: bool(seen), "the end of the barrier")
    assert kinds(seen) == [NoLeader]
