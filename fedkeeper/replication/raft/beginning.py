"""How a cluster begins, and how a keeper whose folder is empty comes back to it.

Raft counts on disks: any two majorities share a keeper, and that one remembers. One whose folder was wiped
does not. It would vote a second time, or make up a majority for a leader whose time is over. So:

- A cluster begins only when all its keepers are there with empty folders: then nobody can have forgotten
  anything. Each tells the others whom it sees, by incarnation; it is founded by those who all see the same.
  The cluster's id is made of the founders' incarnations, so each can tell whether it is one of them.
- Any other keeper with an empty folder is a *newcomer*: it takes entries, but neither votes nor stands, and
  its acknowledgements do not count. Its leader appends an entry when it comes (the welcome). Once that entry
  is committed, in the same term and by a majority without the newcomer, whoever could have won an election
  with a vote that the newcomer has forgotten can win it no more: each majority holds a keeper that has this
  entry and refuses a candidate without it. From then on the newcomer counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from fedkeeper.errors import KeeperStopped
from fedkeeper.replication.raft.base import Hello

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
UNKNOWN = 2**62  # the entry that a newcomer must have, as long as no leader has said which


class Beginning:
    """One node's part in it."""

    def __init__(self, node: RaftNode, configured: Mapping[str, str]) -> None:
        """`configured`: all keepers that a cluster begins with, this one included: name -> address."""
        self._node = node
        self._configured = dict(configured)
        self._hellos: dict[str, Hello] = {}
        self._seen: dict[str, dict[str, str]] = {}  # what each of the others said whom it sees
        self._welcomed_in = -1  # the term in which a leader has said what this newcomer must have
        self._until = UNKNOWN
        self._ask_at = 0.0  # messages may be lost: say again what others have to know

    # --- where it stands ---------------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """It belongs to a cluster, on disk."""
        return bool(self._node.storage.identity.cluster)

    @property
    def counts(self) -> bool:
        """It may vote, and what it acknowledges counts."""
        identity = self._node.storage.identity
        return bool(identity.cluster) and identity.newcomer_until == 0

    def problem(self) -> str:
        """What it is waiting for; empty if it counts."""
        node = self._node
        if self.counts:
            return ""
        if self.is_member:
            return f"{node.name} came with an empty folder, and is catching up from the leader"
        here = node.connected_names
        began = sorted(name for name in here if name in self._hellos and self._hellos[name].cluster)
        if began:
            return f"{node.name} came with an empty folder: waiting for the leader of {', '.join(began)}"
        missing = sorted(self._configured.keys() - here - {node.name})
        if missing:
            return f"a new cluster begins when all its keepers are up: waiting for {', '.join(missing)}"
        other = sorted(
            name
            for name, seen in self._seen.items()
            if name in here and seen.keys() != self._configured.keys()
        )
        if other:
            return f"{', '.join(other)} and {node.name} are configured with different keepers"
        return "a new cluster begins"

    # --- events ------------------------------------------------------------------------------------------

    def connected(self, hello: Hello) -> None:
        """A peer introduced itself."""
        self._hellos[hello.name] = hello
        self._seen.pop(hello.name, None)
        if self.is_member:
            self._tell_begun(hello.name)
        self._look_around()

    def disconnected(self, peer: str) -> None:
        """It is gone; what it has seen counts no longer."""
        self._seen.pop(peer, None)

    def start(self) -> None:
        """Alone, it begins at once."""
        self._look_around()

    def on_seen(self, peer: str, message: dict[str, Any]) -> None:
        """A keeper that does not count yet says whom it sees."""
        self._seen[peer] = dict(message["incarnations"])
        if self.is_member:
            self._tell_begun(peer)
        else:
            self._found()

    def on_begun(self, _peer: str, message: dict[str, Any]) -> None:
        """A cluster has begun, and has these members now: is this keeper one of its founders?"""
        self._node.membership.hint(message["members"])
        if not self.is_member and self._is_founder_of(message["cluster"]):
            self._join(message["cluster"], message["founders"])

    def welcome(self, peer: str, until: int) -> None:
        """As the leader: tell the newcomer `peer` of the entry that was appended for it."""
        node = self._node
        identity = node.storage.identity
        node.say(
            peer,
            {
                "type": "welcome",
                "term": node.term,
                "cluster": identity.cluster,
                "founders": dict(identity.founders),
                "until": until,
            },
        )

    def on_welcome(self, peer: str, message: dict[str, Any]) -> None:
        """The leader says what this newcomer must have before it counts."""
        node = self._node
        if message["term"] != node.term or peer != node.leader or self.counts:
            return
        if not self.is_member and self._is_founder_of(message["cluster"]):
            self._join(message["cluster"], message["founders"])
            return
        self._welcomed_in, self._until = node.term, message["until"]
        if not self.is_member:
            node.storage.join(message["cluster"], message["founders"], newcomer_until=UNKNOWN)
            node.membership.founded()

    def each_turn(self) -> None:
        """A newcomer counts once the entry is committed, by the leader that appended it."""
        node = self._node
        if self.counts:
            return
        if node.clock() >= self._ask_at:
            self._look_around()
        if (
            self.is_member
            and self._welcomed_in == node.term
            and node.leader
            and node.commit_index >= self._until
        ):
            node.storage.join(
                node.storage.identity.cluster, node.storage.identity.founders, newcomer_until=self._until
            )
            node.storage.caught_up()
            log.info("caught up", keeper=node.name, entry=self._until)

    # --- founding ----------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """As long as this keeper does not count: tell the others whom it sees."""
        node = self._node
        if self.counts:
            return
        self._ask_at = node.clock() + node.timing.silence_max_s
        message = {"type": "seen", "incarnations": self._incarnations()}
        for name in sorted(node.connected_names):
            node.say(name, message)
        if not self.is_member:
            self._found()

    def _incarnations(self) -> dict[str, str]:
        """Of all keepers that this one is configured with; empty for those that it does not see."""
        node = self._node
        here = {name: self._hellos[name].incarnation for name in node.connected_names}
        here[node.name] = node.storage.identity.incarnation
        return {name: here.get(name, "") for name in sorted(self._configured)}

    def _found(self) -> None:
        """If all see the same, all of them new, they are the cluster."""
        node = self._node
        others = self._configured.keys() - {node.name}
        if not others <= node.connected_names:
            return
        mine = self._incarnations()
        if all(self._seen.get(name) == mine for name in others):
            self._join(cluster_id(mine), self._configured)

    def _is_founder_of(self, cluster: str) -> bool:
        node = self._node
        return _mark(node.name, node.storage.identity.incarnation) in cluster.split("-")

    def _join(self, cluster: str, founders: Mapping[str, str]) -> None:
        node = self._node
        if founders.keys() != self._configured.keys():
            raise KeeperStopped(
                f"the cluster was begun by {', '.join(sorted(founders))}, and {node.name} is configured with"
                f" {', '.join(sorted(self._configured))}",
                hint="give all keepers the same keepers.members",
            )
        node.storage.join(cluster, founders)
        node.membership.founded()
        node.elections.put_off()
        log.info("cluster begun", keeper=node.name, cluster=cluster, keepers=sorted(founders))
        for name in sorted(node.connected_names):
            self._tell_begun(name)

    def _tell_begun(self, peer: str) -> None:
        identity = self._node.storage.identity
        self._node.say(
            peer,
            {
                "type": "begun",
                "cluster": identity.cluster,
                "founders": dict(identity.founders),
                "members": dict(self._node.membership.members),
            },
        )


def cluster_id(incarnations: Mapping[str, str]) -> str:
    """The id of the cluster that these begin."""
    return "-".join(_mark(name, incarnations[name]) for name in sorted(incarnations))


def _mark(name: str, incarnation: str) -> str:
    return hashlib.sha256(f"{name} {incarnation}".encode()).hexdigest()[:12]
