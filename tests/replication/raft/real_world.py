"""Real networks in one process: sockets on loopback, the loop's own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from pydantic import SecretStr

from fedkeeper.replication.raft.network import (
    Credentials,
    Limits,
    MutualTls,
    PeerNetwork,
    SharedSecret,
    Unprotected,
)
from tests.replication.raft.certificates import authority
from tests.replication.raft.network_contract import Node, Recorder

SECRET = "correct horse battery staple"
QUICK = Limits(handshake_s=1.0, keepalive_s=0.2, silence_s=1.5)


@cache
def shared(secret: str) -> SharedSecret:
    """Stretching it takes a while: once per secret."""
    return SharedSecret(SecretStr(secret))


class RealWorld:
    """Networks that find each other by name, and are all closed in the end."""

    patience_s = 10.0

    def __init__(self, credentials: Callable[[str], Credentials], limits: Limits = QUICK) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self._credentials = credentials
        self._limits = limits
        self._nodes: list[Node] = []

    async def start(
        self,
        name: str,
        *,
        incarnation: str = "first",
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        port: int = 0,
    ) -> Node:
        network = PeerNetwork(
            name,
            bind=("127.0.0.1", port),
            resolve=self.addresses.get,
            credentials=credentials or self._credentials(name),
            limits=limits or self._limits,
        )
        node = Node(network, Recorder(name, incarnation))
        network.open(node.told)
        self.addresses[name] = network.address
        self._nodes.append(node)
        return node

    def told(self, name: str) -> Recorder:
        """A receiver for a network that the test opens itself."""
        return Recorder(name)

    async def kill(self, node: Node) -> None:
        await node.close()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(int(self.patience_s / 0.005)):
            if condition():
                return
            await asyncio.sleep(0.005)
        pytest.fail(f"waited {self.patience_s:g} s in vain for {what}")

    async def settle(self) -> None:
        await asyncio.sleep(0.1)

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()


def credentials_of(kind: str, folder: Path) -> Callable[[str], Credentials]:
    """How keepers prove themselves: by nothing, a secret, or certificates."""
    if kind == "tls":
        return cache(lambda name: MutualTls(authority().files(folder, name)))
    return lambda name: Unprotected() if kind == "nothing" else shared(SECRET)
