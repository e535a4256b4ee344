"""The network between the machines: connections that break, directions that are cut, messages that are late.

What holds is what `Network` promises and TCP gives: at most once and in order while a connection lasts.
Everything else goes wrong here: messages are dropped (a full queue), or wait while their direction is cut
and arrive much later; a connection breaks with what is under way lost, and one end may learn of it seconds
after the other; reconnecting takes several attempts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from fedkeeper.replication.raft.base import Hello, Message, Receiver
from tests.raft_sim.world import Machine, World

RETRY_S = 0.1  # between two attempts to connect
HANDSHAKE_S = 1.0  # until an attempt is given up
UNNOTICED_S = 2.0  # how long an end may hold on to a connection that the other end has lost
# Of these Raft asks no more than a bad network gives; a proposal that came twice would be two.
RAFTS = frozenset(
    (
        "append",
        "appended",
        "snapshot",
        "snapshot_ack",
        "pre_vote",
        "pre_vote_answer",
        "request_vote",
        "response_vote",
    )
)
Spy = Callable[[str, str, Mapping[str, Any]], None]  # sender, target, message


@dataclass
class Weather:
    """How bad the network is."""

    delay_s: float = 0.001  # typical, one way
    jitter: float = 1.0  # the tail: times an exponential draw
    read_s: float = 0.001  # until a process reads what has arrived: what comes meanwhile is read with it
    drop: float = 0.0  # part of the messages that a full queue drops
    break_per_s: float = 0.0  # of each connection
    rude: float = 0.0  # part of Raft's own messages that come twice: more than a Network may do
    late_s: float = 0.0  # after which the second comes, at most, with others before it


@dataclass
class End:
    """One side of a connection."""

    machine: Machine
    life: int
    network: SimulatedNetwork
    up: bool = False  # told to the receiver
    closed: bool = False
    read: deque[bytes] = field(default_factory=deque)  # arrived, not read yet


class Connection:
    """Two ends, and a queue in each direction."""

    def __init__(self, wires: Wires, dialler: End, answerer: End) -> None:
        self.wires = wires
        self.ends = {dialler.machine.name: dialler, answerer.machine.name: answerer}
        self._last_at = dict.fromkeys(self.ends, 0.0)
        self._held: dict[str, list[Callable[[], None]]] = {name: [] for name in self.ends}  # by sender

    def other(self, name: str) -> str:
        """Who is at the other end."""
        return next(one for one in self.ends if one != name)

    def carry(self, sender: str, arrive: Callable[[], None]) -> None:
        """Have `arrive` happen at the other end, after everything that was sent before."""
        target = self.other(sender)
        if self.wires.cut(sender, target) or self._held[sender]:
            self._held[sender].append(arrive)
            return
        world, weather = self.wires.world, self.wires.weather
        chance = self.wires.link_chance(sender, target)
        delay_s = weather.delay_s * (0.5 + weather.jitter * chance.expovariate(1.0))
        at = self._last_at[sender] = max(self._last_at[sender] + 1e-6, world.now + delay_s)
        world.after(at - world.now, arrive)

    def healed(self, sender: str) -> None:
        """The direction from `sender` is open again: what waited goes on its way."""
        held, self._held[sender] = self._held[sender], []
        for arrive in held:
            self.carry(sender, arrive)

    def close(self, name: str, why: str) -> None:
        """This end is gone, and knows; the other learns of it in its time, if at all."""
        end = self.ends[name]
        if end.closed:
            return
        end.closed = True
        other = self.other(name)
        self.wires.world.tell(f"{name}: connection to {other} is gone ({why})")
        end.network.lost(other, self)
        chance = self.wires.link_chance(name, other)
        if self.wires.powered(name):
            self.carry(name, lambda: self.close(other, "the other end closed it"))
        self.wires.world.after(
            chance.uniform(0.0, UNNOTICED_S), lambda: self.close(other, "no sign of the other end")
        )

    def message(self, sender: str, data: bytes) -> None:
        """Carry a message, if this end is still open."""
        if self.ends[sender].closed:
            return
        target = self.ends[self.other(sender)]
        self.carry(sender, lambda: self._arrive(target, data))

    def _arrive(self, end: End, data: bytes) -> None:
        if end.closed or not end.machine.running or end.machine.life != end.life:
            return
        end.read.append(data)
        if len(end.read) == 1:
            wait_s = self.wires.weather.read_s * end.machine.chance.random()
            end.machine.after(wait_s, lambda: end.network.drain(self, end))


class Wires:
    """All connections of a world, and what is cut."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weather = Weather()
        self.networks: dict[str, SimulatedNetwork] = {}  # of running processes
        self.spies: list[Spy] = []
        self.connections: list[Connection] = []
        self._cut: set[tuple[str, str]] = set()
        self._dark: set[str] = set()  # without power: not even a reset comes back
        self._chances: dict[tuple[str, str], Any] = {}

    def link_chance(self, sender: str, target: str) -> Any:
        """A stream for each direction, so that the order in which a node sends to its peers is no matter."""
        if (sender, target) not in self._chances:
            self._chances[sender, target] = self.world.chance(f"wire/{sender}/{target}")
        return self._chances[sender, target]

    def cut(self, sender: str, target: str) -> bool:
        """Whether nothing gets from `sender` to `target` now."""
        return (sender, target) in self._cut

    def powered(self, name: str) -> bool:
        """Whether the machine's kernel still answers."""
        return name not in self._dark

    def partition(self, directions: Collection[tuple[str, str]]) -> None:
        """Cut these directions. Connections last until somebody gives up."""
        self._cut.update(directions)
        for connection in tuple(self.connections):
            if any(self.cut(name, connection.other(name)) for name in connection.ends):
                name = min(connection.ends)
                chance = self.link_chance(name, connection.other(name))
                give_up_s = chance.choice((0.2, 1.0, 3.0, 30.0)) * (0.5 + chance.random())
                self.world.after(give_up_s, lambda one=connection, end=name: self._give_up(one, end))

    def _give_up(self, connection: Connection, name: str) -> None:
        other = connection.other(name)
        if self.cut(name, other) or self.cut(other, name):
            connection.close(name, "nothing gets through")

    def heal(self) -> None:
        """Everything gets through again."""
        self._cut.clear()
        for connection in tuple(self.connections):
            for name in connection.ends:
                connection.healed(name)

    def gone(self, name: str, *, power: bool) -> None:
        """The process on `name` died; with a power cut nobody is told."""
        if power:
            self._dark.add(name)
        network = self.networks.pop(name, None)
        for connection in tuple(self.connections):
            if name in connection.ends and not connection.ends[name].closed:
                connection.close(name, "died")
        if network is not None:
            network.receiver = None

    def back(self, name: str) -> None:
        """The machine has power."""
        self._dark.discard(name)

    def forget(self, connection: Connection) -> None:
        """Both ends are closed."""
        if connection in self.connections and all(end.closed for end in connection.ends.values()):
            self.connections.remove(connection)


class SimulatedNetwork:
    """A `Network` for one process."""

    def __init__(self, wires: Wires, machine: Machine) -> None:
        self.wires = wires
        self.machine = machine
        self.receiver: Receiver | None = None
        self._peers: set[str] = set()
        self._links: dict[str, Connection] = {}

    # --- Network ---------------------------------------------------------------------------------

    def open(self, receiver: Receiver) -> None:
        """Listen, and keep trying to connect."""
        self.receiver = receiver
        self.wires.networks[self.machine.name] = self
        self._dial()

    def peers(self, names: Collection[str]) -> None:
        """Be connected to these, and to nobody else."""
        self._peers = set(names) - {self.machine.name}
        for name in sorted(set(self._links) - self._peers):
            self._links[name].close(self.machine.name, "not a peer any more")

    def send(self, peer: str, message: Message) -> None:
        """Queue a message, or drop it."""
        name, weather = self.machine.name, self.wires.weather
        data = msgspec.msgpack.encode(message)  # what cannot be encoded fails here, connected or not
        connection = self._links.get(peer)
        if connection is None or not connection.ends[name].up:
            return
        for spy in tuple(self.wires.spies):
            spy(name, peer, message)
        chance = self.wires.link_chance(name, peer)
        if chance.random() < weather.drop:
            return
        connection.message(name, data)
        if weather.rude and message["type"] in RAFTS and chance.random() < weather.rude:
            late_s = weather.late_s * chance.random()
            self.wires.world.after(late_s, partial(connection.message, name, data))

    def flush(self) -> None:
        """Everything is on its way already."""

    async def close(self) -> None:
        """Let go of everything."""
        self.shut()

    # --- inside ----------------------------------------------------------------------------------

    def shut(self) -> None:
        """As `close`, without a loop."""
        for connection in tuple(self._links.values()):
            connection.close(self.machine.name, "closed")
        self.receiver = None
        self.wires.networks.pop(self.machine.name, None)

    def _dial(self) -> None:
        if self.receiver is None:
            return
        for peer in sorted(self._peers - set(self._links)):
            if peer < self.machine.name:  # one of the two dials, as in the real network
                self._connect(peer)
        self.machine.after(RETRY_S * (0.5 + self.machine.chance.random()), self._dial)

    def _connect(self, peer: str) -> None:
        wires, name = self.wires, self.machine.name
        there = wires.networks.get(peer)
        if there is None or wires.cut(name, peer) or wires.cut(peer, name) or name not in there._peers:
            return
        connection = Connection(
            wires,
            End(self.machine, self.machine.life, self),
            End(there.machine, there.machine.life, there),
        )
        wires.connections.append(connection)
        self._links[peer] = connection
        hello, end = self._hello(), connection.ends[name]
        self.machine.after(
            HANDSHAKE_S, lambda: end.up or connection.close(name, "no answer to the handshake")
        )
        connection.carry(name, lambda: there.machine.do(lambda: there._greeted(connection, name, hello, 0)))

    def _hello(self) -> Hello:
        assert self.receiver is not None
        return self.receiver.hello()

    def _greeted(self, connection: Connection, peer: str, hello: Hello, step: int) -> None:
        """Three steps, as a handshake has: the dialler is up after two, the answerer after three."""
        name = self.machine.name
        end = connection.ends[name]
        if end.closed or self.receiver is None or end.life != self.machine.life:
            return
        if peer not in self._peers:
            connection.close(name, "not a peer")
            return
        if step == 0:
            old = self._links.get(peer)
            if old is not None and old is not connection:
                old.close(name, "a newer connection came")
            self._links[peer] = connection
        if step < 2:
            there, mine = connection.ends[peer], self._hello()
            connection.carry(
                name,
                lambda: there.machine.do(
                    lambda: there.network._greeted(connection, name, mine, step + 1), there.life
                ),
            )
        if step > 0:
            end.up = True
            self.wires.world.tell(f"{name}: connected to {peer}")
            self.receiver.connected(hello)
            self._may_break(connection)

    def _may_break(self, connection: Connection) -> None:
        """One end of a connection that is up plans its break, if the weather has such."""
        name, rate = self.machine.name, self.wires.weather.break_per_s
        if rate:
            chance = self.wires.link_chance(name, connection.other(name))
            self.wires.world.after(
                chance.expovariate(rate / 2), lambda: connection.close(name, "broke, as connections do")
            )

    def drain(self, connection: Connection, end: End) -> None:
        """Read everything that has arrived, as one read does."""
        messages: Sequence[Message] = [msgspec.msgpack.decode(data) for data in end.read]
        end.read.clear()
        if self.receiver is not None and end.up and not end.closed:
            self.receiver.received(connection.other(self.machine.name), messages)

    def lost(self, peer: str, connection: Connection) -> None:
        """This end of a connection has closed."""
        end = connection.ends[self.machine.name]
        if self._links.get(peer) is connection:
            del self._links[peer]
        self.wires.forget(connection)
        if end.up and self.machine.running and end.life == self.machine.life:
            end.up = False
            # Never from within a call of the node to its network.
            self.machine.after(0.0, lambda: self.receiver and self.receiver.disconnected(peer))
