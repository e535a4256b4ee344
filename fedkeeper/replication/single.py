"""The log of a lone keeper: every command is on this machine's disk before it counts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import JournalError, JournalUnconfirmed
from fedkeeper.replication import codec
from fedkeeper.replication.base import Listener
from fedkeeper.replication.journal import Apply, Journal
from fedkeeper.replication.listeners import Listeners

BATCH_MAX: Final = 256  # commands that share one fsync
LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # a run of 100 000 clients is submitted in less


@dataclass(frozen=True, slots=True)
class _Proposal:
    command: Command
    line: bytes
    answer: asyncio.Future[Applied]


class SingleLog:
    """A `Log` on one disk, made by `open`. Commands that are proposed together share one fsync."""

    def __init__(
        self,
        journal: Journal,
        apply: Apply,
        *,
        snapshot_every: int,
        waiting_max: int,
        timeout_s: float,
    ) -> None:
        self._journal = journal
        self._apply = apply
        self._snapshot_every = snapshot_every
        self._timeout_s = timeout_s
        self._state = State()
        self._listeners = Listeners()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._slots = asyncio.Semaphore(waiting_max)
        self._waiting: deque[_Proposal] = deque()  # no longer than there are slots
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._refusal: JournalError | None = None  # why nothing is taken any more

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        *,
        fsync: bool = True,
        snapshot_every: int = 1000,
        waiting_max: int = 1024,
        timeout_s: float = 30.0,
        apply: Apply = core_apply,
    ) -> AsyncIterator[SingleLog]:
        """The log in `folder`, which belongs to it alone and is made if it is missing.

        Args:
            folder: where `journal.jsonl`, `snapshot.json` and `lock` live; mode 0700, files 0600.
            fsync: False only where losing commands with the machine's power does not matter: in tests.
            snapshot_every: commands between two snapshots; a start replays at most about as many.
            waiting_max: proposals that wait at a time; further ones wait for their turn.
            timeout_s: how long a `propose` waits.
            apply: the state machine.

        Raises:
            JournalDamaged: a record other than a torn last one does not check, or comes from a newer version.
            JournalFull: the folder cannot be written.
            JournalError: another process has the folder, or the disk fails.
        """
        loop = asyncio.get_running_loop()
        journal = await loop.run_in_executor(None, lambda: Journal(folder, fsync=fsync))
        log = cls(journal, apply, snapshot_every=snapshot_every, waiting_max=waiting_max, timeout_s=timeout_s)
        try:
            log._state = await loop.run_in_executor(log._disk, journal.load, apply)
            log._writer = asyncio.create_task(log._write(), name="journal writer")
            yield log
        finally:
            await log.close()

    @property
    def state(self) -> State:
        """The state after the last command applied here; every command in it is on disk."""
        return self._state

    async def propose(self, command: Command) -> Applied:
        """Append, make durable, apply.

        A caller that is cancelled may find the command applied all the same. After a failed write the log
        takes nothing more: open it again.

        Raises:
            JournalFull: the disk takes no more; the command did not happen.
            JournalUnconfirmed: not known to be on disk, and it may be, or come to be.
            JournalError: it cannot be written (wrong types, NaN, too long), no turn in time, or closed.
        """
        line = codec.encode(command)
        if len(line) > LINE_BYTES_MAX:
            raise JournalError(f"{type(command).__name__} is longer than {LINE_BYTES_MAX} bytes")
        answer: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        # What is applied is what a replay will read.
        proposal = _Proposal(codec.decode(line), line, answer)
        waiting = False
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                if self._refusal is not None:
                    raise _again(self._refusal)
                self._waiting.append(proposal)
                self._wake.set()
                waiting = True
                return await answer
        except TimeoutError:
            problem = f"{self._journal.folder}: {type(command).__name__} after {self._timeout_s} s"
            if waiting:
                raise JournalUnconfirmed(
                    f"{problem} not known to be on disk", hint="is the disk well?"
                ) from None
            raise JournalError(f"{problem} without a turn", hint="too many proposals for this disk") from None

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, in order, on the event loop; returns how to stop."""
        return self._listeners.add(listener)

    async def close(self) -> None:
        """Finish what was proposed, then let go of the files; again is harmless."""
        self._refuse(JournalError(f"the log in {self._journal.folder} is closed"))
        self._wake.set()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=self._timeout_s)
            if not self._writer.done():  # the disk hangs, and its thread uses the files
                self._disk.shutdown(wait=False)
                return
        self._disk.shutdown()
        self._journal.close()

    async def _write(self) -> None:
        """Batch after batch until closed. The state is made first, as `apply` is pure, and shown last."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._refusal is None:
                if not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                batch = self._decide()
                if not batch:
                    continue
                lines = [proposal.line for proposal, _ in batch]
                try:
                    await loop.run_in_executor(self._disk, self._journal.append, lines)
                except JournalError as exc:
                    self._refuse(exc)
                    _fail((proposal for proposal, _ in batch), exc)
                    return
                self._show(batch)
                if self._journal.entries >= self._snapshot_every:
                    await loop.run_in_executor(self._disk, self._journal.compact, self._state)
        except JournalError as exc:
            self._refuse(exc)
        finally:
            why = self._refuse(JournalError(f"the writer of {self._journal.folder} has ended"))
            _fail(self._waiting, why)

    def _decide(self) -> list[tuple[_Proposal, Applied]]:
        """The next batch and what becomes of each command in it; nothing is to be seen of it yet."""
        state = self._state
        batch: list[tuple[_Proposal, Applied]] = []
        while self._waiting and len(batch) < BATCH_MAX:
            proposal = self._waiting.popleft()
            if proposal.answer.done():  # its caller has gone
                continue
            try:
                applied = self._apply(state, proposal.command)
            except Exception as exc:  # noqa: BLE001 - a fault in the machine costs one command, not the log
                kind = type(proposal.command).__name__
                fault = JournalError(
                    f"{kind} cannot be applied: {exc!r}", hint="a fault of FedKeeper: report it"
                )
                fault.__cause__ = exc
                proposal.answer.set_exception(fault)
                continue
            state = applied.state
            batch.append((proposal, applied))
        return batch

    def _show(self, batch: list[tuple[_Proposal, Applied]]) -> None:
        for proposal, applied in batch:
            self._state = applied.state
            if not proposal.answer.done():
                proposal.answer.set_result(applied)
            self._listeners.tell(proposal.command, applied)

    def _refuse(self, why: JournalError) -> JournalError:
        """Take nothing more; the first reason is the one that counts."""
        if self._refusal is None:
            self._refusal = why
        return self._refusal


def _fail(proposals: Iterable[_Proposal], why: JournalError) -> None:
    for proposal in proposals:
        if not proposal.answer.done():
            proposal.answer.set_exception(_again(why))


def _again(error: JournalError) -> JournalError:
    """The same error for one more caller: an exception that is raised twice mixes up its tracebacks."""
    return type(error)(str(error), hint=error.hint)
