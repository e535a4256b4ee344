"""One worker process as the pool sees it: start, call, measure, end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.inside.frames import HEAD_BYTES_MAX, LENGTHS, pack
from fedkeeper.fabric.model import Revision
from fedkeeper.fabric.output import Output
from fedkeeper.fabric.preload import MARK, Zygote

BODY_BYTES_MAX = 33 << 20  # an answer of 32 MiB, the most that a Cloud Function may give
PROCESSES_MAX = 1024  # as on OpenWhisk
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


class Worker:
    """A process that holds one revision of a function. Made by `start`; `end` kills it and all it started."""

    def __init__(
        self, revision: Revision, zygote: Zygote, temporary: Path, on_end: Callable[[Worker], None]
    ) -> None:
        self.revision = revision
        self.temporary = temporary
        self.output = Output()
        self.pid = 0
        self.active = 0  # calls that run
        self.idle_since = 0.0  # event loop's time
        self.retired = False  # ends when its last call has
        self.zygote = zygote
        self._inherited_kb = 0  # anonymous memory that it shares with the zygote
        self._pidfd = -1
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._reading: asyncio.Task[None]
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self.fault = ""  # why the pool ended it
        self.ending: asyncio.Task[None] | None = None
        self.status: int | None = None  # wait status, once it has ended
        self._on_end = on_end

    @classmethod
    async def start(
        cls,
        revision: Revision,
        zygote: Zygote,
        temporary: Path,
        environment: Mapping[str, str],
        on_end: Callable[[Worker], None],
    ) -> Worker:
        """Fork one from `zygote`. ServiceError when that cannot be done."""
        self = cls(revision, zygote, temporary, on_end)
        ours, theirs = socket.socketpair()
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        order = {
            "flavour": revision.flavour,
            "folder": revision.folder,
            "entry": revision.entry,
            "concurrency": revision.limits.concurrency,
            "memory_mb": revision.limits.memory_mb,
            "temporary": str(temporary),
            "environment": {**environment, MARK: zygote.mark},
        }
        try:
            os.mkdir(temporary, 0o700)  # noqa: PTH102 - one entry: not worth a thread
            forked = await zygote.fork(order, [theirs.fileno(), out_end, err_end])
        except BaseException:
            ours.close()
            os.close(out)
            os.close(err)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            theirs.close()
            os.close(out_end)
            os.close(err_end)
        self.pid = forked["pid"]
        self._inherited_kb = forked["anonymous_kb"]
        self.output.attach(out, err)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(), name=f"worker {self.pid}")
        # Its death shows here and not by the channel: a process that the function forked may hold that open.
        self._pidfd = os.pidfd_open(self.pid)  # still its pid: only `zygote.end` reaps it
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited)
        return self

    @property
    def alive(self) -> bool:
        """False from the moment of its death, or that its end has begun."""
        if self.ending is not None:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    async def call(self, head: Mapping[str, Any], body: bytes, seconds: float) -> Answer:
        """Send a message and wait for its answer. WorkerDied; after `seconds` with the fault "deadline"."""
        if self.ending is not None:
            await asyncio.shield(self.ending)
            raise WorkerDied(self.fault, self.status)
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(pack({**head, "id": number}, body))
                with contextlib.suppress(ConnectionError):  # it died: `answer` will say how
                    await self._writer.drain()
                return await answer
        except TimeoutError:
            await self.end("deadline")
            raise WorkerDied("deadline", None) from None
        finally:
            self._pending.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, also when the deadline came first

    def excess(self, table: dict[int, int]) -> str:
        """The fault of a worker that uses more than it may; empty if it does not."""
        if 1 + len(processes.descendants([self.pid], table)) > PROCESSES_MAX:
            return "started too many processes"
        return "memory" if self.memory_kb(table) > self.revision.limits.memory_mb << 10 else ""

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
        self.output.drain()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(WorkerDied(self.fault, self.status))
        self._on_end(self)
        self._reading.cancel()
        self._writer.transport.abort()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._reading
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self.output.close()
        await asyncio.to_thread(shutil.rmtree, self.temporary, ignore_errors=True)

    async def _read(self) -> None:
        """Hand each answer to the call that waits for it; end a worker that breaks the protocol."""
        try:
            while True:
                head_bytes, body_bytes = LENGTHS.unpack(await self._reader.readexactly(LENGTHS.size))
                if head_bytes > HEAD_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
                    break
                head = json.loads(await self._reader.readexactly(head_bytes))
                body = await self._reader.readexactly(body_bytes)
                answer = self._pending.get(head["id"])
                if answer is not None and not answer.done():
                    answer.set_result((head, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # it is ending: `_exited` is told by the kernel. One that only closed has its deadline
        except (ValueError, KeyError, TypeError):
            pass
        self.end("broke the protocol")
