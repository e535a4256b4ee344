"""The log of a cluster as the keeper uses it: a Raft node on a thread of its own, and what waits for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import FedKeeperError, JournalError, KeeperStopped, NoLeader, OutcomeUnknown
from fedkeeper.replication import codec
from fedkeeper.replication.base import Listener, LogStatus
from fedkeeper.replication.listeners import Listeners
from fedkeeper.replication.raft.base import Network, Resolve
from fedkeeper.replication.raft.compaction import Background
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.node import TIMINGS, Apply, RaftNode, Results
from fedkeeper.replication.raft.storage import Storage
from fedkeeper.replication.raft.thread import NodeThread

BATCH_COMMANDS: Final = 256
BATCH_BYTES: Final = 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # goes alone; a run of 100 000 clients is submitted in less
BATCHES_IN_FLIGHT: Final = 3
RETRY_S: Final = 0.02  # between two attempts to propose while there is no leader
FRESHEN_S: Final = 0.25  # how old the figures in `status` that no decision depends on may be

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A proposal that is not in flight, or a reader (without a line)."""

    line: bytes
    command: Command | None  # what the line decodes to; a reader has none
    answer: asyncio.Future[Any]
    until: float  # by the loop's time


class RaftLog:
    """A `ClusterLog`; made by `open`, used from one event loop.

    What is proposed in one turn of the loop becomes one entry of the log, and so do all that wait while
    enough entries are in flight. Proposals that certainly came to nothing, as there was no leader or it lost
    the lead, are proposed again until their time is up.
    """

    def __init__(self, name: str, *, timeout_s: float, waiting_max: int) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._waiting_max = waiting_max
        self._loop = asyncio.get_running_loop()
        self._listeners = Listeners()
        self._watchers: dict[object, Callable[[LogStatus], None]] = {}
        self._state = State()
        self._version = codec.VERSION
        self._version_of: object = None
        self._status: LogStatus | None = None
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._waiting: deque[_Waiting] = deque()
        self._readers: deque[_Waiting] = deque()
        self._unanswered = 0
        self._in_flight: dict[int, tuple[Sequence[_Waiting], Sequence[_Waiting], int]] = {}  # int: the term
        self._sent = 0
        self._pumping: asyncio.Handle | None = None
        self._resting = False  # until the next attempt
        self._closed = False
        self._thread = NodeThread(name)
        self._fresh_at = 0.0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        name: str,
        folder: Path,
        members: Mapping[str, str],
        *,
        network: Callable[[Resolve], Network],
        resolve: Resolve = lambda _: None,
        timing: str = "steady",
        fsync: bool = True,
        snapshot_every: int = 10_000,
        timeout_s: float = 10.0,
        waiting_max: int = 4096,
        apply: Apply = core_apply,
    ) -> AsyncIterator[RaftLog]:
        """The log of keeper `name`, whose files are in `folder`.

        Args:
            name: of this keeper, one of `members`.
            folder: belongs to this log alone.
            members: name -> "host:port" as configured; the address may be empty where `resolve` knows it.
            network: made on the node's thread, given how addresses are found.
            resolve: where a keeper is now; what it does not know, the members' addresses tell.
            timing: fast, steady or patient; see `timing`.
            fsync: False only where losing commands with the machine's power does not matter.
            snapshot_every: entries between two snapshots.
            timeout_s: a proposal, a read or a change of the members ends after this long, about.
            waiting_max: proposals and reads without an answer at a time; further ones are refused.
            apply: the state machine.

        Raises:
            JournalDamaged, JournalFull, JournalError: the folder cannot be used; PortTaken, ConfigError.
        """
        raft_log = cls(name, timeout_s=timeout_s, waiting_max=waiting_max)
        thread = raft_log._thread

        def build(background: Background) -> tuple[RaftNode, Network]:
            storage = Storage(folder, disk=FolderDisk(), fsync=fsync, owner=name)
            try:
                net = network(lambda peer: resolve(peer) or _address(thread.node.address_of(peer)))
                node = thread.node = RaftNode(
                    name,
                    members,
                    storage=storage,
                    network=net,
                    clock=time.monotonic,
                    chance=random.Random(),  # noqa: S311 - nobody gains by guessing election timeouts
                    timing=TIMINGS[timing],
                    apply=apply,
                    # Who proposed them is told of the outcome in the same turn, and that is news at once.
                    on_applied=lambda _index, _entry, results: thread.post_later(
                        raft_log._on_applied, node.state, results
                    ),
                    on_installed=lambda _index, state: thread.post(raft_log._on_applied, state, ()),
                    on_change=lambda: thread.post(raft_log._on_change, node.status(), node.failure),
                    snapshot_every=snapshot_every,
                    propose_timeout_s=timeout_s,
                    background=background,
                )
            except BaseException:
                storage.close()
                raise
            raft_log._state, raft_log._status = node.state, node.status()
            return node, net

        try:
            await thread.start(build, raft_log._look)
            yield raft_log
        finally:
            await raft_log.close()

    # --- what the node tells -----------------------------------------------------------------------------

    def _look(self) -> None:
        """On the node's thread, at each tick: now and then, whether the status is another one."""
        node = self._thread.node
        now = node.clock()
        if now - self._fresh_at > FRESHEN_S:
            self._fresh_at = now
            status = node.status()
            if status != self._status:
                self._thread.post(self._on_fresh, status)

    def _on_applied(self, state: State, results: Results) -> None:
        if results:
            for command, applied in results:
                self._state = applied.state
                self._listeners.tell(command, applied)
        else:
            self._state = state

    def _on_fresh(self, status: LogStatus) -> None:
        self._status = status

    def _on_change(self, status: LogStatus, failure: FedKeeperError | None) -> None:
        self._status = status
        if failure is not None and not self._failed.done() and not self._closed:
            self._failed.set_exception(failure)
            self._failed.exception()  # whoever does not wait for it need not hear of it
        if status.leader or failure is not None:
            self._resting = False
            self._pump()
        for token, watcher in list(self._watchers.items()):
            if token in self._watchers:
                try:
                    watcher(status)
                except Exception:
                    log.exception("watcher failed", watcher=repr(watcher))

    # --- Log ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state after the last command applied here."""
        return self._state

    async def propose(self, command: Command) -> Applied:
        """Append, make durable on a majority, apply here.

        Raises NoLeader or KeeperStopped if it certainly did not happen, OutcomeUnknown if it may have,
        JournalError if it cannot be written as a line.
        """
        line, back = codec.encode_back(command, version=self._cluster_version())
        if len(line) > LINE_BYTES_MAX:
            raise JournalError(f"{type(command).__name__} is longer than {LINE_BYTES_MAX} bytes")
        applied: Applied = await self._answer(line, back, self._waiting)
        return applied

    async def barrier(self) -> State:
        """The state with everything in it that was acknowledged before the call: a linearizable read."""
        state: State = await self._answer(b"", None, self._readers)
        return state

    async def _answer(self, line: bytes, command: Command | None, queue: deque[_Waiting]) -> Any:
        if self._closed:
            raise KeeperStopped(f"the log of {self.name} is closed")
        if self._unanswered >= self._waiting_max:
            raise NoLeader(f"{self.name}: {self._unanswered} proposals wait already", hint="try again later")
        answer: asyncio.Future[Any] = self._loop.create_future()
        queue.append(_Waiting(line, command, answer, self._loop.time() + self._timeout_s))
        self._unanswered += 1
        self._pump()
        try:
            return await answer
        finally:
            self._unanswered -= 1

    def _cluster_version(self) -> int:
        keepers = self._state.keepers
        if keepers is not self._version_of:
            self._version_of, self._version = keepers, codec.cluster_version(self._state)
        return self._version

    def _pump(self) -> None:
        if self._pumping is None and not self._resting and len(self._in_flight) < BATCHES_IN_FLIGHT:
            self._pumping = self._loop.call_soon(self._send)

    def _send(self) -> None:
        """What has gathered, as one entry of the log."""
        self._pumping = None
        if self._closed:
            return  # `close` tells those that wait
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH_COMMANDS:
            one = self._waiting[0]
            if batch and size + len(one.line) > BATCH_BYTES:
                break
            self._waiting.popleft()
            if not one.answer.done():  # otherwise its caller has gone
                batch.append(one)
                size += len(one.line)
        readers, self._readers = self._readers, deque()
        if batch or readers:
            self._sent += 1
            number = self._sent
            self._in_flight[number] = (batch, readers, self._thread.node.term)
            lines = [one.line for one in batch]
            commands = [one.command for one in batch if one.command is not None]
            post, settle = self._thread.post, self._settle
            self._thread.call(
                self._thread.node.propose,
                lines,
                lambda result: post(settle, number, result),
                commands,
            )
        if self._waiting:
            self._pump()

    def _settle(self, number: int, result: Any) -> None:
        batch, readers, term = self._in_flight.pop(number)
        if not isinstance(result, FedKeeperError):
            for one, applied in zip(batch, result, strict=True):
                if not one.answer.done():
                    one.answer.set_result(applied)
            for one in readers:
                if not one.answer.done():
                    one.answer.set_result(self._state)
        elif isinstance(result, NoLeader) and not self._closed:
            self._again(batch, readers, term, result)
        else:
            for one in (*batch, *readers):
                _fail(one.answer, result)
        if self._waiting or self._readers:
            self._pump()

    def _again(
        self, batch: Sequence[_Waiting], readers: Sequence[_Waiting], term: int, reason: NoLeader
    ) -> None:
        """Nothing was proposed in `term`: try it once more in a moment, or as soon as there is a leader."""
        now = self._loop.time()
        for queue, those in ((self._waiting, batch), (self._readers, readers)):
            for one in reversed(those):
                if one.until > now:
                    queue.appendleft(one)
                else:
                    _fail(one.answer, reason)
        node = self._thread.node
        if not self._resting and not (node.leader and node.term > term):  # a leader that was not asked yet
            self._resting = True
            self._loop.call_later(RETRY_S, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._waiting or self._readers:
            self._pump()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, in order, on the event loop; returns how to stop."""
        return self._listeners.add(listener)

    # --- ClusterLog --------------------------------------------------------------------------------------

    @property
    def status(self) -> LogStatus:
        """As of now; what others have of the log is as of a moment ago."""
        assert self._status is not None, "not open"
        node = self._thread.node
        return replace(
            self._status,
            term=node.term,
            commit_index=node.commit_index,
            applied_index=node.applied_index,
            last_index=max(self._status.last_index, node.applied_index),
        )

    def watch(self, watcher: Callable[[LogStatus], None]) -> Callable[[], None]:
        """Call `watcher` when role, leader, term, members, a connection or `problem` change."""
        token = object()
        self._watchers[token] = watcher

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    async def transfer(self, to: str) -> None:
        """Have `to` lead; returns when it does. MembershipRefused if it cannot be, NoLeader in time."""
        await self._change(lambda done: self._thread.node.transfer(to, done))

    async def add_member(self, name: str, address: str) -> None:
        """Take `name` in; returns when the change is committed. Only on the leader; one at a time."""
        await self._change(lambda done: self._thread.node.add_member(name, address, done))

    async def remove_member(self, name: str) -> None:
        """Let `name` go; returns when the change is committed. Only on the leader, of another than itself."""
        await self._change(lambda done: self._thread.node.remove_member(name, done))

    async def _change(self, act: Callable[[Callable[[FedKeeperError | None], None]], None]) -> None:
        if self._closed:
            raise KeeperStopped(f"the log of {self.name} is closed")
        answer: asyncio.Future[None] = self._loop.create_future()

        def finish(problem: FedKeeperError | None) -> None:
            if problem is not None:
                _fail(answer, problem)
            elif not answer.done():
                answer.set_result(None)

        self._thread.call(act, lambda problem: self._thread.post(finish, problem))
        await answer

    async def stopped(self) -> None:
        """Wait until this node cannot go on; then raise why."""
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Stop taking part; again is harmless."""
        if self._closed:
            return
        self._closed = True
        await self._thread.close()
        closed = KeeperStopped(f"the log of {self.name} is closed")
        for one in (*self._waiting, *self._readers):
            _fail(one.answer, closed)
        for number in list(self._in_flight):
            self._settle(number, OutcomeUnknown(f"the log of {self.name} was closed meanwhile"))
        self._waiting.clear()
        self._readers.clear()


def _fail(answer: asyncio.Future[Any], problem: FedKeeperError) -> None:
    """Each caller gets an exception of its own."""
    if not answer.done():
        answer.set_exception(type(problem)(str(problem), hint=problem.hint))


def _address(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None
