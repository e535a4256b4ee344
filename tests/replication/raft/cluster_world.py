"""Raft nodes in one process: their messages in a list, their clock turned by hand, their disks in memory.

Every message is delivered exactly when a test says so; `loses` and `holds` pick some that are not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from fedkeeper.errors import FedKeeperError
from fedkeeper.replication import codec
from fedkeeper.replication.raft.base import Hello, Message, Receiver
from fedkeeper.replication.raft.node import RaftNode
from fedkeeper.replication.raft.simulated_disk import Platter, SimulatedDisk
from fedkeeper.replication.raft.storage import Storage
from fedkeeper.replication.raft.timing import TIMINGS
from tests.replication import toy

FOLDER = Path("/data")
Rule = Callable[[str, str, Message], bool]  # sender, target, message
TIMING = TIMINGS["steady"]


class Wire:
    """A `Network` of the world."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.receiver: Receiver | None = None
        self.wanted: set[str] = set()

    def open(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def peers(self, names: Collection[str]) -> None:
        self.wanted = set(names)

    def send(self, peer: str, message: Message) -> None:
        self.world.sent.append((self.name, peer, msgspec.msgpack.encode(message)))

    def flush(self) -> None:
        """Everything has its place in the list already."""

    async def close(self) -> None:
        """See `World.kill`."""


class World:
    """Keepers by name. `run` lets time pass, and messages arrive."""

    def __init__(self, *names: str, snapshot_every: int = 1000, apply: Any = toy.apply) -> None:
        self.now = 100.0
        self.members = {name: f"{name}:1" for name in names}
        self.nodes: dict[str, RaftNode] = {}
        self.platters: dict[str, Platter] = {}
        self.wires: dict[str, Wire] = {}
        self.links: set[frozenset[str]] = set()
        self.cut: set[frozenset[str]] = set()
        self.sent: list[tuple[str, str, bytes]] = []
        self.frozen: set[str] = set()  # SIGSTOP: what comes for them waits
        self.loses: Rule = lambda sender, target, message: False
        self.said: list[tuple[str, str, Message]] = []  # all that was delivered
        self.applied: dict[str, list[tuple[int, bytes]]] = {}
        self.snapshot_every = snapshot_every
        self.apply = apply
        self._lives = 0

    # --- processes ---------------------------------------------------------------------------------

    def start(self, name: str, *, members: Collection[str] = (), apply: Any = None) -> RaftNode:
        """A keeper starts from what is on its disk."""
        self._lives += 1
        platter = self.platters.setdefault(name, Platter(seed=self._lives))
        storage = Storage(
            FOLDER / name,
            disk=SimulatedDisk(platter),
            fsync=True,
            owner=name,
            incarnation=lambda: f"{name}-{self._lives}",
        )
        wire = self.wires[name] = Wire(self, name)
        self.applied[name] = []
        node = RaftNode(
            name,
            {one: f"{one}:1" for one in members} if members else self.members,
            storage=storage,
            network=wire,
            clock=lambda: self.now,
            chance=random.Random(f"{name} {self._lives}"),  # noqa: S311
            timing=TIMING,
            apply=apply or self.apply,
            on_applied=lambda index, entry, results: self.applied[name].append((index, entry)),
            snapshot_every=self.snapshot_every,
            propose_timeout_s=5.0,
        )
        self.nodes[name] = node
        node.open()
        return node

    def start_all(self) -> RaftNode:
        """All keepers, until one leads."""
        for name in self.members:
            self.start(name)
        return self.leader()

    def kill(self, name: str, *, wipe: bool = False, power: bool = False) -> None:
        """Its process dies; the others are told."""
        node = self.nodes.pop(name)
        node.storage._files._disk.close()
        if power:
            self.platters[name].cut_power()
        if wipe:
            del self.platters[name]
        del self.wires[name]
        self.sent = [one for one in self.sent if name not in one[:2]]
        self._connect()

    def part(self, *names: str) -> None:
        """Nothing gets through between these and the others; connections break."""
        others = set(self.members) - set(names)
        self.cut = {frozenset((one, other)) for one in names for other in others}
        self._connect()

    def heal(self) -> None:
        self.cut = set()
        self._connect()

    # --- time --------------------------------------------------------------------------------------

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Tick by tick; everything that is said arrives within the tick."""
        end = self.now + seconds
        while self.now < end:
            if until is not None and until():
                return True
            self.now += TIMING.tick_s
            self._connect()
            for name, node in list(self.nodes.items()):
                if name not in self.frozen:
                    node.tick()
            self.deliver()
        return until is not None and until()

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        assert self.run(seconds, condition), (
            f"in vain for {what}: {[n.status() for n in self.nodes.values()]}"
        )

    def deliver(self, limit: int = 10_000) -> None:
        """What is on its way, and what is said in answer."""
        for _ in range(limit):
            ready = [one for one in self.sent if not self.frozen & set(one[:2])]
            if not ready:
                return
            self.deliver_one(ready[0])
        raise AssertionError("the keepers never stop talking")

    def deliver_one(self, which: tuple[str, str, bytes]) -> None:
        self.sent.remove(which)
        sender, target, data = which
        if frozenset((sender, target)) not in self.links:
            return
        message = msgspec.msgpack.decode(data)
        if not self.loses(sender, target, message):
            self.said.append((sender, target, message))
            self.nodes[target].received(sender, [message])

    def _connect(self) -> None:
        up = {n for n, node in self.nodes.items() if node.failure is None}
        wanted = {
            frozenset((one, other))
            for one in up
            for other in up
            if one != other and other in self.wires[one].wanted and one in self.wires[other].wanted
        } - self.cut
        for link in sorted(self.links - wanted, key=sorted):
            self.links.discard(link)
            self.sent = [one for one in self.sent if frozenset(one[:2]) != link]
            for name in sorted(link):
                if name in self.nodes:
                    self.nodes[name].disconnected(next(iter(link - {name})))
        for link in sorted(wanted - self.links, key=sorted):
            one, other = sorted(link)
            hellos: dict[str, Hello] = {name: self.nodes[name].hello() for name in link}
            self.links.add(link)
            self.nodes[one].connected(hellos[other])
            self.nodes[other].connected(hellos[one])

    # --- what tests ask -----------------------------------------------------------------------------

    def leader(self) -> RaftNode:
        """The one that leads, once all that are up and reach it say so."""

        def agreed() -> bool:
            leaders = {node.leader for node in self.nodes.values()}
            return len(leaders) == 1 and "" not in leaders and leaders <= self.nodes.keys()

        self.until(agreed, "one leader")
        return self.nodes[next(iter(self.nodes.values())).leader]

    def follower(self) -> RaftNode:
        """One that does not lead."""
        leader = self.leader()
        return next(node for node in self.nodes.values() if node is not leader)

    def propose(self, node: RaftNode, *numbers: int) -> list[Any]:
        """Propose toy commands as one batch; the list gets what came of it."""
        outcome: list[Any] = []
        node.propose([codec.encode(toy.command(number)) for number in numbers], outcome.append)
        return outcome

    def commit(self, node: RaftNode, *numbers: int) -> None:
        """Propose, each by itself, and wait."""
        for number in numbers:
            outcome = self.propose(node, number)
            self.until(lambda outcome=outcome: bool(outcome), "an outcome")
            assert not isinstance(outcome[0], FedKeeperError), outcome[0]

    def agree(self) -> int:
        """How many commands all keepers have applied, once they have applied all there are."""

        def same() -> bool:
            if any(node.failure for node in self.nodes.values()):
                raise AssertionError([node.failure for node in self.nodes.values()])
            return len({(n.applied_index, n.last_index) for n in self.nodes.values()}) == 1

        self.until(same, "agreement")
        states = [node.state for node in self.nodes.values()]
        assert all(state == states[0] for state in states), "the keepers have different states"
        return toy.count(states[0])
