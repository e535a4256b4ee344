"""Proposals and their ends. Each ends once, within its time, whatever becomes of leaders and messages.

Every entry carries the key of its proposal, so a keeper knows its own when it applies them, wherever they
were appended. A proposal is made for one term, the leader's that takes it. Once an entry of a later term has
been applied here, every entry of that term which will ever be committed has been applied as well: a proposal
that was not among them is not in the log, and never will be. So only a keeper that is cut off, or that took
a snapshot instead of the entries, has to say that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final

from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import FedKeeperError, KeeperStopped, NoLeader, OutcomeUnknown

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

Result = Sequence[Applied] | State | FedKeeperError | None  # of a batch; a barrier; a failure; a change
Done = Callable[[Any], None]
SESSION_BITS: Final = 48


@dataclass(slots=True)
class _Proposal:
    done: Done
    what: str  # "3 command(s)"
    term: int
    until: float
    commands: Sequence[Command] | None  # what the entry decodes to, if that is known


class Proposals:
    """Those of this keeper."""

    def __init__(self, node: RaftNode, timeout_s: float, session: str) -> None:
        """`session`: never used before for this keeper's name."""
        self._node = node
        self._timeout_s = timeout_s
        self._prefix = f"{node.name}.{session}."
        self._count = 0
        self._pending: dict[bytes, _Proposal] = {}

    def propose(
        self, kind: int, body: bytes, done: Done, what: str, commands: Sequence[Command] | None = None
    ) -> None:
        """Append `body`, or have the leader append it. `done` is called once, never before this returns.

        With what was applied; NoLeader if it is not in the log and never will be; OutcomeUnknown.
        """
        node = self._node
        self._count += 1
        key = f"{self._prefix}{self._count}".encode()
        if node.failure is not None:
            node.soon(done, KeeperStopped(f"{node.name} has stopped: {node.failure}"))
            return
        leader = node.leader
        if not leader or (leader != node.name and leader not in node.connected_names):
            node.soon(done, NoLeader(f"{node.name}: no leader takes {what}", hint=node.problem()))
            return
        self._pending[key] = _Proposal(done, what, node.term, node.clock() + self._timeout_s, commands)
        if not node.leads:
            node.say(leader, {"type": "forward", "term": node.term, "key": key, "kind": kind, "body": body})
        elif node.membership.handing_over:
            self._refused(key, f"{node.name} hands over the lead")
        else:
            node.append(_entry(kind, key, body))

    def on_forward(self, peer: str, message: dict[str, Any]) -> None:
        """Another keeper's proposal, for this leader of that term and no other."""
        node = self._node
        key, kind = message["key"], message["kind"]
        if node.leads and message["term"] == node.term and not node.membership.handing_over:
            node.append(_entry(kind, key, message["body"]))
            node.leading.forwarded(peer)
        else:
            node.say(peer, {"type": "refused", "key": key, "reason": f"{peer} does not lead that term"})

    def on_refused(self, _peer: str, message: dict[str, Any]) -> None:
        """The leader did not append it."""
        self._refused(message["key"], message["reason"])

    def commands(self, key: bytes) -> Sequence[Command] | None:
        """What the entry of that key decodes to, if it was proposed here."""
        proposal = self._pending.get(key)
        return None if proposal is None else proposal.commands

    def applied(self, key: bytes, outcome: Result) -> None:
        """An entry has been applied, and what came of it."""
        proposal = self._pending.pop(key, None)
        if proposal is not None:
            self._node.soon(proposal.done, outcome)

    def term_applied(self, term: int) -> None:
        """An entry of `term` has been applied: those of earlier terms that are pending are lost."""
        for key in [key for key, one in self._pending.items() if one.term < term]:
            self._refused(key, "its leader lost the lead first")

    def skipped(self, term: int) -> None:
        """A snapshot came in the place of entries up to `term`: who knows what is in it."""
        for key in [key for key, one in self._pending.items() if one.term <= term]:
            self._unknown(key, "a snapshot came in the place of its entry")

    def expire(self) -> None:
        """Time passes."""
        while self.are_due(self._node.clock()):
            self._unknown(next(iter(self._pending)), f"not confirmed in {self._timeout_s:g} s")

    def are_due(self, now: float) -> bool:
        """Whether the time of the oldest is up; all have the same."""
        return self.due_at() <= now

    def due_at(self) -> float:
        """When that is."""
        for proposal in self._pending.values():
            return proposal.until
        return inf

    def stop(self) -> None:
        """This keeper stops."""
        for key in list(self._pending):
            self._unknown(key, "this keeper stops")

    def _refused(self, key: bytes, reason: str) -> None:
        proposal = self._pending.pop(key, None)
        if proposal is not None:
            problem = f"{self._node.name}: {proposal.what} not proposed: {reason}"
            self._node.soon(proposal.done, NoLeader(problem))

    def _unknown(self, key: bytes, reason: str) -> None:
        proposal = self._pending.pop(key)
        problem = f"{self._node.name}: {proposal.what} may be in the log: {reason}"
        self._node.soon(proposal.done, OutcomeUnknown(problem, hint=self._node.problem()))


def _entry(kind: int, key: bytes, body: bytes) -> bytes:
    return b"%c%b\n%b" % (kind, key, body)


def parts(entry: bytes) -> tuple[bytes, bytes]:
    """Key and body of an entry that `propose` made."""
    key, _, body = entry[1:].partition(b"\n")
    return key, body
