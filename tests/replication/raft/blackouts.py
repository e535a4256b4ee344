"""Raft nodes on simulated disks whose power may go at any moment, and the check that nothing leaves early.

Whatever a node promises in a message, and whatever anyone takes for committed, must be on the disks that it
is said to be on *at that moment*: a copy of the disk loses its power, and is read.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from fedkeeper.core.model import Applied, Command, Entry, State, StopRun
from fedkeeper.replication import codec
from fedkeeper.replication.base import Role
from fedkeeper.replication.raft.base import Message, Receiver
from fedkeeper.replication.raft.node import TIMINGS, RaftNode, Result
from fedkeeper.replication.raft.simulated_disk import Platter, PowerCut, SimulatedDisk
from fedkeeper.replication.raft.storage import Storage

FOLDER = Path("/data")
TICK_S = 0.005
PROMISES = ("request_vote", "response_vote", "append", "appended", "snapshot_ack")


def apply(state: State, command: Command) -> Applied:
    """Keep each command, with its place in the order."""
    assert isinstance(command, StopRun)
    number = state.kv_version + 1
    kv = {**state.kv, command.run: Entry(value=str(number), version=number)}
    return Applied(state=replace(state, kv=kv, kv_version=number))


class Wire:
    """A node's `Network`: what it sends is checked, and delivered in the next step."""

    def __init__(self, room: Room, name: str) -> None:
        self._room = room
        self._name = name

    def open(self, receiver: Receiver) -> None:
        """The room connects."""

    def peers(self, names: Collection[str]) -> None:
        """All of them, always."""

    def send(self, peer: str, message: Message) -> None:
        """Only what is true of the disk."""
        self._room.check_promise(self._name, peer, message)
        if peer in self._room.nodes:
            self._room.under_way[self._name, peer].append(message)

    def flush(self) -> None:
        """It is under way already."""

    async def close(self) -> None:
        """Nothing is open."""


class Room:
    """The nodes, their disks, the time, and what clients were told."""

    def __init__(
        self, names: Sequence[str], seed: int, *, fsync: bool = True, snapshot_every: int = 8
    ) -> None:
        self.names = names
        self.fsync = fsync
        self.chance = random.Random(seed)  # noqa: S311
        self.now = 100.0
        self.platters = {name: Platter(self.chance.getrandbits(32)) for name in names}
        self.nodes: dict[str, RaftNode] = {}
        self.storages: dict[str, Storage] = {}
        self.under_way: dict[tuple[str, str], list[Message]] = defaultdict(list)
        self.acknowledged: set[str] = set()
        self.proposed = 0
        self.checked = 0  # promises and commits
        self.wiped = 0
        self._committed = dict.fromkeys(names, 1)
        self._snapshot_every = snapshot_every
        for name in names:
            self.start(name)

    # --- what happens ----------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """From whatever is on its disk; the power may go meanwhile."""
        try:
            node = self._node(name)
        except PowerCut:
            self.platters[name].cut_at = 0
            return
        others, self.nodes[name] = dict(self.nodes), node
        self._act(name, node.open)
        for other in others.values():
            if name in self.nodes and other.name in self.nodes:
                self._act(name, lambda other=other: node.connected(other.hello()))
            if name in self.nodes and other.name in self.nodes:
                self._act(other.name, lambda other=other: other.connected(node.hello()))

    def _node(self, name: str) -> RaftNode:
        storage = self.storages[name] = Storage(
            FOLDER,
            disk=SimulatedDisk(self.platters[name]),
            fsync=self.fsync,
            owner=name,
            incarnation=lambda: f"{self.chance.getrandbits(64):x}",
        )
        return RaftNode(
            name,
            dict.fromkeys(self.names, ""),
            storage=storage,
            network=Wire(self, name),
            clock=lambda: self.now,
            chance=random.Random(self.chance.getrandbits(32)),  # noqa: S311
            timing=TIMINGS["fast"],
            apply=apply,
            on_applied=lambda _index, _entry, _results: None,
            on_change=lambda: None,
            snapshot_every=self._snapshot_every,
            propose_timeout_s=0.5,
        )

    def cut_power(self, name: str) -> None:
        """Of one machine; the others see the connections break."""
        self.platters[name].cut_power()
        self._gone(name)

    def wipe(self, name: str) -> None:
        """Its machine comes back with an empty disk, if all the others count: Raft can do without one."""
        if all(self._counts(other) for other in self.names if other != name):
            self.cut_power(name)
            self.platters[name] = Platter(self.chance.getrandbits(32))
            self._committed[name] = 1
            self.wiped += 1

    def step(self) -> None:
        """Deliver what is under way, and let time pass."""
        self.now += TICK_S
        for (sender, peer), messages in sorted(self.under_way.items()):
            self.under_way[sender, peer] = []
            if messages:
                self._act(peer, lambda s=sender, p=peer, m=messages: self.nodes[p].received(s, m))
        for name in self.names:
            self._act(name, lambda n=name: self.nodes[n].tick())

    def propose(self) -> None:
        """A new command, by any node."""
        if not self.nodes:
            return
        self.proposed += 1
        run = f"run-{self.proposed}"
        line = codec.encode(StopRun(run=run, reason="", at_ms=self.proposed))

        def done(result: Result) -> None:
            if isinstance(result, list):
                self.acknowledged.add(run)

        name = self.chance.choice(sorted(self.nodes))
        self._act(name, lambda: self.nodes[name].propose([line], done))

    @property
    def leader(self) -> RaftNode | None:
        """The one of the latest term."""
        leaders = [node for node in self.nodes.values() if node.status().role is Role.LEADER]
        return max(leaders, key=lambda node: node.status().term, default=None)

    def settle(self) -> None:
        """Everybody is back; every node has what every other has, and all that was acknowledged."""
        for name in self.names:
            self.platters[name].cut_at = 0
            if name not in self.nodes:
                self.start(name)
        for _ in range(1200):
            self.step()
            statuses = [node.status() for node in self.nodes.values()]
            if (
                len(statuses) == len(self.names)
                and self.leader is not None
                and len({status.applied_index for status in statuses}) == 1
                and all(status.applied_index == status.last_index for status in statuses)
            ):
                break
        else:
            raise AssertionError(f"not settled: {[node.status() for node in self.nodes.values()]}")
        states = [node.state for node in self.nodes.values()]
        assert all(state == states[0] for state in states), "they differ"
        lost = self.acknowledged - states[0].kv.keys()
        assert not lost, f"acknowledged and lost: {sorted(lost)}"

    def _act(self, name: str, act: object) -> None:
        """Have a node act, unless it is gone; check what it takes for committed then."""
        if name not in self.nodes:
            return
        try:
            act()  # type: ignore[operator]
        except PowerCut:
            self._gone(name)
            return
        failure = self.nodes[name].failure
        if failure is not None:
            raise AssertionError(f"{name} stopped") from failure
        self._check_committed(name)

    def _gone(self, name: str) -> None:
        self.nodes.pop(name, None)
        self.platters[name].cut_at = 0
        for pair in list(self.under_way):
            if name in pair:
                del self.under_way[pair]
        for other in list(self.nodes.values()):
            self._act(other.name, lambda other=other: other.disconnected(name))

    # --- what must hold --------------------------------------------------------------------------------

    def on_disk(self, name: str) -> Storage:
        """What `name` would find if the power went now."""
        platter = copy.deepcopy(self.platters[name])
        platter.cut_at = 0
        platter.cut_power()
        return Storage(FOLDER, disk=SimulatedDisk(platter), fsync=True, owner=name)

    def _counts(self, name: str) -> bool:
        identity = self.on_disk(name).identity
        return bool(identity.cluster) and identity.newcomer_until == 0

    def check_promise(self, name: str, peer: str, message: Message) -> None:
        """A vote, a candidacy, an acknowledgement: true after a power cut as well."""
        kind = message["type"]
        if kind not in PROMISES:
            return
        self._check_committed(name)  # it may be told now
        self.checked += 1
        stored = self.on_disk(name)
        term = message["term"]
        assert stored.getCurrentTerm() >= term, f"{name} sent {kind} in a term that is not on its disk"
        if kind in ("request_vote", "response_vote") and stored.getCurrentTerm() == term:
            vote = name if kind == "request_vote" else peer
            assert stored.getVotedForNodeId() == vote, f"{name} sent {kind}, and its vote is not on its disk"
        if kind == "appended" and message["success"]:
            assert stored[-1][1] >= message["next"] - 1, f"{name} acknowledged what is not on its disk"

    def _check_committed(self, name: str) -> None:
        """It is on the disks of a majority."""
        if name not in self.nodes:
            return
        index = self.nodes[name].status().commit_index
        if index <= self._committed[name]:
            return
        self._committed[name] = index
        self.checked += 1
        own = self.storages[name]
        term = own[index - own[0][1]][2]
        holders = 0
        for other in self.names:
            stored = self.on_disk(other)
            position = index - stored[0][1] if len(stored) else 0
            holders += position < 0 or (position < len(stored) and stored[position][2] == term)
        assert holders > len(self.names) / 2, f"{name} takes {index} for committed: on {holders} disks"
