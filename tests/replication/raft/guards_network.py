"""The guards of the network between keepers: what strangers can do to PySyncObj's, and silence as well.

Line numbers are of PySyncObj 0.3.17. All of it over real sockets on loopback.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from fedkeeper.replication.raft.network import connection, peers
from fedkeeper.replication.raft.network.connection import Connection
from fedkeeper.replication.raft.network.frames import Inbox
from fedkeeper.replication.raft.network.listener import Listener
from fedkeeper.replication.raft.network.secret import SecretChannel
from tests.patches import method, together, value
from tests.replication.raft import attacks, test_network, test_network_strangers
from tests.replication.raft.guarding import NOT_RAISED, Guard
from tests.replication.raft.keeper_process import Process
from tests.replication.raft.real_world import RealWorld, credentials_of

Scenario = Callable[[RealWorld], Awaitable[object]]
VAIN_S = 1.5  # of waiting for what cannot happen without a guard: longer than the limits of the tests

_a_large_frame = partial(attacks.huge_frame, length=1 << 26, taken_mib=16)
_impatient = together(value(attacks, "CLOSED_WITHIN_S", VAIN_S), value(RealWorld, "patience_s", VAIN_S))


def _over(kind: str, scenario: Scenario) -> Callable[[], Awaitable[None]]:
    """`scenario`, between keepers that prove themselves in this way."""

    async def behaviour() -> None:
        world = RealWorld(credentials_of(kind, Path()))
        try:
            await scenario(world)
        finally:
            await world.close()

    return behaviour


async def _bombed(world: RealWorld) -> None:
    """Nobody has to prove anything here: what is left is how bytes are read."""
    await world.start("k1")
    with tempfile.TemporaryDirectory() as folder:
        await attacks.pickle_bomb(Path(folder) / "owned")(world.addresses["k1"])


async def _attacked(attack: attacks.Attack, world: RealWorld) -> None:
    await world.start("k1")
    await attack(world.addresses["k1"])


async def _a_bound_address(_world: RealWorld) -> None:
    test_network.TestConfiguration().test_off_loopback_something_must_protect_it("0.0.0.0")


def _unpickled(before: Any) -> Any:
    def decode(body: Any) -> Any:
        try:
            return pickle.loads(bytes(body))  # noqa: S301 - that is the fault
        except Exception:  # noqa: BLE001 - it was no pickle
            return before(body)

    return decode


def _trusting(before: Any) -> Any:
    def init(self: Inbox) -> None:
        before(self)
        self._limit = 2**31

    return init


def _nothing(*_args: Any) -> None:
    pass


NETWORK_GUARDS = (
    Guard(
        fault="what comes in is unpickled, and runs code (tcp_connection.py:291)",
        guard="network.handshake.decode: msgpack of two known types",
        behaviour=_over("nothing", _bombed),
        without=method(connection, "decode", _unpickled),
    ),
    Guard(
        fault="whoever claims a peer's address deposes the leader, adds entries, administers",
        guard="SecretChannel: a proof that it knows the secret, before anything else is read",
        behaviour=_over("secret", partial(_attacked, attacks.false_candidate)),
        without=value(SecretChannel, "_check", staticmethod(_nothing)),
        match="let in with another secret",
    ),
    Guard(
        fault="a header that promises 2 GiB is believed: memory without a bound",
        guard="Inbox: 4 KiB before the proof",
        behaviour=_over(
            "secret", partial(_attacked, partial(attacks.huge_frame, length=1 << 26, taken_mib=16))
        ),
        without=method(Inbox, "__init__", _trusting),
        match="16 MiB were taken from a stranger",
    ),
    Guard(
        fault="connections that say nothing are never closed",
        guard="Connection: a handshake has its time",
        behaviour=_over("secret", partial(_attacked, partial(attacks.idle_connections, count=8))),
        without=together(value(Connection, "_too_late", _nothing), _impatient),
        breaks=TimeoutError,
    ),
    Guard(
        fault="nothing bounds how many strangers are connected at once",
        guard="Listener._make_room: the oldest makes room",
        behaviour=_over("secret", test_network_strangers.test_the_oldest_stranger_makes_room),
        without=together(value(Listener, "_make_room", _nothing), _impatient),
        breaks=NOT_RAISED,
        match="in vain for room to be made",
    ),
    Guard(
        fault="without a file descriptor left, the listener is gone for good (tcp_server.py:184-187)",
        guard="Listener._exhausted: a spare one, and on again in a moment",
        behaviour=_over("secret", test_network_strangers.test_a_listener_outlives_the_last_file),
        without=together(value(Process, "unbinds", True), _impatient),
        breaks=ConnectionRefusedError,
    ),
    Guard(
        fault="it listens on all addresses, whatever protects it (transport.py:263-273)",
        guard="PeerNetwork refuses to, without a secret or certificates",
        behaviour=_over("nothing", _a_bound_address),
        without=value(peers, "is_loopback", lambda _host: True),
        breaks=NOT_RAISED,
        match="DID NOT RAISE",
    ),
    Guard(
        fault="links on which nobody speaks die at the first vote request (tcp_connection.py:227-236)",
        guard="Connection.keep_alive, so that silence is a sign of death",
        behaviour=_over("secret", lambda world: test_network.TestWires().test_quiet_connections_stay(world)),
        without=value(Connection, "keep_alive", _nothing),
    ),
)
