"""Strangers at the port: nothing they try is told to anybody, breaks a connection, or costs without bound."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fedkeeper.replication.raft.network.handshake import Refusal
from tests.replication.raft.attacks import ATTACKS, Attack, idle_connections, pickle_bomb
from tests.replication.raft.keeper_process import Process
from tests.replication.raft.network_contract import Node, all_connected, start_all
from tests.replication.raft.real_world import QUICK, SECRET, RealWorld, credentials_of, shared
from tests.replication.raft.wires import Rogue, frame

MIB = 1 << 20


@pytest.fixture(params=["secret", "tls"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealWorld]:
    """Networks that something protects."""
    world = RealWorld(credentials_of(request.param, tmp_path))
    yield world
    await world.close()


@pytest.fixture
async def sharing() -> AsyncIterator[RealWorld]:
    """Networks with a secret."""
    world = RealWorld(lambda name: shared(SECRET))
    yield world
    await world.close()


async def undisturbed(world: RealWorld, nodes: list[Node], attack: Attack) -> None:
    """Keepers that talk all the while are told of nothing else, whatever `attack` does to the first."""
    told = [node.told.count("connected") for node in nodes]
    first = nodes[0]
    trying = asyncio.ensure_future(attack(world.addresses[first.told.name]))
    sent = 0
    while not trying.done() or not sent:
        for node in nodes[1:]:
            node.send(first.told.name, {"no": sent})
        sent += 1
        await asyncio.sleep(0.01)
    await trying
    for node in nodes[1:]:
        name = node.told.name
        await world.until(lambda name=name: len(first.told.messages(name)) == sent, "the messages")
        assert first.told.messages(name) == [{"no": number} for number in range(sent)]
    assert [node.told.count("connected") for node in nodes] == told
    assert [node.told.count("disconnected") for node in nodes] == [0] * len(nodes)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_peers_are_not_disturbed(world: RealWorld, attack: str) -> None:
    """By any attack: their messages arrive, their connections stand, no file stays open."""
    nodes = await start_all(world, "k1", "k2", "k3")
    files = psutil.Process().num_fds()
    await undisturbed(world, nodes, ATTACKS[attack])
    await world.until(lambda: psutil.Process().num_fds() <= files, "the files to be closed")


async def test_pickles_are_bytes(world: RealWorld, tmp_path: Path) -> None:
    """Nothing is unpickled, in whatever frame it comes."""
    nodes = await start_all(world, "k1", "k2", "k3")
    await undisturbed(world, nodes, pickle_bomb(tmp_path / "owned"))


async def test_a_promised_frame_costs_nothing(sharing: RealWorld) -> None:
    """2 GiB are promised and streamed: what the keeper took is what one read takes."""
    one = await sharing.start("k1")
    await ATTACKS["huge frame"](sharing.addresses["k1"])
    assert one.network.counts.bytes_received < 64 * 1024


async def test_keepers_meet_while_strangers_crowd(sharing: RealWorld) -> None:
    """A restart is not kept out by connections that say nothing: the oldest make room for it."""
    nodes = await start_all(sharing, "k1", "k2")
    crowd = asyncio.ensure_future(idle_connections(sharing.addresses["k1"]))
    await sharing.until(lambda: nodes[0].network.counts.strangers_closed > 50, "the crowd")
    three = await sharing.start("k3")
    for node in (*nodes, three):
        node.peers("k1", "k2", "k3")
    await all_connected(sharing, [*nodes, three])
    assert not crowd.done()
    await crowd


async def test_the_oldest_stranger_makes_room(sharing: RealWorld) -> None:
    """Per address and in all; so one that proves itself at once is never kept out by those that do not."""
    limits = dataclasses.replace(QUICK, handshake_s=60, strangers_per_address_max=3, strangers_max=4)
    one = await sharing.start("k1", limits=limits)
    address = sharing.addresses["k1"]
    hosts = ["127.0.0.2"] * 2 + ["127.0.0.3"] * 4 + ["127.0.0.4"]
    crowd = [await asyncio.open_connection(*address, local_addr=(host, 0)) for host in hosts]
    try:
        await sharing.until(lambda: one.network.counts.strangers_closed == 3, "room to be made")
        # The fifth in all puts out the first; the fourth of its address the first of them; then the next.
        for number, (reader, _) in enumerate(crowd):
            if number in (0, 2, 1):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            else:
                assert not reader.at_eof()
    finally:
        for _, writer in crowd:
            writer.close()


async def test_a_listener_outlives_the_last_file(sharing: RealWorld) -> None:
    """A keeper without a file descriptor left keeps its connections, and takes new ones afterwards."""
    child = await Process.start("k1", files_max=24)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        sharing.addresses["k1"] = child.address
        two = await sharing.start("k2")
        two.peers("k1")
        await sharing.until(lambda: bool(two.told.peers), "the connection")
        for _ in range(60):
            idle.append(await asyncio.open_connection(*child.address))
        two.send("k1", {"while": "full"})
        await sharing.until(lambda: two.told.messages("k1") == [{"while": "full"}], "the echo")
        for reader, _ in idle:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
        three = await sharing.start("k3")
        three.peers("k1")
        await sharing.until(lambda: bool(three.told.peers), "a new connection")
        assert two.told.count("disconnected") == 0
    finally:
        for _, writer in idle:
            writer.close()
        counts = await child.end()
    assert counts["accepts_failed"] > 0


class TestRogues:
    """Who knows the secret can do much; what breaks the protocol still ends with its own connection."""

    @pytest.fixture
    async def nodes(self, sharing: RealWorld) -> list[Node]:
        """k9 is a member that the rogue plays; k1 has the lesser name, so that it can dial."""
        nodes = await start_all(sharing, "k1", "k2")
        for node in nodes:
            node.peers("k1", "k2", "k9")
        return nodes

    @pytest.mark.parametrize(
        "said",
        [
            b"\xc1",
            b"not msgpack",
            msgspec.msgpack.encode({"a": 1}),
            msgspec.msgpack.encode([1, 2]),
            msgspec.msgpack.encode([{1: 2}]),
            b"\x91\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
            b"\x91\x81\xa1a" + b"\x81\xa1a" * 100_000 + b"\xc0",
            b"\x91\x81\xa1a\x81\x80\x01",
            b"\xdd\xff\xff\xff\xff",
            b"\x91\x81\xa1a\xc6\xff\xff\xff\xff",
            b"\x91\x81\xa1a\xdd\x10\xff\xff\xff",
        ],
    )
    async def test_what_cannot_be_read_ends_its_connection(
        self, sharing: RealWorld, nodes: list[Node], said: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Not msgpack, not messages, nested too deep, lengths that are not there: in little memory."""
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.join(sharing.addresses["k1"], "k1")
        rogue.say_messages({"good": 1})
        await sharing.until(lambda: nodes[0].told.messages("k9") == [{"good": 1}], "the good message")
        before = psutil.Process().memory_info().rss
        rogue.say(said)
        assert await rogue.closed()
        assert psutil.Process().memory_info().rss - before < 100 * MIB
        await rogue.close()
        await sharing.until(lambda: "k9" not in nodes[0].told.peers, "its end")
        assert nodes[0].told.messages("k9") == [{"good": 1}]
        assert nodes[0].told.peers.keys() == {"k2"}
        assert not caplog.records  # asyncio saw no error of ours

    async def test_a_frame_beyond_the_limit_ends_its_connection(
        self, sharing: RealWorld, nodes: list[Node]
    ) -> None:
        """32 MiB, and not a byte more is even waited for."""
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.join(sharing.addresses["k1"], "k1")
        rogue.write(frame(QUICK.frame_bytes_max + 17))
        assert await rogue.closed()
        await rogue.close()

    async def test_a_large_introduction_ends_its_connection(
        self, sharing: RealWorld, nodes: list[Node]
    ) -> None:
        """4 KiB are for everybody, until the introduction has been accepted."""
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.connect(sharing.addresses["k1"])
        rogue.say(bytes(5000))
        assert await rogue.closed()
        await rogue.close()

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            ({"name": "k7"}, "k7 is no member"),
            ({"name": "k1"}, "both are named k1"),
            ({"name": "k0"}, "no member"),
            ({"to": "k2"}, "k9 looks for k2, and this is k1"),
            ({"cluster": "other"}, "k9 of the cluster other"),
        ],
    )
    async def test_false_introductions_are_answered_with_the_reason(
        self, sharing: RealWorld, nodes: list[Node], facts: dict[str, Any], reason: str
    ) -> None:
        """And tell the receiver nothing."""
        nodes[0].told.introduction = dataclasses.replace(nodes[0].told.introduction, cluster="ours")
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.connect(sharing.addresses["k1"])
        answer = await rogue.introduce(facts.pop("to", "k1"), **facts)
        assert isinstance(answer, Refusal)
        assert reason in answer.reason
        assert await rogue.closed()
        await rogue.close()
        assert nodes[0].told.peers.keys() == {"k2"}

    async def test_talk_before_the_introduction_is_confirmed_is_refused(
        self, sharing: RealWorld, nodes: list[Node]
    ) -> None:
        """In order: introduction, introduction, confirmation, messages."""
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.connect(sharing.addresses["k1"])
        await rogue.introduce("k1")
        rogue.say_messages({"too": "early"})
        assert await rogue.closed()
        await rogue.close()
        assert nodes[0].told.count("k9") == 0

    async def test_an_unfinished_introduction_is_closed_in_time(
        self, sharing: RealWorld, nodes: list[Node]
    ) -> None:
        """Even of one that knows the secret."""
        rogue = Rogue(shared(SECRET), "k9")
        await rogue.connect(sharing.addresses["k1"])
        await rogue.introduce("k1")
        assert await rogue.closed()
        await rogue.close()
        assert "k9" not in nodes[0].told.peers
