"""One worker process as the pool sees it: start, call, measure, end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkeeper.fabric.cgroups import Group
from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.inside.frames import Inbox, pack
from fedkeeper.fabric.model import Revision
from fedkeeper.fabric.output import Output
from fedkeeper.fabric.preload import MARK, Zygote

ANSWER_BYTES_MAX = {  # as its runtime cuts it; more can only come from a function that writes on our channel
    "openwhisk": 1 << 20,
    "google": 32 << 20,
    "openfaas": 32 << 20,
}
PROCESSES_MAX = 1024  # as on OpenWhisk
FILES_MAX = 20_000  # in its own directory, as many as a package may hold
Answer = tuple[dict[str, Any], bytes]


class WorkerDied(Exception):
    """The worker ended before it answered. `fault`: why the pool ended it; empty: nobody here did."""

    def __init__(self, fault: str, status: int | None) -> None:
        super().__init__(fault or how_it_ended(status))
        self.fault = fault
        self.status = status


def how_it_ended(status: int | None) -> str:
    """A wait status in words."""
    if status is None:
        return "ended with its zygote"
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)} ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarters:
    """What a worker has for itself, gone after its end: a directory (HOME, TMPDIR) and control groups."""

    folder: Path
    disk_mb: int  # of all files in `folder`, and the most that one file anywhere may have
    processes_max: int
    group: Group

    def fault(self) -> str:
        """Why its worker must end; empty if it need not. Blocking."""
        nbytes, files = _usage(self.folder)
        if nbytes > self.disk_mb << 20:
            return f"wrote more than {self.disk_mb} MB of files"
        if files > FILES_MAX:
            return f"made more than {FILES_MAX} files"
        return "memory" if self.group.oom_kills() else ""

    def remove(self) -> None:
        """Kill who is left in them, and remove them. Blocking."""
        self.group.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Channel(asyncio.Protocol):
    """A worker's answers, handed on as they arrive."""

    def __init__(self, received: Callable[[bytes], None]) -> None:
        self._received = received
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Some bytes of answers."""
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by us or by the worker: that one's end is told by the kernel."""
        del exc
        self.lost.set()


class Worker:
    """A process that holds one revision of a function. Made by `start`; `end` kills it and all it started."""

    def __init__(
        self, revision: Revision, zygote: Zygote, quarters: Quarters, on_end: Callable[[Worker], None]
    ) -> None:
        self.revision = revision
        self.quarters = quarters
        self.output = Output()
        self.pid = 0
        self.active = 0  # calls that run
        self.idle_since = 0.0  # event loop's time
        self.retired = False  # ends when its last call has
        self.zygote = zygote
        self._inherited_kb = 0  # anonymous memory that it shares with the zygote
        self._pidfd = -1
        self._death = select.poll()
        self._inbox = Inbox(ANSWER_BYTES_MAX[revision.flavour])
        self._transport: asyncio.Transport
        self._channel: _Channel
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self.fault = ""  # why the pool ended it
        self.ending: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()  # its processes are gone; its directory may still be
        self.status: int | None = None  # wait status, once it has ended
        self._on_end = on_end

    @classmethod
    async def start(
        cls,
        revision: Revision,
        zygote: Zygote,
        quarters: Quarters,
        environment: Mapping[str, str],
        on_end: Callable[[Worker], None],
        *,
        node: str = "",
    ) -> Worker:
        """Make one of a process of `zygote`. `node`: the program that serves node actions. ServiceError."""
        forked = await zygote.take()
        self = cls(revision, zygote, quarters, on_end)
        self.pid = forked.pid
        self._inherited_kb = 0 if node else forked.anonymous_kb  # another program shares nothing
        self.output.attach(forked.stdout, forked.stderr)
        loop = asyncio.get_running_loop()
        self._transport, self._channel = await loop.create_connection(
            lambda: _Channel(self._received), sock=forked.channel
        )
        # Its death shows here and not by the channel: a process that the function forked may hold that open.
        self._pidfd = os.pidfd_open(self.pid)  # still its pid: only `zygote.end` reaps it
        self._death.register(self._pidfd, select.POLLIN)
        loop.add_reader(self._pidfd, self._exited)
        order = {
            "flavour": "nodejs" if node else revision.flavour,
            "folder": revision.folder,
            "entry": revision.entry,
            "concurrency": revision.limits.concurrency,
            "memory_mb": revision.limits.memory_mb,
            "disk_mb": quarters.disk_mb,
            "cgroups": quarters.group.join,
            "environment": {**environment, MARK: zygote.mark},
            "node": node,
        }
        self._transport.write(pack(order, b""))
        return self

    @property
    def alive(self) -> bool:
        """False from the moment of its death, or that its end has begun."""
        if self.ending is not None:
            return False
        return not self._death.poll(0)

    async def call(self, head: Mapping[str, Any], body: bytes, seconds: float) -> Answer:
        """Send a message and wait for its answer. WorkerDied; after `seconds` with the fault "deadline"."""
        if self.ending is not None:
            await asyncio.shield(self.ending)
            raise WorkerDied(self.fault, self.status)
        number = next(self._ids)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._pending[number] = answer
        deadline = loop.call_later(seconds, _late, answer)
        try:
            self._transport.write(pack({**head, "id": number}, body))
            return await answer
        except TimeoutError:
            await self.end("deadline")
            raise WorkerDied("deadline", None) from None
        finally:
            deadline.cancel()
            self._pending.pop(number, None)

    def excess(self, table: dict[int, int]) -> str:
        """The fault of a worker that uses more than it may; empty if it does not. Blocking."""
        if 1 + len(processes.descendants([self.pid], table)) > self.quarters.processes_max:
            return "started too many processes"
        if self.memory_kb(table) > self.revision.limits.memory_mb << 10:
            return "memory"
        return self.quarters.fault()

    def memory_kb(self, table: dict[int, int]) -> int:
        """KiB of anonymous memory of this worker and its descendants, without what it got from the zygote.

        Pages that a process and its forks share count once: RssAnon is exact for a lone process; with
        descendants it is an upper bound, and the kernel's proportional count decides.
        """
        tree = [self.pid, *processes.descendants([self.pid], table)]
        bound = max(0, sum(map(processes.anonymous_kb, tree)) - self._inherited_kb)
        if len(tree) == 1 or bound <= self.revision.limits.memory_mb << 10:
            return bound
        return min(bound, sum(map(processes.proportional_kb, tree)))

    def end(self, fault: str) -> Awaitable[None]:
        """Kill it and all that descends from it, remove its directory. Safe to call again.

        Begun when this returns, so that nobody can lease the worker in between; done when awaited.
        """
        if self.ending is None:
            self.fault = fault
            self.ending = asyncio.create_task(self._end(), name=f"end of worker {self.pid}")
        return asyncio.shield(self.ending)

    def _exited(self) -> None:
        self.end("")

    async def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.status = await self.zygote.end(self.pid)
        if not self.fault and self.quarters.group.oom_kills():
            self.fault = "memory"
        self.output.drain()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(WorkerDied(self.fault, self.status))
        self.ended.set()
        self._on_end(self)
        self._transport.abort()
        await self._channel.lost.wait()
        self.output.close()
        await asyncio.to_thread(self.quarters.remove)

    def _received(self, data: bytes) -> None:
        """Hand each answer to the call that waits for it; end a worker that breaks the protocol."""
        self._inbox.feed(data)
        try:
            while (message := self._inbox.take()) is not None:
                answer = self._pending.get(message[0]["id"])
                if answer is not None and not answer.done():
                    answer.set_result(message)
        except (ValueError, KeyError, TypeError, RecursionError):
            self.end("broke the protocol")


def _late(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _usage(folder: Path) -> tuple[int, int]:
    """Bytes on disk of the files under `folder`, and how many there are; counting ends beyond FILES_MAX."""
    nbytes = files = 0
    for root, _, names in os.walk(folder):
        for name in names:
            files += 1
            with contextlib.suppress(OSError):
                nbytes += os.lstat(f"{root}/{name}").st_blocks * 512
        if files > FILES_MAX:
            break
    return nbytes, files
