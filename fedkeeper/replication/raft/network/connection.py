"""One TCP connection to a keeper, or to a stranger: handshake, introduction, then messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final, Protocol, cast

import msgspec

from fedkeeper.replication.raft.base import Hello, Message
from fedkeeper.replication.raft.network.channels import Bytes, Channel
from fedkeeper.replication.raft.network.frames import Broken
from fedkeeper.replication.raft.network.handshake import Intro, Refusal, decode, encode
from fedkeeper.replication.raft.network.limits import Counts, Limits

_ARRAY: Final = b"\xdd"  # msgpack: an array, whose length follows in four bytes
_ARRAY_HEADER: Final = 5
_USUAL_BYTES_MAX: Final = 128 * 1024  # of a frame of several messages: the peer reads one as we seal another
_REASON_CHARS_MAX: Final = 300  # it may name whatever the other side called itself
_messages = msgspec.msgpack.Decoder(list[dict[str, Any]])
_encode = msgspec.msgpack.Encoder().encode


class Owner(Protocol):
    """Who decides about connections: PeerNetwork."""

    def introduce(self, connection: Connection) -> Intro | None:
        """What to say first on `connection`, which has a ready channel; None: nothing, close it."""
        ...

    def refusal(self, connection: Connection, intro: Intro) -> str:
        """Why the other side of `connection` is refused; empty if it is welcome."""
        ...

    def stands(self, connection: Connection) -> None:
        """Both sides have accepted each other."""
        ...

    def knocked(self, connection: Connection) -> None:
        """A peer says that it has no connection to us."""
        ...

    def received(self, connection: Connection, messages: list[Message]) -> None:
        """Messages of a standing connection."""
        ...

    def ended(self, connection: Connection, reason: str) -> None:
        """It is gone, and the kernel has let go of it; told once."""
        ...


class Connection(asyncio.BufferedProtocol):
    """Bytes in, messages out, and back.

    The dialler introduces itself, the acceptor answers with its own introduction, the dialler confirms with
    an empty frame: then the connection stands for both. Later, empty frames keep it alive.
    """

    def __init__(
        self,
        owner: Owner,
        channel: Channel,
        limits: Limits,
        totals: Counts,
        *,
        dialled: str = "",
        knock: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.dialled = dialled  # the peer's name; empty if the other side dialled
        self.knock = knock  # we only dial to be dialled
        self.hello: Hello | None = None  # of the peer, once it has introduced itself and is not refused
        self.standing = False
        self.counts = False  # it is the one by which the owner reaches the peer
        self.introduced = False  # we have said who we are
        self.refused = False  # one side has proved itself and is not welcome
        self.address = "?"  # of the other side, for the log
        self.begun_at = self.heard_at = self.said_at = loop.time()
        self.stood_at = 0.0
        self.settled: asyncio.Future[bool] = loop.create_future()  # whether it came to stand
        self.closed: asyncio.Future[None] = loop.create_future()
        self._owner = owner
        self._channel = channel
        self._limits = limits
        self._totals = totals
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""  # why it ends, once that is decided
        self._queue: list[bytes] = []  # encoded messages of this turn of the loop
        self._queued = 0  # their bytes

    def __repr__(self) -> str:
        return f"<Connection {self.peer or 'to a stranger'} at {self.address}>"

    @property
    def reached(self) -> bool:
        """Something has taken the connection, which may or may not be a keeper."""
        return self._transport is not None

    @property
    def coming(self) -> bool:
        """The other side has dialled and introduced itself, and nothing has gone wrong so far."""
        return bool(self.hello and not self.dialled and not self._reason)

    @property
    def peer(self) -> str:
        """Its name; empty before it has introduced itself and been accepted."""
        return self.hello.name if self.hello else ""

    # --- called by asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        if self._reason:  # decided before it began
            self._transport.abort()
            return
        self._tune(transport.get_extra_info("socket"))
        where = transport.get_extra_info("peername")
        if where:
            self.address = f"{where[0]}:{where[1]}"
        self._timer = self._loop.call_later(self._limits.handshake_s, self._too_late)
        try:
            self._write(self._channel.begin())
            self._introduce_if_ready()
        except Broken as exc:
            self.end(str(exc))

    def _tune(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it may have been reset already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: sent and not acknowledged for so many ms: gone
                ms = int(self._limits.silence_s * 1000)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ms)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the kernel is to write."""
        return self._channel.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come in, and hand over its messages together."""
        self.heard_at = self._loop.time()
        self._totals.bytes_received += nbytes
        messages: list[Message] = []
        try:
            for frame in self._channel.received(nbytes):
                self._take(frame, messages)
                if self._reason:
                    break
            self._write(self._channel.answer())
            self._introduce_if_ready()
        except Broken as exc:
            self._write(self._channel.answer())  # TLS tells the other side why
            self.end(str(exc))
        if messages:
            self._totals.messages_received += len(messages)
            self._owner.received(self, messages)

    def eof_received(self) -> bool:
        """The other side has closed: so do we."""
        self._reason = self._reason or "closed by the other side"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The kernel has let go of it."""
        if self._timer:
            self._timer.cancel()
        self._queue.clear()
        self._reason = self._reason or (str(exc) if exc else "closed")
        if not self.settled.done():
            self.settled.set_result(False)
        self.closed.set_result(None)
        self._owner.ended(self, self._reason)

    # --- what comes in -------------------------------------------------------------------------------

    def _introduce_if_ready(self) -> None:
        if self.dialled and self._channel.ready and not self.introduced:
            self._introduce()

    def _introduce(self) -> None:
        self.introduced = True
        intro = self._owner.introduce(self)
        if intro is None:
            self.end("not needed any more")
        else:
            self._write(self._channel.seal(encode(intro)))

    def _take(self, frame: Bytes, messages: list[Message]) -> None:
        if self.standing:
            if frame:
                messages.extend(_decoded(frame))
        elif self.hello is None:
            self._meet(decode(frame))
        elif frame:
            raise Broken("it speaks before it has confirmed the introduction")
        else:
            self._stand()

    def _meet(self, said: Intro | Refusal) -> None:
        if isinstance(said, Refusal):
            self.refused = True
            self.end(f"refused by {self.dialled or 'the other side'}: {said.reason[:_REASON_CHARS_MAX]}")
            return
        name = said.hello.name
        reason = self._owner.refusal(self, said)
        if not reason and not self._channel.proves(name):
            reason = f"its certificate does not name {name}"
        if reason:
            self.refused = True
            reason = reason[:_REASON_CHARS_MAX]
            self._write(self._channel.seal(encode(Refusal(reason=reason))))
            self.end(reason)
            return
        self.hello = said.hello
        self._channel.trust(self._limits.frame_bytes_max)
        if said.knock:
            self.end("knocked")
            self._owner.knocked(self)
        elif self.dialled:
            self._write(self._channel.seal(b""))
            self._stand()
        else:
            self._introduce()

    def _stand(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self.standing = True
        self.stood_at = self._loop.time()
        self.settled.set_result(True)
        self._owner.stands(self)

    # --- what goes out -------------------------------------------------------------------------------

    def queue(self, message: Message) -> bool:
        """Take `message` for the next `flush`; False, and it is dropped, if too much is waiting."""
        if self._transport is None or self._reason:
            return False
        encoded = _encode(message)
        size = len(encoded)
        waiting = self._queued + self._transport.get_write_buffer_size()
        if (
            waiting + size > self._limits.queue_bytes_max
            or size + _ARRAY_HEADER > self._limits.frame_bytes_max
        ):
            return False
        self._queue.append(encoded)
        self._queued += size
        return True

    def flush(self) -> None:
        """Send what is queued, in as few frames as may be."""
        queue, self._queue = self._queue, []
        queued, self._queued = self._queued, 0
        usual = min(_USUAL_BYTES_MAX, self._limits.frame_bytes_max - _ARRAY_HEADER)
        if queued <= usual:
            self._send(queue)
            return
        part: list[bytes] = []
        size = 0
        for encoded in queue:
            if part and size + len(encoded) > usual:
                self._send(part)
                part, size = [], 0
            part.append(encoded)
            size += len(encoded)
        self._send(part)

    def _send(self, encoded: list[bytes]) -> None:
        if encoded and not self._reason:
            self._totals.messages_sent += len(encoded)
            self.said_at = self._loop.time()
            self._write(self._channel.seal(_ARRAY + len(encoded).to_bytes(4, "big") + b"".join(encoded)))

    def keep_alive(self) -> None:
        """Say something, so that the other side knows that we are here."""
        self.said_at = self._loop.time()
        if not self._reason:
            self._write(self._channel.seal(b""))

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._totals.bytes_sent += len(data)
            self._transport.write(data)

    # --- its end -------------------------------------------------------------------------------------

    def _too_late(self) -> None:
        self.abort(f"no proof and introduction within {self._limits.handshake_s:g} s")

    def end(self, reason: str) -> None:
        """Close it after what has been written; in the handshake's time, or at once if it stands."""
        if self.standing:
            self.abort(reason)
            return
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close it now."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()


def _decoded(frame: Bytes) -> list[dict[str, Any]]:
    """The messages of a frame. Broken if they are none, or nested too deep."""
    try:
        return _messages.decode(frame)
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError) as exc:
        raise Broken(f"its messages cannot be read ({exc})") from None
