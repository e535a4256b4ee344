"""Who is told of applied commands; every log has one of these."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from fedkeeper.core.model import Applied, Command
from fedkeeper.replication.base import Listener

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class Listeners:
    """Called in the order in which they came; one that raises is reported and hurts nobody else."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def add(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` from the next command on; returns how to stop, which may be called twice."""
        token = object()  # the same function may listen twice
        self._listeners[token] = listener

        def stop() -> None:
            self._listeners.pop(token, None)

        return stop

    def tell(self, command: Command, applied: Applied) -> None:
        """Call every listener that has not been stopped, by an earlier one for instance."""
        for token, listener in list(self._listeners.items()):
            if token not in self._listeners:
                continue
            try:
                listener(command, applied)
            except Exception:  # noqa: BLE001 - the command is durable and applied, whatever listeners do
                _log.exception("listener failed", listener=repr(listener), command=type(command).__name__)
