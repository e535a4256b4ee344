"""Committed entries become the state: in order, on every keeper alike, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import JournalDamaged
from fedkeeper.replication import codec
from fedkeeper.replication.raft.library import MEMBERSHIP, NO_OP, REGULAR
from fedkeeper.replication.raft.proposals import parts

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

Apply = Callable[[State, Command], Applied]
Results = Sequence[tuple[Command, Applied]]
OnApplied = Callable[[int, bytes, Results], None]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class Applying:
    """One node's state machine."""

    def __init__(self, node: RaftNode, apply: Apply, on_applied: OnApplied) -> None:
        self.state = State()
        self.term = 0  # of the last applied entry
        self._node = node
        self._apply = apply
        self._on_applied = on_applied

    def restore(self, state: State, term: int) -> None:
        """From a snapshot, whose last entry is of that term."""
        self.state, self.term = state, term

    def entry(self, entry: bytes) -> None:
        """Apply the next one. What it cannot read stops this keeper, and no other."""
        node = self._node
        index = node.applied_index + 1
        term, kind = node.entry(index)[2], entry[0]
        if term != self.term:
            self.term = term
            node.proposals.term_applied(term)
        results: list[tuple[Command, Applied]] = []
        if kind == REGULAR:
            key, body = parts(entry)
            commands = node.proposals.commands(key)
            if commands is None:
                place = f"entry {index} of the log"
                commands = [codec.decode(line, place=place) for line in codec.decode_batch(body)]
            results = [(command, self._command(command, index)) for command in commands]
        elif kind == MEMBERSHIP:
            node.membership.committed(entry)
        elif kind != NO_OP:
            raise JournalDamaged(f"entry {index} of the log: unknown kind {kind}", hint=codec.UPGRADE)
        node.later(lambda: self._on_applied(index, entry, results))
        if kind != NO_OP:
            node.proposals.applied(parts(entry)[0], [applied for _, applied in results])

    def _command(self, command: Command, index: int) -> Applied:
        try:
            applied = self._apply(self.state, command)
        except MemoryError:
            raise  # here only, perhaps: the others go on
        except Exception as exc:  # it would stop every keeper at this entry; so all reject it
            log.exception("command cannot be applied", keeper=self._node.name, entry=index)
            problem = f"a fault of FedKeeper: {type(command).__name__} cannot be applied: {exc!r}"
            applied = Applied(state=self.state, rejected=problem)
        self.state = applied.state
        return applied
