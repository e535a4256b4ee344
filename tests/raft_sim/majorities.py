"""What a leader counts must be so: looked up on the disks of all, which no keeper could do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tests.raft_sim.checks import Violation

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode
    from tests.raft_sim.hosts import Host


class Majorities:
    """Of one keeper as a leader; to be asked after each of its turns."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts
        self._believed: dict[str, tuple[int, int]] = {}  # term and index, by keeper
        self._committed = (0, 0)

    def check(self, node: RaftNode) -> None:
        """Every other has on disk what `node` thinks it has, and a majority what it calls committed."""
        if not node.leads:
            return
        for name in node.other_names:
            belief = (node.term, node.leading.match_of(name))
            if belief[1] > 0 and self._believed.get(name) != belief:
                self._believed[name] = belief
                if not self._has(name, node, belief[1]):
                    raise Violation(f"{node.name} counts {belief[1]} for {name}, who has it not on disk")
        commit = node.commit_index
        if commit > 1 and self._committed != (node.term, commit):
            self._committed = (node.term, commit)
            members = node.membership.members
            holders = [name for name in members if self._has(name, node, commit)]
            if 2 * len(holders) <= len(members) and node.entry(commit)[2] == node.term:
                raise Violation(f"{node.name} commits {commit}: of {sorted(members)}, only {holders} have it")

    def _has(self, name: str, leader: RaftNode, index: int) -> bool:
        """Also if its disk was wiped since, or if it follows a later leader by now."""
        host = self._hosts[name]
        storage = host.storage
        if not host.whole or storage is None or storage.getCurrentTerm() > leader.term:
            return True
        if index < max(storage.snapshot_index, leader.first_index):
            return True
        position = index - storage[0][1]
        return (
            0 <= position < len(storage)
            and storage[position][2] == leader.entry(index)[2]
            and storage.durable_index >= index
        )
