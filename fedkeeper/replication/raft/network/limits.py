"""The bounds of the network, and what has been counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of everything that a peer, or a stranger, can make a keeper spend."""

    frame_bytes_max: int = 32 * MIB  # of one frame of a peer that has proved who it is
    queue_bytes_max: int = 64 * MIB  # waiting to be sent to one peer; further messages are dropped
    handshake_s: float = 2.0  # from a connection's first packet to both sides' introduction
    strangers_max: int = 128  # connections that have not yet proved who they are, in all
    strangers_per_address_max: int = 64  # and from one address; the oldest makes room for the newest
    keepalive_s: float = 1.0  # an empty frame goes out after so long without another
    silence_s: float = 5.0  # a connection on which nothing has come in for so long is given up
    retry_min_s: float = 0.02  # pause after the second attempt in vain; doubled up to
    retry_max_s: float = 0.5


@dataclass(slots=True, kw_only=True)
class Counts:
    """What has happened since the network was opened (counts)."""

    messages_sent: int = 0  # handed to the kernel or to its queue
    messages_received: int = 0
    messages_dropped: int = 0  # no connection, too much queued, or larger than a frame
    bytes_sent: int = 0
    bytes_received: int = 0
    connected: int = 0  # connections that came to stand
    strangers_closed: int = 0  # that did not prove who they are, in time or at all
    peers_refused: int = 0  # that did, and are not who they should be
    accepts_failed: int = 0  # no file descriptor left, mostly
