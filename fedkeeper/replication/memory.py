"""The log without a disk: for tests, and for trying things out. Nothing survives it."""

from __future__ import annotations

from collections.abc import Callable

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import JournalError
from fedkeeper.replication import codec
from fedkeeper.replication.base import Listener
from fedkeeper.replication.journal import Apply
from fedkeeper.replication.listeners import Listeners


class MemoryLog:
    """A `Log` whose commands are durable as long as the process is. Set `failure` to have it refuse."""

    def __init__(self, state: State | None = None, *, apply: Apply = core_apply) -> None:
        self.failure: JournalError | None = None  # raised by every later `propose`
        self._state = State() if state is None else state
        self._apply = apply
        self._listeners = Listeners()
        self._closed = False

    @property
    def state(self) -> State:
        """The state after the last command."""
        return self._state

    async def propose(self, command: Command) -> Applied:
        """Apply, through the codec, so that what a real log could not write fails here as well."""
        if self._closed:
            raise JournalError("the log is closed")
        if self.failure is not None:
            raise self.failure
        command = codec.decode(codec.encode(command))
        try:
            applied = self._apply(self._state, command)
        except Exception as exc:
            raise JournalError(f"{type(command).__name__} cannot be applied: {exc!r}") from exc
        self._state = applied.state
        self._listeners.tell(command, applied)
        return applied

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command; returns how to stop."""
        return self._listeners.add(listener)

    async def close(self) -> None:
        """Refuse further commands; the state can still be read."""
        self._closed = True
