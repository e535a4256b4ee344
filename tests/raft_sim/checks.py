"""What must hold at every moment, on every node, whatever happened. Every check raises Violation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedkeeper.core.machine import apply
from fedkeeper.core.model import Applied, ClaimConductor, Command, DeleteValue, PutValue, State, Tick
from fedkeeper.replication.base import Role


class Violation(AssertionError):
    """A rule of Raft, or one of ours, is broken."""


class Checks:
    """Watches all nodes of a world at once; `log` is what was applied first, by any of them, for good."""

    def __init__(self) -> None:
        self.log: dict[int, bytes] = {}
        self.states: dict[int, State] = {1: State()}  # after each entry, by an `apply` of our own
        self.last = 1  # entry 1 is the library's own
        self.seen: Counter[str] = Counter()  # what has happened, for those who ask whether anything did
        self._applied: dict[str, int] = {}  # by node, in this life of it
        self._leaders: dict[int, str] = {}  # by term
        self._terms_told: dict[str, int] = {}  # the highest that others have heard from a node
        self._votes: dict[tuple[str, int], str] = {}  # voter and term -> candidate
        self._epochs: dict[int, str] = {}  # who was acknowledged as the conductor of an epoch
        self._stamps = itertools.count(1)
        self._in_log: set[int] = set()  # stamps of commands that were applied
        self._refused: dict[
            int, str
        ] = {}  # stamps of commands that certainly are not in the log: who said so
        self._counted: set[str] = set()  # requests that took effect

    # --- what nodes do ---------------------------------------------------------------------------

    def restored(self, name: str, index: int, state: State) -> None:
        """A node has its state from its own disk (at a start) or from another node (a snapshot)."""
        if index > self.last:
            raise Violation(f"{name} has entry {index} in a snapshot, but nobody has applied it")
        if state != self.states[index]:
            raise Violation(f"{name} restored another state at {index} than the one that was applied")
        self._applied[name] = index

    def applied(self, name: str, index: int, entry: bytes, commands: Sequence[Command]) -> None:
        """State machine safety: the same entry at the same index, on every node, in every life of it."""
        if index != self._applied.get(name, index - 1) + 1:
            raise Violation(f"{name} applied {index} after {self._applied[name]}")
        self._applied[name] = index
        if index <= self.last:
            if self.log[index] != entry:
                raise Violation(
                    f"{name} applied at {index} {entry[:200]!r}, where {self.log[index][:200]!r} was applied"
                )
            return
        if index != self.last + 1:
            raise Violation(f"{name} applied {index}, but the last entry known is {self.last}")
        self.log[index], self.last = entry, index
        state = self.states[index - 1]
        for command in commands:
            if command.at_ms in self._refused:
                raise Violation(f"{command} is in the log; {self._refused[command.at_ms]} said: never")
            self._in_log.add(command.at_ms)
            done = apply(state, command)
            self._judge(state, command, done)
            state = done.state
        self.states[index] = state

    def _judge(self, before: State, command: Command, done: Applied) -> None:
        """The rules of the machine that this simulation is about, said once more in other words."""
        after = done.state
        self.seen["rejected" if done.rejected else "accepted"] += 1
        if isinstance(command, ClaimConductor) and after.epoch != before.epoch:
            if command.expected_epoch != before.epoch or after.epoch != before.epoch + 1:
                raise Violation(f"{command} made epoch {after.epoch} out of {before.epoch}")
        elif after.epoch != before.epoch or after.conductor != before.conductor:
            raise Violation(f"{command} changed epoch or conductor")
        if isinstance(command, Tick) and command.epoch != before.epoch and not done.rejected:
            raise Violation(f"{command} was accepted under epoch {before.epoch}")
        if isinstance(command, PutValue | DeleteValue) and after.kv_version != before.kv_version:
            held = before.kv[command.name].version if command.name in before.kv else 0
            if command.expected is not None and command.expected != held:
                raise Violation(f"{command} was accepted on version {held}")
            if command.request and command.request in self._counted:
                raise Violation(f"request {command.request} took effect twice")
            self._counted.add(command.request)

    def observed(self, name: str, term: int, role: Role) -> None:
        """Election safety, and terms that do not go back. After every step of a node."""
        if role is Role.LEADER:
            first = self._leaders.setdefault(term, name)
            self.seen["terms with a leader"] = len(self._leaders)
            if first != name:
                raise Violation(f"{first} and {name} both lead in term {term}")
        if term < self._terms_told.get(name, 0):
            raise Violation(f"{name} is in term {term} after it spoke in {self._terms_told[name]}")

    def said(self, sender: str, target: str, message: Mapping[str, Any]) -> None:
        """One vote for each term, whatever happened to the voter in between."""
        kind, term = message.get("type"), message.get("term")
        if not isinstance(term, int):
            return
        if kind in ("request_vote", "append", "appended", "response_vote"):
            self._terms_told[sender] = max(self._terms_told.get(sender, 0), term)
        candidate = {"request_vote": sender, "response_vote": target}.get(str(kind))
        if candidate is not None:
            first = self._votes.setdefault((sender, term), candidate)
            if first != candidate:
                raise Violation(f"{sender} voted for {first} and for {candidate} in term {term}")

    def wiped(self, name: str) -> None:
        """Its folder is gone, and with it the right to be held to its terms; not to its votes."""
        self._terms_told.pop(name, None)

    def stopped(self, name: str) -> None:
        """Its process is gone."""
        self._applied.pop(name, None)

    # --- what clients do, and are told -------------------------------------------------------------------

    def stamp(self) -> int:
        """A time for a command, which nothing else has: so one can tell each attempt from all others."""
        return next(self._stamps)

    def refused(self, name: str, command: Command) -> None:
        """`name` said that `command` is not in the log and never will be."""
        if command.at_ms in self._in_log:
            raise Violation(f"{name} refused {command}, which is in the log")
        self._refused[command.at_ms] = name

    def acknowledged(self, name: str, command: Command) -> None:
        """`command` was acknowledged by `name`, so it has been applied there: it is in the log for good."""
        if command.at_ms not in self._in_log:
            raise Violation(f"{name} acknowledged {command}, which nobody has applied")
        if isinstance(command, ClaimConductor):
            epoch = command.expected_epoch + 1
            first = self._epochs.setdefault(epoch, command.keeper)
            if first != command.keeper:
                raise Violation(
                    f"{first} and {command.keeper} were both told that they conduct epoch {epoch}"
                )

    def has_all(self, name: str) -> bool:
        """Whether this node has applied all there is."""
        return self._applied.get(name, -1) >= self.last

    def same(self, name: str, state: State) -> None:
        """It has applied everything: its state must be the one."""
        if state != self.states[self.last]:
            raise Violation(f"{name} has applied everything and has another state")
