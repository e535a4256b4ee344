"""How a cluster begins, and how a keeper whose folder is empty comes back to it.

Raft counts on disks: two majorities share a keeper, and that one remembers. One whose folder was wiped does
not: it would vote a second time in a term, or make up a majority that lacks what was committed. So a keeper
with an empty folder neither votes nor stands for election until it has all that the leader had when it came;
and a cluster begins only when all its keepers are there with empty folders, as nobody can have lost anything
then. Its id is made of their incarnations, so each finds out by itself that it is one of the founders.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fedkeeper.replication import codec
from fedkeeper.replication.raft.base import Hello
from fedkeeper.replication.raft.library import Peer


class Beginning:
    """Of RaftNode."""

    def _init_beginning(self: Any) -> None:
        self._hellos: dict[str, Hello] = {}
        self._after_beginning()

    def hello(self: Any) -> Hello:
        """How this keeper introduces itself now."""
        identity = self.storage.identity
        return Hello(
            name=self.name,
            incarnation=identity.incarnation,
            fresh=not identity.cluster,
            cluster=identity.cluster,
            founders=dict(identity.founders),
            last_index=self.last_index,
            version=codec.VERSION,
        )

    @property
    def newcomer(self: Any) -> bool:
        """Whether it has yet to catch up before it may vote."""
        return bool(self.storage.identity.newcomer_until)

    def _may_vote(self: Any) -> bool:
        return bool(self.storage.identity.cluster) and not self.newcomer

    def _met(self: Any, hello: Hello) -> None:
        """A connection stands. What another incarnation of that keeper acknowledged counts no longer."""
        before = self._hellos.get(hello.name)
        self._hellos[hello.name] = hello
        peer = Peer(hello.name, address=self.address_of(hello.name))
        if (
            before is not None
            and before.incarnation != hello.incarnation
            and peer in self._SyncObj__raftMatchIndex
        ):
            self._SyncObj__raftMatchIndex[peer] = 0
            self._SyncObj__raftNextIndex[peer] = self.last_index + 1
        if not self.storage.identity.cluster and hello.cluster:
            self._join(hello)
        if (
            self._joining is not None
            and self._joining[0] == hello.name
            and self.leads
            and peer not in self.otherNodes
        ):
            self._SyncObj__onReadonlyNodeConnected(peer)

    def _join(self: Any, hello: Hello) -> None:
        """Of a cluster that has begun: as one of its founders, or as a newcomer."""
        everyone = {name: one.incarnation for name, one in self._hellos.items()}
        everyone[self.name] = self.storage.identity.incarnation
        founding = {name: everyone.get(name, "") for name in hello.founders}
        if _cluster_id(founding) == hello.cluster:
            self.storage.join(hello.cluster, hello.founders)
        elif all(name in everyone for name in hello.founders) or self.name not in hello.founders:
            self.storage.join(hello.cluster, hello.founders, newcomer_until=max(hello.last_index, 1))
        # else: wait for the others; one of them may show that this keeper is a founder

    def _after_beginning(self: Any) -> None:
        """Each turn: begin, if everybody is here for the first time; or vote, if it has caught up."""
        identity = self.storage.identity
        if not identity.cluster:
            here = {
                name: one for name, one in self._hellos.items() if Peer(name) in self._SyncObj__connectedNodes
            }
            others = set(self.configured) - {self.name}
            if others <= here.keys() and all(here[name].fresh for name in others):
                everyone = {name: here[name].incarnation for name in others} | {
                    self.name: identity.incarnation
                }
                self.storage.join(_cluster_id(everyone), self.configured)
                self._put_off()
        elif self.newcomer and self.raftCommitIndex >= identity.newcomer_until:
            self.storage.caught_up()
        self._check_joining()

    def _waits_to_begin(self: Any) -> str:
        if self.storage.identity.cluster:
            return ""
        missing = sorted(
            set(self.configured) - {self.name} - {one.id for one in self._SyncObj__connectedNodes}
        )
        return f"a new cluster begins when all its keepers are up: waiting for {', '.join(missing) or 'them'}"


def _cluster_id(incarnations: dict[str, str]) -> str:
    text = "\n".join(f"{name} {incarnations[name]}" for name in sorted(incarnations))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
