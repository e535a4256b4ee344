"""The real network between keepers: the contract, deaths and silence, limits, refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from fedkeeper.errors import ConfigError, PortTaken
from fedkeeper.replication.raft.network import MutualTls, PeerNetwork, Unprotected
from tests.replication.raft.certificates import authority
from tests.replication.raft.keeper_process import Process
from tests.replication.raft.network_contract import NetworkContract, all_connected, start_all
from tests.replication.raft.real_world import QUICK, SECRET, RealWorld, credentials_of, shared
from tests.replication.raft.wires import Wire

Events = list[Any]


@pytest.fixture
async def world() -> AsyncIterator[RealWorld]:
    """Networks that share a secret."""
    world = RealWorld(lambda name: shared(SECRET))
    yield world
    await world.close()


@pytest.fixture
def events() -> Iterator[Events]:
    """What is logged."""
    with structlog.testing.capture_logs() as events:
        yield events


class TestContract(NetworkContract):
    @pytest.fixture(params=["nothing", "secret", "tls"])
    async def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealWorld]:
        world = RealWorld(credentials_of(request.param, tmp_path))
        yield world
        await world.close()


class TestBatches:
    async def test_what_is_sent_in_one_turn_is_handed_over_together(self, world: RealWorld) -> None:
        """One frame, one read, one call; so is what is sent while being told."""
        one, two = await start_all(world, "k1", "k2")
        one.told.react = one.send
        for number in range(50):
            two.send("k1", {"no": number})
        await world.until(lambda: len(two.told.messages("k1")) == 50, "all")
        assert one.told.reads == [50]
        assert two.told.reads == [50]

    async def test_messages_larger_than_a_frame_are_dropped_and_counted(self, world: RealWorld) -> None:
        """The connection goes on; those just small enough pass."""
        limits = dataclasses.replace(QUICK, frame_bytes_max=100_000)
        nodes = [await world.start(name, limits=limits) for name in ("k1", "k2")]
        for node in nodes:
            node.peers("k1", "k2")
        await all_connected(world, nodes)
        for size in (99_900, 100_001, 50_000, 60_000):
            nodes[1].send("k1", {"size": size, "": b"x" * size})
        await world.until(lambda: len(nodes[0].told.messages("k2")) == 3, "the others")
        assert [message["size"] for message in nodes[0].told.messages("k2")] == [99_900, 50_000, 60_000]
        assert nodes[1].network.counts.messages_dropped == 1
        assert nodes[0].told.count("disconnected") == 0


class TestProcesses:
    """The other keeper is a process, which can be stopped and killed."""

    @pytest.fixture
    async def child(self, world: RealWorld) -> AsyncIterator[Process]:
        child = await Process.start("k1")
        world.addresses["k1"] = child.address
        yield child
        child.signal(signal.SIGCONT)
        await child.end()

    async def test_a_killed_process_is_missed_within_milliseconds(
        self, world: RealWorld, child: Process
    ) -> None:
        """Long before any silence would be noticed: its kernel closes the connection."""
        two = await world.start("k2", limits=dataclasses.replace(QUICK, silence_s=600))
        two.peers("k1")
        await world.until(lambda: bool(two.told.peers), "the connection")
        child.signal(signal.SIGKILL)
        await world.until(lambda: not two.told.peers, "the death")

    async def test_a_stopped_process_is_given_up_and_found_again(
        self, world: RealWorld, child: Process
    ) -> None:
        """Nothing closes its connection: silence does, on both sides; then it is dialled again."""
        two = await world.start("k2")
        two.peers("k1")
        await world.until(lambda: bool(two.told.peers), "the connection")
        child.signal(signal.SIGSTOP)
        await world.until(lambda: not two.told.peers, "the silence to be noticed")
        child.signal(signal.SIGCONT)
        await world.until(lambda: bool(two.told.peers), "the connection again")

    async def test_too_much_for_a_peer_is_dropped_and_counted(self, world: RealWorld, child: Process) -> None:
        """What is kept arrives in order when the peer reads again; memory is bounded meanwhile."""
        limits = dataclasses.replace(QUICK, queue_bytes_max=8_000_000, silence_s=600)
        two = await world.start("k2", limits=limits)
        two.peers("k1")
        await world.until(lambda: bool(two.told.peers), "the connection")
        child.signal(signal.SIGSTOP)
        for number in range(100):
            two.send("k1", {"no": number, "": b"x" * 1_000_000})
            await asyncio.sleep(0)
        counts = two.network.counts
        kept = 100 - counts.messages_dropped
        assert counts.messages_dropped > 50
        assert counts.bytes_sent < kept * 1_010_000
        child.signal(signal.SIGCONT)
        await world.until(lambda: len(two.told.messages("k1")) == kept, "what was kept")
        assert [message["no"] for message in two.told.messages("k1")] == list(range(kept))
        two.send("k1", {"no": 101})
        await world.until(lambda: two.told.messages("k1")[-1] == {"no": 101}, "the next")


class TestWires:
    async def test_quiet_connections_stay(self, world: RealWorld) -> None:
        """Keep-alives bridge any time without messages; none is missed afterwards."""
        limits = dataclasses.replace(QUICK, keepalive_s=0.05, silence_s=0.4)
        nodes = [await world.start(name, limits=limits) for name in ("k1", "k2")]
        for node in nodes:
            node.peers("k1", "k2")
        await all_connected(world, nodes)
        await asyncio.sleep(1)
        assert [node.told.count("disconnected") for node in nodes] == [0, 0]
        nodes[0].send("k2", {"still": "here"})
        await world.until(lambda: bool(nodes[1].told.messages("k1")), "the message")

    async def test_one_that_lost_its_connection_knocks(self, world: RealWorld) -> None:
        """The other side believes in the old one for ever; the knock puts that right at once."""
        limits = dataclasses.replace(QUICK, silence_s=600)
        nodes = [await world.start(name, limits=limits) for name in ("k1", "k2")]
        wire = await Wire(world.addresses["k1"]).open()
        world.addresses["k1"] = wire.address
        for node in nodes:
            node.peers("k1", "k2")
        await all_connected(world, nodes)
        wire.hanging = True
        wire.connections[-1][1].transport.abort()  # only the lesser name's side
        await world.until(lambda: nodes[0].told.count("connected") == 2 and not_both(nodes), "the second")
        await world.settle()
        assert [node.told.count("disconnected") for node in nodes] == [1, 1]
        await wire.close()

    async def test_a_changed_byte_is_never_told(self, world: RealWorld, events: Events) -> None:
        """The connection ends instead, and a new one is made."""
        nodes = [await world.start(name) for name in ("k1", "k2")]
        wire = await Wire(world.addresses["k1"]).open()
        world.addresses["k1"] = wire.address
        for node in nodes:
            node.peers("k1", "k2")
        await all_connected(world, nodes)

        def flip(data: bytes) -> bytes:
            wire.change = lambda data: data
            return data[:-1] + bytes([data[-1] ^ 1])

        wire.change = flip
        nodes[1].send("k1", {"vote": "k2"})
        await world.until(lambda: nodes[0].told.count("connected") == 2, "the second connection")
        assert nodes[0].told.messages("k2") == []
        assert any("changed, repeated or left out" in event["reason"] for event in events)
        await wire.close()

    async def test_a_recorded_connection_is_worth_nothing(self, world: RealWorld) -> None:
        """Every byte that a keeper once said, said again: nothing is told, the true connection stays."""
        nodes = [await world.start(name) for name in ("k1", "k2")]
        target = world.addresses["k1"]
        wire = await Wire(target).open()
        world.addresses["k1"] = wire.address
        for node in nodes:
            node.peers("k1", "k2")
        await all_connected(world, nodes)
        nodes[1].send("k1", {"term": 1_000_000})
        await world.until(lambda: bool(nodes[0].told.messages("k2")), "the message")
        told = list(nodes[0].told.events)
        for recorded in wire.recorded:
            reader, writer = await asyncio.open_connection(*target)
            writer.write(recorded)
            await asyncio.wait_for(reader.read(), 10)
            while await asyncio.wait_for(reader.read(65536), 10):
                pass
            writer.close()
        assert nodes[0].told.events == told
        await wire.close()


def not_both(nodes: list[Any]) -> bool:
    """Each is connected, for the second time."""
    return all(node.told.peers and node.told.count("connected") == 2 for node in nodes)


class TestRefusals:
    """Who has the secret, or a certificate, and is not who it should be."""

    async def _refused(self, world: RealWorld, events: Events, *reasons: str) -> None:
        await world.until(
            lambda: all(any(reason in event.get("reason", "") for event in events) for reason in reasons),
            f"the log to say {reasons}: {events}",
        )

    async def test_another_secret(self, world: RealWorld, events: Events) -> None:
        """Both sides log what they know of it."""
        one = await world.start("k1")
        two = await world.start("k2", credentials=shared("some other secret of someone"))
        for node in (one, two):
            node.peers("k1", "k2")
        await self._refused(world, events, "does not know the secret", "closed by the other side")
        assert not one.told.events + two.told.events

    async def test_a_stranger_in_place_of_a_keeper(self, world: RealWorld, events: Events) -> None:
        """An address that is another keeper's now: both names are in the log."""
        one, _, three = await start_all(world, "k1", "k2", "k3")
        await one.close()
        world.addresses["k1"] = world.addresses["k2"]
        await self._refused(
            world, events, "k3 looks for k1, and this is k2", "refused by k1: k3 looks for k1"
        )
        assert three.told.peers.keys() == {"k2"}

    async def test_one_that_is_no_member(self, world: RealWorld, events: Events) -> None:
        """It is told so, and may become one."""
        one = await world.start("k1")
        nine = await world.start("k9")
        one.peers("k2")
        nine.peers("k1")
        await self._refused(world, events, "k9 is no member of the cluster as k1 knows it", "refused by k1")
        one.peers("k2", "k9")
        await all_connected(world, [one, nine])

    async def test_another_cluster(self, world: RealWorld, events: Events) -> None:
        """Folders of two clusters do not mix; one that has none yet is welcome."""
        one, two, three = [await world.start(name) for name in ("k1", "k2", "k3")]
        for node, cluster in ((one, "c1"), (two, "c2"), (three, "")):
            node.told.introduction = dataclasses.replace(node.told.introduction, cluster=cluster)
            node.peers("k1", "k2", "k3")
        await self._refused(world, events, "k1 is of the cluster c1, k2 of the cluster c2")
        await world.until(
            lambda: [node.told.peers.keys() for node in (one, two, three)] == [{"k3"}, {"k3"}, {"k1", "k2"}],
            "the third to be welcome to both",
        )

    @pytest.mark.parametrize("bad", ["k1", "k2"])
    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"sans": ("k3",)}, "certificate does not name"),
            ({"ca": "other"}, "certificate"),
            ({"days": -1}, "expired"),
        ],
    )
    async def test_wrong_certificates(
        self, world: RealWorld, events: Events, tmp_path: Path, bad: str, wrong: dict[str, Any], reason: str
    ) -> None:
        """Another keeper's, another CA's, an expired one; whoever dials."""
        nodes = []
        for name in ("k1", "k2"):
            options = dict(wrong) if name == bad else {}
            files = authority(options.pop("ca", "ca")).files(tmp_path, name, **options)
            files = files.model_copy(update={"ca_file": authority().files(tmp_path, "any").ca_file})
            nodes.append(await world.start(name, credentials=MutualTls(files)))
        for node in nodes:
            node.peers("k1", "k2")
        await self._refused(world, events, reason)
        await world.settle()
        assert not nodes[0].told.events + nodes[1].told.events

    async def test_the_log_is_not_flooded(self, world: RealWorld, events: Events) -> None:
        """The same reason is written once a minute, however often it happens."""
        one = await world.start("k1")
        for _ in range(30):
            reader, writer = await asyncio.open_connection(*world.addresses["k1"])
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
        assert one.network.counts.strangers_closed == 30
        assert len([event for event in events if event["event"] == "stranger refused"]) == 1


class TestConfiguration:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "keepers.example"])
    def test_off_loopback_something_must_protect_it(self, host: str) -> None:
        """Starting in an unsafe way is refused with the reason and the way out."""
        with pytest.raises(ConfigError, match=f"k1 would listen at {host}") as caught:
            PeerNetwork("k1", bind=(host, 0), resolve=lambda name: None, credentials=Unprotected())
        assert "keepers.secret or keepers.tls" in caught.value.hint

    async def test_off_loopback_nobody_is_dialled_without_protection(
        self, world: RealWorld, events: Events
    ) -> None:
        """Nothing leaves this machine in the clear."""
        two = await world.start("k2", credentials=Unprotected())
        world.addresses["k1"] = ("192.0.2.1", 1)
        two.peers("k1")
        await world.until(lambda: bool(events), "the refusal")
        assert events[0]["reason"] == "not on loopback, and nothing protects the connection"

    async def test_a_taken_port_is_named(self, world: RealWorld) -> None:
        """As is an address that is not this machine's."""
        await world.start("k1")
        with pytest.raises(PortTaken, match=str(world.addresses["k1"][1])):
            await world.start("k2", port=world.addresses["k1"][1])
        network = PeerNetwork(
            "k3", bind=("192.0.2.1", 0), resolve=lambda name: None, credentials=shared(SECRET)
        )
        with pytest.raises(ConfigError, match=r"cannot listen for keepers at 192\.0\.2\.1:0"):
            network.open(world.told("k3"))

    async def test_a_restart_takes_its_port_again(self, world: RealWorld) -> None:
        """Although connections of the last process linger in the kernel."""
        one, two = await start_all(world, "k1", "k2")
        port = world.addresses["k1"][1]
        await one.close()
        one = await world.start("k1", port=port)
        one.peers("k1", "k2")
        await all_connected(world, [one, two])

    async def test_the_source_address_can_be_chosen(self, world: RealWorld) -> None:
        """For machines with several."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        network = PeerNetwork(
            "k2",
            bind=("127.0.0.1", 0),
            resolve=lambda name: listener.getsockname(),
            credentials=shared(SECRET),
            source_host="127.0.0.2",
        )
        network.open(world.told("k2"))
        network.peers(["k1"])
        accepted, where = await asyncio.get_running_loop().sock_accept(listener)
        assert where[0] == "127.0.0.2"
        accepted.close()
        await network.close()
        listener.close()
