"""The log of commands, as the keeper sees it: one node on disk (`single`), or several under Raft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedkeeper.core.model import Applied, Command, State

Listener = Callable[[Command, Applied], None]


class Log(Protocol):
    """Commands in one order, applied to one state, durable before `propose` returns."""

    @property
    def state(self) -> State:
        """The state after the last command applied here."""
        ...

    async def propose(self, command: Command) -> Applied:
        """Append, make durable, apply. Bounded in time; JournalError if it cannot be made durable."""
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, in order, on the event loop; returns how to stop."""
        ...

    async def close(self) -> None:
        """Write what is buffered and let go of the files."""
        ...
