"""The listening socket. Nothing that strangers do loses it, and they cannot fill it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from fedkeeper.errors import ConfigError, PortTaken
from fedkeeper.replication.raft.network.complaints import Complaints
from fedkeeper.replication.raft.network.connection import Connection
from fedkeeper.replication.raft.network.limits import Counts, Limits

_BACKLOG: Final = 128
_ACCEPTS_PER_TURN: Final = 16  # so that a flood of them does not keep the messages of peers waiting
_PAUSE_S: Final = 0.1  # after an accept that failed


class Listener:
    """Accepts connections, and knows those that have not proved who they are."""

    def __init__(
        self, make: Callable[[], Connection], limits: Limits, counts: Counts, complain: Complaints
    ) -> None:
        self.address = ("", 0)
        self._make = make
        self._limits = limits
        self._counts = counts
        self._complain = complain
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._reserve = -1  # a file descriptor to give up, so that a connection can be taken and closed
        self._resume: asyncio.TimerHandle | None = None
        self._strangers: dict[Connection, str] = {}  # with their host, oldest first
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, host: str, port: int) -> None:
        """Listen. PortTaken, or ConfigError if there is no such address here."""
        try:
            family, kind, proto, _, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.socket(family, kind, proto)
            self._socket.setblocking(False)  # noqa: FBT003 (the standard library's)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(where)
            self._socket.listen(_BACKLOG)
        except OSError as exc:
            self.close()
            if exc.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"{host}:{port} is in use by another program, and keepers are to meet there",
                    hint="is this keeper running already?",
                ) from exc
            raise ConfigError(f"cannot listen for keepers at {host}:{port}: {exc}") from exc
        self.address = self._socket.getsockname()[:2]
        self._loop.add_reader(self._socket, self._accept)
        self._keep_reserve()

    def close(self) -> None:
        """Stop listening."""
        if self._resume:
            self._resume.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._give_up_reserve()  # what has just been accepted is aborted by its owner as soon as it begins

    def known(self, connection: Connection) -> None:
        """It is no stranger any more, or it is gone."""
        self._strangers.pop(connection, None)

    # --- accepting -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._socket is None:
                return
            try:
                accepted, where = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                self._exhausted(self._socket, exc)
                return
            self._take(accepted, str(where[0]))

    def _take(self, accepted: socket.socket, host: str) -> None:
        self._make_room(host)
        connection = self._make()
        self._strangers[connection] = host
        task = self._loop.create_task(self._connect(accepted, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as exc:
            accepted.close()
            connection.connection_lost(exc)  # it never began: asyncio does not tell it

    def _make_room(self, host: str) -> None:
        """Close the oldest stranger, of this host or in all, if there are too many.

        Not the newest: a keeper proves itself within milliseconds, so those that are old mean no good.
        """
        same = [one for one, other in self._strangers.items() if other == host]
        if len(same) >= self._limits.strangers_per_address_max:
            victim = same[0]
        elif len(self._strangers) >= self._limits.strangers_max:
            victim = next(iter(self._strangers))
        else:
            return
        victim.abort("too many connections without proof")
        self.known(victim)

    # --- no file descriptors left --------------------------------------------------------------------

    def _exhausted(self, listening: socket.socket, exc: OSError) -> None:
        """Close those who wait, so that they know, and go on in a moment."""
        self._counts.accepts_failed += 1
        self._complain("connections cannot be accepted", str(exc.errno), reason=str(exc))
        for _ in range(_ACCEPTS_PER_TURN):
            self._give_up_reserve()
            try:
                listening.accept()[0].close()
            except OSError:
                break
        self._keep_reserve()
        self._loop.remove_reader(listening)
        self._resume = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._socket is not None:
            self._keep_reserve()
            self._loop.add_reader(self._socket, self._accept)

    def _keep_reserve(self) -> None:
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_up_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
