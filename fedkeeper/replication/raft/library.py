"""PySyncObj's Raft without its threads, sockets, files and pickles. The only module that imports it.

What is used of its inside has a name here, and the places where it is overridden end in methods of ours
(docs/adr has the list, and why). What it is trusted with: terms and votes, the counting of votes and of what
a majority has, the leader's own steps (no-op first, step down without a majority), applying in order.
"""

from __future__ import annotations

import random
import socket
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

_INET = (socket.inet_ntop, socket.inet_pton)

from pysyncobj import SyncObj, SyncObjConf, syncobj  # noqa: E402
from pysyncobj.node import Node  # noqa: E402
from pysyncobj.transport import Transport  # noqa: E402

socket.inet_ntop, socket.inet_pton = _INET  # the library replaces them on import, on every platform

from fedkeeper.replication.raft.snapshots import Entry  # noqa: E402
from fedkeeper.replication.raft.storage import Storage  # noqa: E402
from fedkeeper.replication.raft.timing import Timing  # noqa: E402

__all__ = ["FOLLOWER", "LEADER", "MEMBERSHIP", "NO_OP", "REGULAR", "Peer", "Raft", "use"]

REGULAR: Final = 0  # first byte of an entry
NO_OP: Final = 1
MEMBERSHIP: Final = 2
FOLLOWER: Final = 0
LEADER: Final = 2
NEVER: Final = float("-inf")
_ENTRY_BYTES: Final = 2**31  # the library sends larger ones by pickle; the network allows none so large
_create_journal = syncobj.createJournal


def _journal(given: Any) -> Any:
    return _create_journal(given) if given is None or isinstance(given, str) else given


syncobj.createJournal = _journal  # `journalFile` may be the journal itself


def use(clock: Callable[[], float], chance: random.Random) -> None:
    """From now on the library's time is `clock`, and its chance `chance`.

    It reads both as globals of its module. A node sets them whenever it is about to act, so that several
    nodes of one process, as in a simulation, can each have their own. Nodes that act on several threads of
    one process must share a clock; whose chance they draw from does not matter then.
    """
    syncobj.monotonicTime = clock
    syncobj.random = chance


class Peer(Node):  # type: ignore[misc] # the library has no types
    """A keeper by its name. The library goes through sets of them: in the same order in every process."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = zlib.crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=64)  # a cluster has at most seven
def _peer(name: str) -> Peer:
    return Peer(name)


class _NoPoller:
    def poll(self, _seconds: float) -> None:
        """There are no sockets."""


class _Outbox(Transport):  # type: ignore[misc]
    """The library's way out: what it says is kept until the node sends it."""

    def __init__(self, say: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._say = say

    ready = True

    def tryGetReady(self) -> None:  # noqa: N802
        """It always is."""

    def waitReady(self) -> None:  # noqa: N802
        """It always is."""

    def addNode(self, node: Peer) -> None:  # noqa: N802
        """The network is told by the node."""

    def dropNode(self, node: Peer) -> None:  # noqa: N802
        """The network is told by the node."""

    def send(self, node: Peer, message: dict[str, Any]) -> bool:
        """Keep it."""
        self._say(node.id, message)
        return True

    def destroy(self) -> None:
        """The network is closed by the node's owner."""


class Raft(SyncObj, ABC):  # type: ignore[misc]
    """PySyncObj with its hooks bent to methods that `RaftNode` has."""

    def __init__(
        self,
        name: str,
        others: Iterable[str],
        *,
        storage: Storage,
        timing: Timing,
        say: Callable[[str, dict[str, Any]], None],
    ) -> None:
        super().__init__(
            Peer(name),
            [Peer(other) for other in others],
            SyncObjConf(
                autoTick=False,
                appendEntriesUseBatch=True,  # the node says when to send
                journalFile=storage,
                dynamicMembershipChange=False,  # see `membership`: the library does not serialise changes
                raftMinTimeout=timing.silence_min_s,
                raftMaxTimeout=timing.silence_max_s,
                appendEntriesPeriod=timing.heartbeat_s,
                leaderFallbackTimeout=timing.silence_max_s,
                connectionTimeout=1e5,
                appendEntriesBatchSizeBytes=_ENTRY_BYTES,
            ),
            transport=_Outbox(say),
        )
        self._poller = _NoPoller()
        self.connected_names: frozenset[str] = frozenset()  # who can be reached; not only members
        self.other_names: frozenset[str] = frozenset()  # the members that count, without this one

    def __dir__(self) -> Iterable[str]:
        """The library looks through this, reading every property, for replicated methods: there are none."""
        return ()

    # --- what RaftNode has to say ------------------------------------------------------------------------

    @abstractmethod
    def applies(self, entry: bytes) -> None:
        """A committed entry, in its turn."""

    @abstractmethod
    def leads_now(self) -> None:
        """It has been elected, and its no-op is in the log."""

    @abstractmethod
    def heartbeat(self) -> None:
        """It is time to tell everybody that the leader lives."""

    # --- the library's hooks -----------------------------------------------------------------------------

    def _SyncObj__doApplyCommand(self, entry: bytes) -> None:  # noqa: N802 - the library's names from here on
        self.applies(entry)

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        super()._SyncObj__onBecomeLeader()
        self.leads_now()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        self._SyncObj__newAppendEntriesTime = syncobj.monotonicTime() + self.conf.appendEntriesPeriod
        if self.leads:
            self.heartbeat()

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """See `compaction`: nothing is pickled, nothing is forked."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N802, N803, FBT001
        """Never: the storage has loaded its snapshot, and never clears its journal."""
        raise AssertionError("PySyncObj wants to load a dump")

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Nothing is queued in the library; see `proposals`."""

    # --- its inside --------------------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether `step` would do anything by now, of itself."""
        return self.due_at() < now

    def due_at(self) -> float:
        """After which moment `step` would do something of itself."""
        if self._SyncObj__raftLastApplied != self._SyncObj__raftCommitIndex:
            return NEVER
        if self._SyncObj__raftState == LEADER:
            return float(self._SyncObj__newAppendEntriesTime)
        return float(self._SyncObj__raftElectionDeadline)

    def step(self) -> None:
        """What the library does in a tick: stand for election, commit, step down, apply, heartbeats."""
        self._onTick(0.0)

    def hand(self, peer: str, message: dict[str, Any]) -> None:
        """Let the library handle a message: of votes and transfers; the others are ours."""
        self._SyncObj__onMessageReceived(_peer(peer), message)

    def set_connected(self, peer: str, *, connected: bool) -> None:
        """Tell the library whether `peer` can be reached."""
        change = self._SyncObj__onNodeConnected if connected else self._SyncObj__onNodeDisconnected
        change(_peer(peer))
        self.connected_names = frozenset(peer.id for peer in self._SyncObj__connectedNodes)

    def set_others(self, names: Iterable[str]) -> None:
        """The members that count from now on, without this one."""
        self._SyncObj__updateClusterConfiguration([Peer(name) for name in names])
        now = syncobj.monotonicTime()
        for peer in self._SyncObj__otherNodes:
            self._SyncObj__lastResponseTime.setdefault(peer, now)
        self.other_names = frozenset(peer.id for peer in self._SyncObj__otherNodes)

    @property
    def role(self) -> int:
        """FOLLOWER, 1 for a candidate, LEADER."""
        return int(self._SyncObj__raftState)

    @property
    def leads(self) -> bool:
        """Whether it is the leader, as far as it knows."""
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def term(self) -> int:
        """The current one."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def voted_for(self) -> str:
        """In the current term; empty: for nobody."""
        return str(self._SyncObj__votedForNodeId or "")

    @property
    def leader(self) -> str:
        """As far as it knows; empty: none."""
        peer = self._SyncObj__raftLeader
        return "" if peer is None else str(peer.id)

    @leader.setter
    def leader(self, name: str) -> None:
        self._SyncObj__raftLeader = _peer(name) if name else None

    def follow(self, term: int) -> None:
        """Be a follower, in `term` if that is later."""
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__transferInProgress = False
        self._SyncObj__setState(FOLLOWER)

    @property
    def election_at(self) -> float:
        """When it asks for votes, by the node's clock."""
        return float(self._SyncObj__raftElectionDeadline)

    @election_at.setter
    def election_at(self, moment: float) -> None:
        self._SyncObj__raftElectionDeadline = moment

    def random_timeout(self) -> float:
        """Seconds between the shortest and the longest silence."""
        return float(self._SyncObj__generateRaftTimeout())

    @property
    def told_to_lead(self) -> bool:
        """The leader hands over to this keeper, which stands for election at once."""
        return bool(self._SyncObj__transferInProgress)

    def hand_over_to(self, peer: str) -> None:
        """Tell `peer`, which has everything, to stand for election."""
        self.transferLeadership(Peer(peer))

    @property
    def commit_index(self) -> int:
        """Up to here entries are committed, as far as it knows."""
        return int(self._SyncObj__raftCommitIndex)

    @commit_index.setter
    def commit_index(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self._SyncObj__raftLog.setRaftCommitIndex(index)

    @property
    def applied_index(self) -> int:
        """Up to here entries are applied."""
        return int(self._SyncObj__raftLastApplied)

    @applied_index.setter
    def applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    @property
    def noop_index(self) -> int:
        """Of the entry with which it began to lead; 0: it never did."""
        return int(self._SyncObj__noopIDx or 0)

    def count_for(self, peer: str, index: int) -> None:
        """`peer`, a member, has the log up to `index` for certain: count that."""
        self._SyncObj__raftMatchIndex[_peer(peer)] = index

    def heard(self, peer: str) -> None:
        """`peer`, a member, follows this leader: for stepping down without a majority."""
        self._SyncObj__lastResponseTime[_peer(peer)] = syncobj.monotonicTime()

    def heard_at(self, peer: str) -> float:
        """When it last did."""
        return float(self._SyncObj__lastResponseTime.get(_peer(peer), NEVER))

    @property
    def entries(self) -> Storage:
        """The log: a sequence of entries, the first of which need not be of index 1."""
        return self._SyncObj__raftLog  # type: ignore[no-any-return]

    @property
    def first_index(self) -> int:
        """Of the first entry that is kept."""
        return self._SyncObj__raftLog[0][1]  # type: ignore[no-any-return]

    @property
    def last_index(self) -> int:
        """Of the last entry."""
        return self._SyncObj__raftLog[-1][1]  # type: ignore[no-any-return]

    @property
    def last_term(self) -> int:
        """Of the last entry."""
        return self.entries[-1][2]

    def entry(self, index: int) -> Entry:
        """The one of that index, which must be kept."""
        return self.entries[index - self.first_index]
