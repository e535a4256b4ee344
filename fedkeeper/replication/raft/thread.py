"""A Raft node on a thread and a loop of its own: nothing that the keeper does delays its heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final

import structlog

from fedkeeper.errors import JournalError, KeeperStopped
from fedkeeper.replication.raft.base import Network
from fedkeeper.replication.raft.compaction import Background
from fedkeeper.replication.raft.library import NEVER
from fedkeeper.replication.raft.node import RaftNode

# Makes the node on its thread, where it stays; not open yet. Closes what it has opened if it raises.
Build = Callable[[Background], tuple[RaftNode, Network]]
CLOSE_S: Final = 10.0
LATER_S: Final = 0.005
# How long a busy keeper's loop keeps the interpreter once the node wants it back, which is after each system
# call of a turn: Python's own 5 ms make a leader with much to do miss its heartbeats.
SWITCH_S: Final = 0.0005

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class NodeThread:
    """Both ways one wake-up of the other thread carries as much as there is."""

    def __init__(self, name: str) -> None:
        """On the keeper's running loop."""
        self.name = name
        self.node: RaftNode
        self._home = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop
        self._network: Network
        self._thread: threading.Thread | None = None
        self._ending: asyncio.Event
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf  # by the loop's time, which is the node's clock
        self._closing: asyncio.Task[None] | None = None
        self._news: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._posted = False  # the keeper's loop will look at the news
        self._wakes = False  # it has to be woken for them, at the end of the turn
        self._later: asyncio.TimerHandle | None = None  # when it is at the latest
        self._each_tick: Callable[[], None]

    async def start(self, build: Build, each_tick: Callable[[], None]) -> None:
        """Run the node. Raises what `build`, or opening the network, raises."""
        self._each_tick = each_tick
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        ready: asyncio.Future[None] = self._home.create_future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(build, ready)), name=f"raft {self.name}", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.shield(ready)
        except asyncio.CancelledError:
            await asyncio.wait([ready])
            await self.close()
            raise

    def call(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Have the node's thread do something; nothing once it is closed."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(act, *arguments)

    def post(self, act: Callable[..., None], *arguments: Any) -> None:
        """From the node's thread: have the keeper's loop do something, in the order in which it is asked.

        It is woken when the node's turn is over: both threads are of one interpreter, and get in each
        other's way.
        """
        self._news.append((act, arguments))
        self._wakes = True

    def post_later(self, act: Callable[..., None], *arguments: Any) -> None:
        """As `post`, for what nobody waits for: within LATER_S, or with what is posted before."""
        self._news.append((act, arguments))
        if self._later is None:
            self._later = self._loop.call_later(LATER_S, self._wake_home)

    def drain(self) -> None:
        """On the keeper's loop: do what was posted."""
        self._posted = False
        while self._news:
            act, arguments = self._news.popleft()
            act(*arguments)

    async def close(self) -> None:
        """Stop the node, close its network and files; again is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if hasattr(self, "_ending"):
            self.call(self._ending.set)
        await self._home.run_in_executor(None, thread.join, CLOSE_S)
        if thread.is_alive():
            log.error("the node's thread does not end", keeper=self.name)
        self.drain()

    # --- on the node's thread ----------------------------------------------------------------------------

    async def _main(self, build: Build, ready: asyncio.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        try:
            self.node, self._network = build(self._in_background)
            self.node.after_turn = self._after_turn
            try:
                self.node.open()
            except BaseException:
                self.node.storage.close()
                raise
        except Exception as exc:  # noqa: BLE001 - it is raised where the log is opened
            self._home.call_soon_threadsafe(ready.set_exception, exc)
            return
        self._loop.set_exception_handler(self._fault)
        self._home.call_soon_threadsafe(ready.set_result, None)
        self._wake_at(self._loop.time())
        try:
            await self._ending.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._network.close()
            self.node.stop(KeeperStopped(f"the log of {self.name} is closed"), quietly=True)
            with contextlib.suppress(JournalError):  # it has been told, if it is news
                self.node.storage.close()

    def _tick(self) -> None:
        self._timer_at = inf
        self.node.tick()
        self._each_tick()
        self._after_turn()

    def _after_turn(self) -> None:
        """Sleep until the next thing is due: an idle keeper costs what its heartbeats do."""
        node = self.node
        if self._wakes:
            self._wake_home()
        if self._ending.is_set():
            return
        if node.failure is None:
            due = node.next_tick_at()
            if due == NEVER:  # whenever time passes
                due = self._loop.time() + node.timing.tick_s
            if due < self._timer_at:  # one that is due later is looked at when the timer is up
                self._wake_at(due)
        elif self._closing is None:
            # Whoever is connected to a keeper that takes part no longer should know at once.
            self._closing = self._loop.create_task(self._network.close())

    def _wake_home(self) -> None:
        self._wakes = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._posted:
            self._posted = True
            try:
                self._home.call_soon_threadsafe(self.drain)
            except RuntimeError:  # the keeper's loop has ended, and nobody listens
                self._news.clear()

    def _wake_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        self._timer = self._loop.call_at(moment, self._tick)

    def _fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that nobody caught: this node does not go on as if nothing had happened."""
        error = context.get("exception")
        log.error("fault in the node's thread", keeper=self.name, problem=context["message"], exc_info=error)
        problem = f"a fault of FedKeeper: {context['message']}: {error!r}"
        self.node.stop(KeeperStopped(problem, hint="start this keeper again, and please report it"))

    def _in_background(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def ended(future: asyncio.Future[None]) -> None:
            if not future.cancelled():
                done(future.exception())

        self._loop.run_in_executor(None, work).add_done_callback(ended)
