"""What every network between keepers must do, the real one and the simulated one.

Subclass `NetworkContract` once per network and supply the fixture `world`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytest

from fedkeeper.replication.raft.base import Hello, Message, Network

Event = tuple[str, Any]  # ("connected", Hello), ("disconnected", name) or (name, message)


class Recorder:
    """A receiver that writes down what it is told, and checks that it is told nothing amiss."""

    def __init__(self, name: str, incarnation: str = "first") -> None:
        self.name = name
        self.introduction = Hello(
            name=name, incarnation=incarnation, fresh=True, cluster="", last_index=0, version=1
        )
        self.events: list[Event] = []
        self.reads: list[int] = []  # messages handed over together
        self.peers: dict[str, Hello] = {}  # connected now
        self.inside = False  # we are calling the network at this moment
        self.closed = False
        self.react: Callable[[str, Message], None] = lambda peer, message: None
        self.greet: Callable[[str], None] = lambda peer: None

    def hello(self) -> Hello:
        return self.introduction

    def connected(self, hello: Hello) -> None:
        self._told()
        assert hello.name not in self.peers, f"{self.name}: {hello.name} is connected twice"
        self.peers[hello.name] = hello
        self.events.append(("connected", hello))
        self.greet(hello.name)

    def disconnected(self, peer: str) -> None:
        self._told()
        assert peer in self.peers, f"{self.name}: {peer} is disconnected, and was not connected"
        del self.peers[peer]
        self.events.append(("disconnected", peer))

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        self._told()
        assert messages, f"{self.name}: told of nothing"
        assert peer in self.peers, f"{self.name}: a message of {peer}, which is not connected"
        self.reads.append(len(messages))
        for message in messages:
            self.events.append((peer, message))
            self.react(peer, message)

    def messages(self, peer: str) -> list[Message]:
        """All that `peer` has said."""
        return [what for who, what in self.events if who == peer]

    def count(self, event: str) -> int:
        return sum(what == event for what, _ in self.events)

    def _told(self) -> None:
        assert not self.inside, f"{self.name} is told of something inside its own call"
        assert not self.closed, f"{self.name} is told of something after it has closed its network"


class Node:
    """One keeper's network and who is told."""

    def __init__(self, network: Network, recorder: Recorder) -> None:
        self.network = network
        self.told = recorder

    def send(self, peer: str, message: Message) -> None:
        self._call(self.network.send, peer, message)

    def peers(self, *names: str) -> None:
        self._call(self.network.peers, names)

    async def close(self) -> None:
        self.told.closed = True
        await self.network.close()

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        outer, self.told.inside = self.told.inside, True
        try:
            method(*args)
        finally:
            self.told.inside = outer


class World(Protocol):
    """Where networks run: real sockets and time, or simulated ones."""

    async def start(self, name: str, *, incarnation: str = "first") -> Node:
        """A keeper with an open network that knows no peers yet. A second one of a name: a restart."""
        ...

    async def kill(self, node: Node) -> None:
        """Its process dies; the kernel closes its connections."""
        ...

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let time pass until it holds; fail, saying `what` was waited for, if it does not within 10 s."""
        ...

    async def settle(self) -> None:
        """Let enough time pass for what has been begun to be done."""
        ...


async def start_all(world: World, *names: str) -> list[Node]:
    """Keepers, each connected to each."""
    nodes = [await world.start(name) for name in names]
    for node in nodes:
        node.peers(*names)
    await all_connected(world, nodes)
    return nodes


async def all_connected(world: World, nodes: Sequence[Node]) -> None:
    """Wait until each of them knows itself connected to each other."""
    names = {node.told.name for node in nodes}
    await world.until(
        lambda: all(node.told.peers.keys() == names - {node.told.name} for node in nodes), "all connected"
    )


class NetworkContract:
    """The promises of `Network` in replication/raft/base.py."""

    async def test_both_sides_are_told_who_the_other_is(self, world: World) -> None:
        """`connected` carries what the peer's `hello` said."""
        one, two = await start_all(world, "k1", "k2")
        assert one.told.events == [("connected", two.told.introduction)]
        assert two.told.events == [("connected", one.told.introduction)]

    async def test_seven_keepers_connect_each_to_each(self, world: World) -> None:
        """One connection per pair, told once on each side."""
        nodes = await start_all(world, *(f"k{number}" for number in range(7)))
        await world.settle()
        assert [node.told.count("connected") for node in nodes] == [6] * 7
        assert [node.told.count("disconnected") for node in nodes] == [0] * 7

    async def test_messages_arrive_whole_and_in_order_both_ways(self, world: World) -> None:
        """Of every type that a message may hold."""
        one, two = await start_all(world, "k1", "k2")
        rich = {
            "none": None,
            "yes": True,
            "int": -(2**63),
            "big": 2**64 - 1,
            "text": "höhe",
            "raw": b"\x00\xff",
        }
        sent = [
            {**rich, "list": [1, [2, {"in": b""}]], "no": number, "long": b"x" * (number % 7 * 10_000)}
            for number in range(100)
        ]
        for message in sent:
            one.send("k2", message)
            two.send("k1", message)
        await world.until(lambda: len(two.told.messages("k1")) == 100 == len(one.told.messages("k2")), "all")
        assert two.told.messages("k1") == sent
        assert one.told.messages("k2") == sent

    async def test_a_message_is_what_it_was_when_it_was_sent(self, world: World) -> None:
        """Whoever sends may go on with its lists and dicts."""
        one, two = await start_all(world, "k1", "k2")
        entries = [1]
        one.send("k2", {"entries": entries})
        entries.append(2)
        await world.until(lambda: bool(two.told.messages("k1")), "the message")
        assert two.told.messages("k1") == [{"entries": [1]}]

    async def test_messages_to_nobody_are_dropped(self, world: World) -> None:
        """To itself, a stranger, a peer that is not there: no error, and nothing comes later."""
        one = await world.start("k1")
        one.send("k2", {"early": 1})
        one.peers("k1", "k2")
        one.send("k2", {"early": 2})
        one.send("k1", {"to": "myself"})
        one.send("k9", {"to": "nobody"})
        two = await world.start("k2")
        two.peers("k1", "k2")
        await all_connected(world, [one, two])
        one.send("k2", {"late": 3})
        await world.until(lambda: bool(two.told.messages("k1")), "the message")
        assert two.told.messages("k1") == [{"late": 3}]
        assert one.told.count("k1") == 0

    async def test_answers_may_be_sent_while_being_told(self, world: World) -> None:
        """From inside `connected` and `received`; nothing is told meanwhile."""
        one, two = await world.start("k1"), await world.start("k2")
        two.told.greet = lambda peer: two.send(peer, {"count": 0})
        one.told.react = lambda peer, message: one.send(peer, {"count": message["count"] + 1})
        two.told.react = lambda peer, message: two.send(peer, {"count": message["count"] + 1})
        one.peers("k1", "k2")
        two.peers("k1", "k2")
        await world.until(lambda: {"count": 51} in two.told.messages("k1"), "many answers")
        counts = [message["count"] for message in two.told.messages("k1")]
        assert counts == list(range(1, 2 * len(counts), 2))

    @pytest.mark.parametrize("name", ["k1", "k2", "k3"])
    async def test_a_death_is_told_at_once_and_a_restart_connects_again(
        self, world: World, name: str
    ) -> None:
        """With what the new process says of itself."""
        nodes = await start_all(world, "k1", "k2", "k3")
        others = [node for node in nodes if node.told.name != name]
        for node in nodes:
            if node not in others:
                await world.kill(node)
        await world.until(lambda: all(name not in other.told.peers for other in others), "the death")
        again = await world.start(name, incarnation="second")
        again.peers("k1", "k2", "k3")
        await all_connected(world, [again, *others])
        for other in others:
            assert other.told.events[-2:] == [
                ("disconnected", name),
                ("connected", again.told.introduction),
            ]
            again.send(other.told.name, {"from": "the second"})
        await world.until(
            lambda: all(other.told.messages(name) == [{"from": "the second"}] for other in others), "messages"
        )

    async def test_each_connection_begins_with_the_hello_of_that_moment(self, world: World) -> None:
        """A keeper that has become a member of a cluster says so the next time."""
        one, two = await start_all(world, "k1", "k2")
        one.told.introduction = Hello(
            name="k1", incarnation="first", fresh=False, cluster="c1", last_index=7, version=2
        )
        two.peers()
        await world.until(lambda: not one.told.peers and not two.told.peers, "the end")
        two.peers("k1", "k2")
        await all_connected(world, [one, two])
        assert two.told.peers["k1"] == one.told.introduction

    async def test_only_those_named_are_connected(self, world: World) -> None:
        """Both sides must want it; one that is named no more is left, and its messages are dropped."""
        one, two, three = await start_all(world, "k1", "k2", "k3")
        one.peers("k1", "k2")
        await world.until(lambda: "k3" not in one.told.peers and "k1" not in three.told.peers, "the parting")
        three.send("k1", {"not": "wanted"})
        one.send("k3", {"not": "wanted"})
        three.send("k2", {"still": "wanted"})
        await world.until(lambda: bool(two.told.messages("k3")), "the other message")
        await world.settle()
        assert one.told.peers.keys() == {"k2"}
        assert one.told.count("k3") == three.told.count("k1") == 0
        one.peers("k1", "k2", "k3")
        await all_connected(world, [one, two, three])

    async def test_the_same_names_again_change_nothing(self, world: World) -> None:
        """Connections that stand are not touched."""
        one, two, three = await start_all(world, "k1", "k2", "k3")
        one.peers("k3", "k2")
        two.peers("k1", "k2", "k3", "k4")
        await world.settle()
        assert [node.told.count("disconnected") for node in (one, two, three)] == [0, 0, 0]

    async def test_nothing_is_told_after_close(self, world: World) -> None:
        """Not even that the peers are gone; closing twice is harmless."""
        one, two = await start_all(world, "k1", "k2")
        two.send("k1", {"too": "late"})
        await one.close()
        told = list(one.told.events)
        await world.until(lambda: not two.told.peers, "the end")
        one.send("k2", {"too": "late"})
        await world.settle()
        await one.close()
        assert one.told.events == told
        assert two.told.count("k1") == 0
