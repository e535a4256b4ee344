"""Snapshots of the state, so that the log does not grow for ever. By the storage's own files.

PySyncObj's are pickles, written by a forked process, and loading one clears the journal. Here the state,
which nobody changes, is encoded and written in the background, and put in place between two turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from fedkeeper.errors import JournalError
from fedkeeper.replication import codec
from fedkeeper.replication.raft.files import PendingSnapshot

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

# Does the work, which may take a while, and then has what came of it called on the node's thread.
Background = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
PATIENCE_S: Final = 1.0  # for followers that are a few entries behind, before they need the snapshot
PAUSE_S: Final = 60.0  # after one that could not be written

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


def at_once(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    """No background: for simulations and tests."""
    try:
        work()
    except (JournalError, MemoryError) as exc:
        done(exc)
    else:
        done(None)


class Compaction:
    """One node's snapshots."""

    def __init__(self, node: RaftNode, every: int, background: Background) -> None:
        """`every`: entries between two snapshots."""
        self._node = node
        self._every = every
        self._background = background
        self._writing = False
        self._written: PendingSnapshot | None = None
        self._put_until = 0.0
        self._not_before = 0.0

    @property
    def busy(self) -> bool:
        """A snapshot waits to be put in place."""
        return self._written is not None

    def each_turn(self) -> None:
        """Begin one if it is time, or put the one that is written in place."""
        node = self._node
        if self._written is not None:
            self._put(self._written)
        elif (
            not self._writing
            and node.applied_index - max(node.storage.snapshot_index, 1) >= self._every
            and node.clock() >= self._not_before
        ):
            self._begin()

    def _begin(self) -> None:
        node = self._node
        state, index, members = node.state, node.applied_index, dict(node.membership.applied)
        last = (node.entry(index - 1), node.entry(index))
        pending: list[PendingSnapshot] = []

        def work() -> None:
            pending.append(node.storage.begin_snapshot(codec.encode_state(state), last, members))
            pending[0].write()

        def done(error: BaseException | None) -> None:
            self._writing = False
            if error is None:
                self._written = pending[0]
                self._put_until = node.clock() + PATIENCE_S
            else:
                self._not_before = node.clock() + PAUSE_S
                log.error("no snapshot", keeper=node.name, entry=index, problem=repr(error))

        self._writing = True
        self._background(work, done)

    def _put(self, written: PendingSnapshot) -> None:
        """With it the entries before it go; those who lack a few of them should get them first."""
        node, index = self._node, written.snapshot.index
        if node.leads and node.clock() < self._put_until:
            here = node.other_names & node.connected_names
            if any(node.leading.match_of(name) < index for name in here):
                return
        self._written = None
        node.storage.finish(written)
