"""What a Raft node is built from: a network, a disk, a clock and chance. Real ones, or simulated ones.

Everything here is called on the node's own thread, and never blocks but for `Disk` and what writes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Message = Mapping[str, Any]  # of PySyncObj's: str keys; values are None, bool, int, str, bytes, lists, dicts
Resolve = Callable[[str], tuple[str, int] | None]  # a keeper's host and port by its name; None: not known now


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a keeper introduces itself on every connection, once it has proved who it is."""

    name: str
    incarnation: (
        str  # made anew when its folder was found empty: nothing that it once acknowledged counts then
    )
    fresh: bool  # has never been a member of a cluster that has begun
    cluster: str  # the cluster's id, made when it begins; empty while fresh
    last_index: int  # of its log
    version: int  # newest version of commands that it reads


class Receiver(Protocol):
    """Who is told of what comes in."""

    def hello(self) -> Hello:
        """How this keeper introduces itself now."""
        ...

    def connected(self, hello: Hello) -> None:
        """The connection to a peer stands, in both directions."""
        ...

    def disconnected(self, peer: str) -> None:
        """It is gone. Told at once when the peer's process dies (its kernel closes the connection)."""
        ...

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        """All messages of one read, in order: handled together, they share one fsync and one answer."""
        ...


class Network(Protocol):
    """Connections to the other keepers. At most once, in order while a connection lasts, nothing else."""

    def open(self, receiver: Receiver) -> None:
        """Listen, and connect to the peers; on the running loop of this thread."""
        ...

    def peers(self, names: Collection[str]) -> None:
        """From now on be connected to these, and to nobody else."""
        ...

    def send(self, peer: str, message: Message) -> None:
        """Queue a message. Dropped if there is no connection, or too much is queued: Raft sends again."""
        ...

    def flush(self) -> None:
        """Let what is queued go out now, and not only when the loop's turn, or `received`, is over."""
        ...

    async def close(self) -> None:
        """Close everything; what is queued may be lost."""
        ...


class Clock(Protocol):
    """Time that only moves forward."""

    def __call__(self) -> float:
        """Seconds since some moment."""
        ...


class Disk(Protocol):
    """A folder of files, with exactly the operations that durability is made of. Raises OSError.

    What was written is certain to survive a power cut only after `sync` of the file, and for a new name or a
    rename after `sync_folder`; simulated disks lose anything else.
    """

    def claim(self, folder: Path) -> None:
        """Make the folder (0700) and its parents, and hold it until `close`, or until this process ends.

        BlockingIOError, which names the process, if another one holds it.
        """
        ...

    def read(self, path: Path) -> bytes:
        """The whole file. FileNotFoundError if it is not there."""
        ...

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` at its end, making it (0600) if it is not there."""
        ...

    def truncate(self, path: Path, size: int) -> None:
        """Cut it to `size` bytes."""
        ...

    def sync(self, path: Path) -> None:
        """Wait until what was written to it is on the disk."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Rename, atomically."""
        ...

    def remove(self, path: Path) -> None:
        """Delete it if it is there."""
        ...

    def names(self, folder: Path) -> Collection[str]:
        """Its files; nothing if it is not there."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Wait until new names and renames in the folder are on the disk."""
        ...

    def close(self) -> None:
        """Let go of open files, and of the claimed folder; again is harmless."""
        ...
