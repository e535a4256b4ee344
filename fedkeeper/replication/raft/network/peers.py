"""The network between keepers: one connection per pair, kept up, and what is said over it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Collection
from typing import Final

from fedkeeper.errors import ConfigError
from fedkeeper.replication.raft.base import Message, Receiver, Resolve
from fedkeeper.replication.raft.network.channels import Credentials
from fedkeeper.replication.raft.network.complaints import Complaints
from fedkeeper.replication.raft.network.connection import Connection
from fedkeeper.replication.raft.network.handshake import Intro, dials, refusal
from fedkeeper.replication.raft.network.limits import Counts, Limits
from fedkeeper.replication.raft.network.listener import Listener

_STUCK_S: Final = 0.1  # nothing takes the connection, and the peer knocks: it can be reached elsewhere


class _Link:
    """One peer: how we stand with it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.connection: Connection | None = None  # the one that counts
        self.lost = asyncio.Event()  # it has gone
        self.woken = asyncio.Event()  # the next attempt is to be made now
        self.attempt: asyncio.Timeout | None = None  # of the one that is under way
        self.dialling: Connection | None = None  # by it
        self.attempt_begun = self.attempt_until = 0.0  # loop's time
        self.task: asyncio.Task[None] | None = None


class PeerNetwork:
    """Connections to the other keepers over TCP; implements `Network` of replication/raft/base.py.

    Of two keepers the one with the greater name dials. The other only knocks: it connects to say that it has
    no connection, and is then dialled at once. So there is one true connection, the newest.

    `receiver` is called on the loop's own turns, never from inside a call of this class, and from `close` on
    not at all. What it sends while it is told of messages goes out when it returns, the rest at the end of
    the loop's turn, as one frame and one write per peer.
    """

    def __init__(
        self,
        name: str,
        *,
        bind: tuple[str, int],
        resolve: Resolve,
        credentials: Credentials,
        limits: Limits | None = None,
        source_host: str = "",
    ) -> None:
        """`bind`: host and port to listen on, port 0: any. `source_host`: to dial from; empty: any.

        ConfigError if it would listen off loopback with nothing that protects it.
        """
        if not credentials.protects and not is_loopback(bind[0]):
            raise ConfigError(
                f"keeper {name} would listen at {bind[0]}, and whoever reaches that could take part",
                hint="set keepers.secret or keepers.tls, or listen on 127.0.0.1",
            )
        self.counts = Counts()
        self._name = name
        self._bind = bind
        self._resolve = resolve
        self._credentials = credentials
        self._limits = limits or Limits()
        self._source = (source_host, 0) if source_host else None
        self._complain = Complaints(name)
        self._receiver: Receiver | None = None
        self._listener: Listener | None = None
        self._links: dict[str, _Link] = {}
        self._connections: set[Connection] = set()  # all that the kernel knows of
        self._unsent: set[Connection] = set()  # with messages queued
        self._holding = False  # what is sent goes out when the receiver returns
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    # --- Network -------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on; known once it is open."""
        assert self._listener is not None, "not open"
        return self._listener.address

    def open(self, receiver: Receiver) -> None:
        """Listen on the running loop. PortTaken, or ConfigError if there is no such address here."""
        listener = Listener(self._accepted, self._limits, self.counts, self._complain)
        listener.open(*self._bind)
        self._receiver = receiver
        self._listener = listener
        self._watch()

    def peers(self, names: Collection[str]) -> None:
        """From now on be connected to these, and to nobody else. The own name is passed over."""
        wanted = set(names) - {self._name}
        for peer in self._links.keys() - wanted:
            self._drop(self._links.pop(peer))
        for peer in wanted - self._links.keys():
            link = self._links[peer] = _Link(peer)
            link.task = asyncio.get_running_loop().create_task(self._keep(link), name=f"peer {peer}")

    def send(self, peer: str, message: Message) -> None:
        """Queue a message; dropped, and counted, without a connection or with too much queued."""
        link = self._links.get(peer)
        if link is None or link.connection is None:
            self.counts.messages_dropped += 1
            return
        if not link.connection.queue(message):
            self.counts.messages_dropped += 1
            self._complain(
                "message dropped", peer, peer=peer, reason="too much is queued, or it is too large"
            )
            return
        self._unsent.add(link.connection)
        if not self._holding and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_later)

    def flush(self) -> None:
        """Write what is queued, one frame per peer."""
        unsent, self._unsent = self._unsent, set()
        for connection in unsent:
            connection.flush()

    async def close(self) -> None:
        """Close everything; the receiver is told nothing more."""
        self._receiver = None
        if self._timer:
            self._timer.cancel()
        if self._listener:
            self._listener.close()
        for link in self._links.values():
            self._drop(link)
        self._links.clear()
        for connection in self._connections:
            connection.abort("this keeper closes")
        waiting = [connection.closed for connection in self._connections] + list(self._ending)
        if waiting:
            await asyncio.wait(waiting, timeout=self._limits.handshake_s)

    # --- Owner of the connections --------------------------------------------------------------------

    def introduce(self, connection: Connection) -> Intro | None:
        """Who we are, and whom we look for. None if we knock, and the other side has come meanwhile.

        Otherwise it would take the knock to mean that we have lost what it has just built.
        """
        to = connection.dialled or connection.peer
        if self._receiver is None:
            return None
        if connection.knock and any(other.peer == to and other.coming for other in self._connections):
            return None
        return Intro(hello=self._receiver.hello(), to=to, knock=connection.knock)

    def refusal(self, connection: Connection, intro: Intro) -> str:
        """Why the other side is refused; empty if it is welcome."""
        if self._receiver is None:
            return f"{self._name} closes"
        return refusal(self._receiver.hello(), self._links.keys(), intro, dialled=connection.dialled)

    def stands(self, connection: Connection) -> None:
        """Make it the one that counts, instead of any other to that peer, and tell the receiver."""
        assert connection.hello is not None
        self._known(connection)
        link = self._links.get(connection.peer)
        if link is None or self._receiver is None:  # unwanted since it introduced itself
            connection.abort("no member any more")
            return
        old, link.connection = link.connection, connection
        connection.counts = True
        link.lost.clear()
        link.woken.set()  # no need to knock any more
        if old is not None:
            old.counts = False
            old.abort("replaced by a new connection")
            self._receiver.disconnected(link.peer)
        self.counts.connected += 1
        self._receiver.connected(connection.hello)

    def knocked(self, connection: Connection) -> None:
        """Dial the peer now; a connection that stood before it knocked is one that only we believe in."""
        link = self._links.get(connection.peer)
        if link is None:
            return
        if link.connection is not None:
            if link.connection.stood_at < connection.begun_at:
                link.connection.abort("the other side does not have it any more")
            return
        link.woken.set()
        attempt, dialling = link.attempt, link.dialling
        if attempt and dialling and not attempt.expired() and not dialling.reached:
            now = asyncio.get_running_loop().time()
            attempt.reschedule(max(now, min(link.attempt_until, link.attempt_begun + _STUCK_S)))

    def received(self, connection: Connection, messages: list[Message]) -> None:
        """Hand over the messages of one read, and send what is said in answer."""
        if self._receiver is None or not connection.counts:
            return
        self._holding = True
        try:
            self._receiver.received(connection.peer, messages)
        finally:
            self._holding = False
            if self._unsent:
                self.flush()

    def ended(self, connection: Connection, reason: str) -> None:
        """Forget it, tell the receiver if it counted, and say why if it never stood."""
        self._connections.discard(connection)
        self._unsent.discard(connection)
        self._known(connection)
        if self._receiver is None:
            return
        if connection.counts:
            self._complain("keeper lost", connection.peer, reason, peer=connection.peer, reason=reason)
            link = self._links.get(connection.peer)
            if link is not None and link.connection is connection:
                link.connection = None
                link.lost.set()
            self._receiver.disconnected(connection.peer)
        elif connection.refused:
            self.counts.peers_refused += 1
            self._complain("keeper refused", reason, at=connection.address, reason=reason)
        elif connection.dialled and not (connection.knock and connection.introduced):
            self._not_reached(connection.dialled, connection.address, reason)
        elif connection.hello is None and not connection.dialled:
            self.counts.strangers_closed += 1
            self._complain("stranger refused", reason, at=connection.address, reason=reason)

    # --- keeping connections up ----------------------------------------------------------------------

    def _accepted(self) -> Connection:
        channel = self._credentials.channel(dialling=False)
        connection = Connection(self, channel, self._limits, self.counts)
        self._connections.add(connection)
        return connection

    async def _keep(self, link: _Link) -> None:
        """Dial, or knock, whenever there is no connection: at once, then after growing pauses."""
        pause = self._limits.retry_min_s
        while True:
            connection = link.connection
            if connection is None:
                link.woken.clear()
                await self._attempt(link)
            else:
                await link.lost.wait()
                if asyncio.get_running_loop().time() - connection.stood_at > self._limits.retry_max_s:
                    pause = self._limits.retry_min_s
                    continue  # it was a good one
                link.woken.clear()
            if link.connection is None:
                # Not wait_for: in Python 3.11 it can swallow that the task is cancelled.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await link.woken.wait()
                pause = min(2 * pause, self._limits.retry_max_s)

    async def _attempt(self, link: _Link) -> None:
        """Connect to the peer once, and see whether the connection comes to stand. Bounded in time."""
        where = self._resolve(link.peer)
        if where is None:
            self._not_reached(link.peer, "?", "its address is not known")
            return
        if not self._credentials.protects and not is_loopback(where[0]):
            self._not_reached(link.peer, where[0], "not on loopback, and nothing protects the connection")
            return
        connection = Connection(
            self,
            self._credentials.channel(dialling=True),
            self._limits,
            self.counts,
            dialled=link.peer,
            knock=not dials(self._name, link.peer),
        )
        loop = asyncio.get_running_loop()
        link.dialling = connection
        link.attempt_begun = loop.time()
        link.attempt_until = link.attempt_begun + self._limits.handshake_s
        try:
            async with asyncio.timeout_at(link.attempt_until) as link.attempt:
                await loop.create_connection(
                    lambda: self._dialled(connection), *where, local_addr=self._source
                )
                await connection.settled
        except TimeoutError:
            self._not_reached(link.peer, f"{where[0]}:{where[1]}", "no answer in time")
        except OSError as exc:
            self._not_reached(link.peer, f"{where[0]}:{where[1]}", exc.strerror or str(exc))
        finally:
            link.attempt = link.dialling = None
            if not connection.standing:
                connection.abort("given up")

    def _dialled(self, connection: Connection) -> Connection:
        self._connections.add(connection)
        return connection

    def _drop(self, link: _Link) -> None:
        if link.task is not None:
            link.task.cancel()
            self._ending.add(link.task)
            link.task.add_done_callback(self._ending.discard)
        if link.connection is not None:
            link.connection.abort("no member any more")
            link.connection = None

    def _watch(self) -> None:
        """Keep quiet connections alive, and give up those on which nothing comes in."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for link in self._links.values():
            connection = link.connection
            if connection is None:
                continue
            if now - connection.heard_at > self._limits.silence_s:
                connection.abort(f"silent for {self._limits.silence_s:g} s")
            elif now - connection.said_at >= self._limits.keepalive_s / 2:
                connection.keep_alive()
        self._timer = loop.call_later(self._limits.keepalive_s / 2, self._watch)

    def _flush_later(self) -> None:
        self._flush_due = False
        self.flush()

    def _known(self, connection: Connection) -> None:
        if self._listener is not None:
            self._listener.known(connection)

    def _not_reached(self, peer: str, address: str, reason: str) -> None:
        self._complain("keeper not reached", peer, reason, peer=peer, at=address, reason=reason)


def is_loopback(host: str) -> bool:
    """Only this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
