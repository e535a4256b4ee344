"""Elections: pre-votes, early candidacy, and votes that count once.

PySyncObj has no pre-vote: a keeper that was cut off, or starved of processor time, would come with a higher
term and depose a healthy leader. Here it asks first, without changing anything, and is refused by those that
hear a leader. When the connection to the leader breaks, which the kernel does at once if its process dies,
nobody waits for the leader's silence to become long: the candidates come one after the other, by rank.
"""

from __future__ import annotations

from typing import Any, Final

from fedkeeper.replication.raft.library import Peer

RANK_S: Final = (
    0.012  # between the candidacies of two keepers when a leader dies: longer than an election takes
)
FOLLOWER, LEADER = 0, 2


class Elections:
    """Of RaftNode."""

    def _init_elections(self: Any) -> None:
        self._heard_at = -1e9  # when a leader was last heard, by the node's clock
        self._asking = 0  # the term that pre-votes are being asked for; 0: none
        self._granted: set[str] = set()
        self._voters: tuple[int, set[str]] = (0, set())  # of the term
        self._elected = False  # pre-votes say that an election would be won
        self._refused: dict[str, dict[str, Any]] = {}  # pre-votes refused for the leader's sake, by peer

    def _before_elections(self: Any) -> None:
        """The library would stand for election when its deadline is over: ask the others first."""
        if self._SyncObj__raftState == LEADER or self._SyncObj__transferInProgress:
            return
        now = self._clock()
        if self._SyncObj__raftElectionDeadline >= now or self._elected:
            return
        if not self._may_vote():
            self._put_off()
            return
        if not self.otherNodes:
            return
        self._put_off()
        self._asking, self._granted = self.raftCurrentTerm + 1, {self.name}
        self._SyncObj__raftLeader = None
        for peer in self.otherNodes:
            self.shim.send(
                peer,
                {
                    "type": "pre_vote",
                    "term": self._asking,
                    "last_log_index": self.last_index,
                    "last_log_term": self.storage[-1][2],
                },
            )

    def _put_off(self: Any) -> None:
        self._SyncObj__raftElectionDeadline = self._clock() + self._SyncObj__generateRaftTimeout()

    def _on_pre_vote(self: Any, peer: Peer, message: dict[str, Any]) -> None:
        if message["type"] == "pre_vote":
            self._refused[peer.id] = message
            self._answer_pre_votes()
            return
        if message["term"] != self._asking or peer not in self.otherNodes:
            return
        self._granted.add(peer.id)
        if len(self._granted) > (len(self.otherNodes) + 1) / 2 and self.raftCurrentTerm < self._asking:
            self._asking = 0
            self._SyncObj__raftElectionDeadline = -1e9  # the library stands for election in this turn
            self._elected = True
            self._SyncObj__votesCount = 0

    def _answer_pre_votes(self: Any) -> None:
        for name, message in list(self._refused.items()):
            if self._would_vote(message):
                del self._refused[name]
                self.shim.send(Peer(name), {"type": "pre_vote_granted", "term": message["term"]})

    def _would_vote(self: Any, message: dict[str, Any]) -> bool:
        if not self._may_vote() or self.leads or message["term"] <= self.raftCurrentTerm:
            return False
        if self._clock() - self._heard_at < self.timing.silence_min_s:
            return False  # there is a leader, whatever the other one hears
        mine = (self.storage[-1][2], self.last_index)
        return bool((message["last_log_term"], message["last_log_index"]) >= mine)

    def _counts_vote(self: Any, peer: Peer, message: dict[str, Any]) -> bool:
        """One vote per member and term; the library counts messages."""
        term, voters = self._voters
        if term != self.raftCurrentTerm:
            voters = set()
        self._voters = (self.raftCurrentTerm, voters)
        if message.get("term") != self.raftCurrentTerm or peer not in self.otherNodes or peer.id in voters:
            return False
        voters.add(peer.id)
        return True

    def _lost_link(self: Any, peer: str) -> None:
        if peer != self.leader or self.leads:
            return
        self._heard_at = -1e9
        living = sorted(
            {self.name, *(one.id for one in self._SyncObj__connectedNodes if one in self.otherNodes)} - {peer}
        )
        deadline = self._clock() + living.index(self.name) * RANK_S - 1e-6
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, deadline)
        # Another one may have heard of the leader's end a moment before, and have asked already.
        self._answer_pre_votes()

    def _heard_leader(self: Any) -> None:
        self._heard_at = self._clock()
        self._refused.clear()
        self._asking = 0
        self._elected = False
