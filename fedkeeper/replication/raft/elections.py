"""Elections: asked before they are held, early when a leader's connection breaks, votes counted once.

PySyncObj has no pre-vote: a keeper that was cut off, or starved of processor time, comes with a higher term
and deposes a healthy leader. Here it asks first, which changes nothing, and is refused by those that hear a
leader. When a leader's process dies, its kernel closes its connections at once: then nobody waits until its
silence has become long, but the others ask one after the other, by rank.

Source: Ongaro, Consensus: Bridging Theory and Practice, 2014, section 9.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fedkeeper.replication.raft.library import NEVER

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

RANK_S: Final = (
    0.015  # between the candidacies of two keepers when a leader dies: longer than an election takes
)
RETRY_PART: Final = 0.1  # of the shortest silence: pause before asking again where the refusal showed how


class Elections:
    """One node's part in them."""

    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self._heard_at = NEVER  # a leader, by the node's clock
        self._asking = 0  # the term for which votes would be asked; 0: not asking
        self._granted: set[str] = set()
        self._unanswered: dict[str, tuple[float, dict[str, Any]]] = {}  # refused only because of the leader
        self._stands = False  # enough would vote for it: the library is to hold the election
        self._voters: tuple[int, set[str]] = (0, set())  # that have voted for it, in which term

    # --- in each turn ------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """The library holds an election whenever its deadline is over: see to it that it may."""
        node = self._node
        if node.leads:
            self._heard_at = node.clock()
            return
        if not self._may_stand():
            self.put_off()
            return
        if node.told_to_lead or self._stands:
            return
        if not node.other_names:
            node.election_at = NEVER
        elif node.election_at <= node.clock():
            self._ask()

    def after_step(self) -> None:
        """If there was one, it was held."""
        self._stands = False

    def heard_leader(self) -> None:
        """It lives."""
        self._heard_at = self._node.clock()
        self._asking = 0
        self._stands = False
        if not self._node.told_to_lead:
            self.put_off()

    def put_off(self) -> None:
        """Wait for a whole silence from now on."""
        self._node.election_at = self._node.clock() + self._node.random_timeout()

    def lost(self, peer: str) -> None:
        """The connection to `peer` broke; if it led, it is most likely dead."""
        node = self._node
        if node.leads or peer != node.leader:
            return
        node.leader = ""
        self._heard_at = NEVER
        live = sorted(({*node.other_names} & node.connected_names - {peer}) | {node.name})
        self._stand_at(live.index(node.name) * RANK_S)
        now = node.clock()
        unanswered, self._unanswered = self._unanswered, {}
        for name, (asked_at, message) in unanswered.items():
            if now - asked_at < node.timing.silence_min_s:
                self.on_pre_vote(name, message)

    # --- asking ------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        node = self._node
        self.put_off()
        node.leader = ""
        self._asking = max(node.term, self._asking - 1) + 1
        self._granted = {node.name}
        for peer in sorted(node.other_names):
            node.say(
                peer,
                {
                    "type": "pre_vote",
                    "term": self._asking,
                    "last_index": node.last_index,
                    "last_term": node.last_term,
                },
            )

    def on_pre_vote(self, peer: str, message: dict[str, Any]) -> None:
        """Would this keeper vote for `peer`, and is there no leader? Changes nothing that lasts."""
        node, now = self._node, self._node.clock()
        if not node.beginning.counts:
            return
        theirs, mine = (message["last_term"], message["last_index"]), (node.last_term, node.last_index)
        has_leader = node.leads or now - self._heard_at < node.timing.silence_min_s
        granted = not has_leader and message["term"] > node.term and theirs >= mine
        if has_leader and not node.leads:
            self._unanswered[peer] = (now, message)
        node.say(
            peer,
            {"type": "pre_vote_answer", "term": message["term"], "granted": granted, "current": node.term},
        )
        if granted:
            self._stand_at(3 * RANK_S, later=True)
        elif not has_leader and theirs < mine and self._may_stand():
            self._stand_at(RETRY_PART * node.timing.silence_min_s)  # it cannot win, but we can

    def on_pre_vote_answer(self, peer: str, message: dict[str, Any]) -> None:
        """With enough grants an election will be won."""
        node = self._node
        if message["term"] != self._asking or node.leads or peer not in node.other_names:
            return
        if message["granted"]:
            self._granted.add(peer)
            if 2 * len(self._granted) > len(node.other_names) + 1 and self._asking > node.term:
                if self._asking > node.term + 1:
                    node.follow(self._asking - 1)
                self._asking = 0
                self._stands = True
                node.election_at = NEVER
        elif message["current"] >= self._asking:
            self._asking = message["current"] + 1  # for the next time, which is soon
            self._stand_at(RETRY_PART * node.timing.silence_min_s)

    def _stand_at(self, delay_s: float, *, later: bool = False) -> None:
        """Ask in `delay_s`, or a little after, if that is before what is planned; or, with `later`, after.

        0: in this turn.
        """
        node = self._node
        jitter_s = 0.1 * RANK_S * node.chance.random() if delay_s else 0.0
        moment = node.clock() + delay_s + jitter_s
        node.election_at = max(node.election_at, moment) if later else min(node.election_at, moment)

    def _may_stand(self) -> bool:
        node = self._node
        return node.beginning.counts and node.membership.belongs

    # --- votes -------------------------------------------------------------------------------------------

    def on_request_vote(self, peer: str, message: dict[str, Any]) -> None:
        """The library decides, for keepers that may vote."""
        if self._node.beginning.counts:
            self._node.hand(peer, message)

    def on_response_vote(self, peer: str, message: dict[str, Any]) -> None:
        """The library counts messages; so only one per term and voter gets there."""
        node = self._node
        term, voters = self._voters
        if term != node.term:
            voters = set()
        self._voters = (node.term, voters)
        if message["term"] == node.term and peer in node.other_names and peer not in voters:
            voters.add(peer)
            node.hand(peer, message)

    def on_timeout_now(self, peer: str, message: dict[str, Any]) -> None:
        """The leader hands over."""
        if self._may_stand():
            self._node.hand(peer, message)
