"""The log of a cluster as the keeper uses it: a Raft node on a thread of its own.

The node has its own event loop, so that nothing that the keeper does delays a heartbeat. What goes over to
it, and what comes back, goes in batches: one wake-up of the other thread for as much as there is.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import FedKeeperError, JournalError, KeeperStopped, MembershipRefused, NoLeader
from fedkeeper.replication import codec
from fedkeeper.replication.base import Listener, LogStatus
from fedkeeper.replication.listeners import Listeners
from fedkeeper.replication.raft.base import Network, Resolve
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.node import TIMINGS, Apply, RaftNode, Result
from fedkeeper.replication.raft.storage import Storage

BATCH_COMMANDS: Final = 256
BATCH_BYTES: Final = 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # goes alone; a run of 100 000 clients is submitted in less
BATCHES_IN_FLIGHT: Final = 3
FRESHEN_S: Final = 0.25  # how old the figures in `status` that do not matter to anybody's decisions may be
log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Proposal:
    line: bytes
    answer: asyncio.Future[Applied]


class RaftLog:
    """A `ClusterLog`; made by `open`, used from one event loop."""

    def __init__(self, name: str, *, timeout_s: float, waiting_max: int) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._listeners = Listeners()
        self._watchers: dict[object, Callable[[LogStatus], None]] = {}
        self._state = State()
        self._status: LogStatus | None = None
        self._changed = asyncio.Event()  # set, and replaced, at each change of the status
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._slots = asyncio.Semaphore(waiting_max)
        self._waiting: deque[_Proposal] = deque()  # no longer than there are slots
        self._readers: list[asyncio.Future[State]] = []  # of the next barrier
        self._in_flight = 0
        self._pumping = False
        self._closed = False
        # Between the threads.
        self._news: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._posted = False
        self._node: RaftNode
        self._network: Network
        self._node_loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

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
            timing: fast, steady or patient; see `node.TIMINGS`.
            fsync: False only where losing commands with the machine's power does not matter.
            snapshot_every: entries between two snapshots.
            timeout_s: a proposal, a read or a change of the members ends after this long.
            waiting_max: proposals that wait at a time; further ones wait for their turn.
            apply: the state machine.

        Raises:
            JournalDamaged, JournalFull, JournalError: the folder cannot be used; PortTaken, ConfigError.
        """
        log_ = cls(name, timeout_s=timeout_s, waiting_max=waiting_max)

        def make(loop: asyncio.AbstractEventLoop) -> RaftNode:
            storage = Storage(folder, disk=FolderDisk(), fsync=fsync, owner=name)
            try:
                node: RaftNode
                net = network(lambda peer: resolve(peer) or _address(node.address_of(peer)))
                node = RaftNode(
                    name,
                    members,
                    storage=storage,
                    network=net,
                    clock=time.monotonic,
                    chance=random.SystemRandom(),
                    timing=TIMINGS[timing],
                    apply=apply,
                    on_applied=lambda _index, _entry, results: log_._post(
                        log_._on_applied, node.state, results
                    ),
                    on_installed=lambda: log_._post(log_._on_installed, node.state),
                    on_change=lambda: log_._post(log_._on_change, node.status(), node.failure),
                    snapshot_every=snapshot_every,
                    propose_timeout_s=timeout_s,
                )
                log_._network = net
                node.open()
            except BaseException:
                storage.close()
                raise
            return node

        try:
            await log_._start(make)
            yield log_
        finally:
            await log_.close()

    # --- the other thread ------------------------------------------------------------------------------

    async def _start(self, make: Callable[[asyncio.AbstractEventLoop], RaftNode]) -> None:
        ready: asyncio.Future[RaftNode] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._live, args=(make, ready), name=f"raft {self.name}", daemon=True
        )
        self._thread.start()
        self._node = await ready
        self._state = self._node.state
        self._status = self._node.status()

    def _live(
        self, make: Callable[[asyncio.AbstractEventLoop], RaftNode], ready: asyncio.Future[RaftNode]
    ) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._node_main(make, ready))

    async def _node_main(
        self, make: Callable[[asyncio.AbstractEventLoop], RaftNode], ready: asyncio.Future[RaftNode]
    ) -> None:
        loop = self._node_loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        try:
            node = make(loop)
        except Exception as exc:  # noqa: BLE001 - it is raised where the log is opened
            self._loop.call_soon_threadsafe(ready.set_exception, exc)
            return
        self._loop.call_soon_threadsafe(ready.set_result, node)
        fresh = 0.0

        def tick() -> None:
            nonlocal fresh
            node.tick()
            now = time.monotonic()
            if now - fresh > FRESHEN_S:
                fresh = now
                self._post(self._on_fresh, node.status())
            self._timer = loop.call_later(node.timing.tick_s, tick)

        tick()
        await self._ending.wait()
        self._timer.cancel()
        await self._network.close()
        node.stop(KeeperStopped(f"{self.name} is closed"), quietly=True)
        node.storage.close()

    def _post(self, act: Callable[..., None], *arguments: Any) -> None:
        """Have the keeper's loop do something; called on the node's thread."""
        self._news.append((act, arguments))
        if not self._posted:
            self._posted = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the keeper's loop has ended
                self._news.clear()

    def _drain(self) -> None:
        self._posted = False
        while self._news:
            act, arguments = self._news.popleft()
            act(*arguments)

    def _on_node(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Have the node's thread do something."""
        self._node_loop.call_soon_threadsafe(act, *arguments)

    # --- what the node tells ---------------------------------------------------------------------------

    def _on_applied(self, state: State, results: Sequence[tuple[Command, Applied]]) -> None:
        self._state = state
        for command, applied in results:
            self._listeners.tell(command, applied)

    def _on_installed(self, state: State) -> None:
        self._state = state

    def _on_fresh(self, status: LogStatus) -> None:
        self._status = status

    def _on_change(self, status: LogStatus, failure: FedKeeperError | None) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
        if failure is not None and not self._failed.done() and not self._closed:
            self._failed.set_exception(failure)
            self._failed.exception()  # whoever does not wait for it need not hear of it
        for token, watcher in list(self._watchers.items()):
            if token in self._watchers:
                try:
                    watcher(status)
                except Exception:
                    log.exception("watcher failed", watcher=repr(watcher))

    # --- Log -------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state after the last command applied here."""
        return self._state

    async def propose(self, command: Command) -> Applied:
        """Append, make durable on a majority, apply here.

        Raises NoLeader or KeeperStopped if it certainly did not happen, OutcomeUnknown if it may have,
        JournalError if it cannot be written as a line.
        """
        line = codec.encode(command)
        if len(line) > LINE_BYTES_MAX:
            raise JournalError(f"{type(command).__name__} is longer than {LINE_BYTES_MAX} bytes")

        async def once() -> Applied:
            answer: asyncio.Future[Applied] = self._loop.create_future()
            self._waiting.append(_Proposal(line, answer))
            self._pump()
            return await answer

        if self._slots.locked():
            async with self._slots:
                return await self._patiently(once)
        await self._slots.acquire()
        try:
            return await self._patiently(once)
        finally:
            self._slots.release()

    async def barrier(self) -> State:
        """The state with everything in it that was acknowledged before the call: a linearizable read."""

        async def once() -> State:
            answer: asyncio.Future[State] = self._loop.create_future()
            self._readers.append(answer)
            self._pump()
            return await answer

        return await self._patiently(once)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        """Try again for as long as there is no leader: nothing was proposed then."""
        until = self._loop.time() + self._timeout_s
        while True:
            if self._closed:
                raise KeeperStopped(f"the log of {self.name} is closed")
            changed = self._changed
            try:
                return await once()
            except NoLeader:
                left = until - self._loop.time()
                if left <= 0:
                    raise
                # A change of the status may mean a leader; it may also have come a moment too early.
                try:
                    await asyncio.wait_for(changed.wait(), min(left, 0.02))
                except TimeoutError:
                    continue

    def _pump(self) -> None:
        if not self._pumping and self._in_flight < BATCHES_IN_FLIGHT:
            self._pumping = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """What has gathered in this turn of the loop, as one entry of the log."""
        self._pumping = False
        if self._readers:
            readers, self._readers = self._readers, []
            self._in_flight += 1
            self._on_node(self._node.barrier, lambda result: self._post(self._read, readers, result))
        batch: list[_Proposal] = []
        size = 0
        while self._waiting and len(batch) < BATCH_COMMANDS:
            proposal = self._waiting[0]
            if proposal.answer.done():  # its caller has gone
                self._waiting.popleft()
                continue
            if batch and size + len(proposal.line) > BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
            size += len(proposal.line)
        if batch:
            self._in_flight += 1
            lines = [proposal.line for proposal in batch]
            self._on_node(self._node.propose, lines, lambda result: self._post(self._settle, batch, result))
        if self._waiting or self._readers:
            self._pump()

    def _settle(self, batch: Sequence[_Proposal], result: Result) -> None:
        self._in_flight -= 1
        if isinstance(result, list):
            for proposal, applied in zip(batch, result, strict=True):
                if not proposal.answer.done():
                    proposal.answer.set_result(applied)
        else:
            for proposal in batch:
                _fail(proposal.answer, result)
        if self._waiting or self._readers:
            self._pump()

    def _read(self, readers: Sequence[asyncio.Future[State]], result: Result) -> None:
        self._in_flight -= 1
        for reader in readers:
            if reader.done():
                continue
            if isinstance(result, State):
                reader.set_result(self._state)
            else:
                _fail(reader, result)
        if self._waiting or self._readers:
            self._pump()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, in order, on the event loop; returns how to stop."""
        return self._listeners.add(listener)

    # --- ClusterLog ------------------------------------------------------------------------------------

    @property
    def status(self) -> LogStatus:
        """As of now."""
        assert self._status is not None, "not open"
        node = self._node
        return replace(
            self._status,
            commit_index=node.commit_index,
            applied_index=node.applied_index,
            term=node.term,
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
        if to not in {one.name for one in self.status.members}:
            known = ", ".join(one.name for one in self.status.members)
            raise MembershipRefused(f"{to} is no keeper of this cluster", hint=f"its keepers: {known}")
        until = self._loop.time() + self._timeout_s
        while self.status.leader != to:
            if self._loop.time() > until:
                raise NoLeader(
                    f"{to} does not lead after {self._timeout_s:g} s", hint="is it up? fedkeeper status"
                )
            self._on_node(self._node.hand_over, to)
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), 0.1)
            except TimeoutError:
                continue

    async def add_member(self, name: str, address: str) -> None:
        """Take `name` in; returns when the change is committed. Only on the leader; one at a time."""
        await self._change(self._node.add_member, name, address)

    async def remove_member(self, name: str) -> None:
        """Let `name` go; returns when the change is committed. Only on the leader, of another than itself."""
        await self._change(self._node.remove_member, name)

    async def _change(self, act: Callable[..., None], *arguments: str) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()

        def done(problem: FedKeeperError | None) -> None:
            self._post(_finish, answer, problem)

        self._on_node(act, *arguments, done)
        await answer

    async def stopped(self) -> None:
        """Wait until this node cannot go on; then raise why."""
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Stop taking part; again is harmless."""
        if self._closed:
            return
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if thread.is_alive() and hasattr(self, "_ending"):
            self._on_node(self._ending.set)
        await self._loop.run_in_executor(None, thread.join, self._timeout_s)
        self._drain()
        closed = KeeperStopped(f"the log of {self.name} is closed")
        for proposal in self._waiting:
            _fail(proposal.answer, closed)
        for reader in self._readers:
            _fail(reader, closed)


def _fail(answer: asyncio.Future[Any], problem: Any) -> None:
    if not answer.done():
        error = problem if isinstance(problem, FedKeeperError) else KeeperStopped(f"no result: {problem!r}")
        answer.set_exception(type(error)(str(error), hint=error.hint))


def _finish(answer: asyncio.Future[None], problem: FedKeeperError | None) -> None:
    if answer.done():
        return
    if problem is None:
        answer.set_result(None)
    else:
        answer.set_exception(problem)


def _address(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None
