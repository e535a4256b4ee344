"""The library's way out: it speaks into an outbox, which the node sends at the end of its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkeeper.replication.raft.library import Peer, Transport


class Shim(Transport):  # type: ignore[misc] # the library has no types
    """PySyncObj's Transport, for a node whose network is its own."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__(None, None, [])
        self.outbox: list[tuple[str, dict[str, Any]]] = []
        self._changed = changed

    ready = True

    def tryGetReady(self) -> None:  # noqa: N802
        """It always is."""

    def waitReady(self) -> None:  # noqa: N802
        """It always is."""

    def addNode(self, node: Peer) -> None:  # noqa: N802
        """The members are others now."""
        self._changed()

    def dropNode(self, node: Peer) -> None:  # noqa: N802
        """The members are others now."""
        self._changed()

    def send(self, node: Peer, message: dict[str, Any]) -> bool:
        """Keep it until the end of the turn."""
        self.outbox.append((node.id, dict(message)))
        return True

    def destroy(self) -> None:
        """The network is closed by the node's owner."""

    def connected(self, peer: str) -> None:
        """Tell the library."""
        self._onNodeConnected(Peer(peer))

    def disconnected(self, peer: str) -> None:
        """Tell the library."""
        self._onNodeDisconnected(Peer(peer))
