"""How the measurements open a Raft log: the one place that knows its arguments."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from fedkeeper.replication.raft.base import Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork, SharedSecret

SECRET = SecretStr("a secret of measurements only: no real cluster has it")


def open_log(name: str, folder: Path, settings: dict[str, Any]) -> AbstractAsyncContextManager[RaftLog]:
    """`settings`: members (name -> host:port), timing, fsync."""
    host, _, port = settings["members"][name].rpartition(":")

    def network(resolve: Resolve) -> PeerNetwork:
        return PeerNetwork(
            name, bind=(host, int(port)), resolve=resolve, credentials=SharedSecret(SECRET), source_host=host
        )

    return RaftLog.open(
        name,
        folder,
        settings["members"],
        network=network,
        timing=settings.get("timing", "fast"),
        fsync=settings.get("fsync", True),
        snapshot_every=settings.get("snapshot_every", 10_000),
    )
