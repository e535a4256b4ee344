"""The replicated log as handlers use it: on the leader or by redirection, and bounded in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from fedkeeper.clock import Clock
from fedkeeper.core.model import Applied, Command, KeeperRemoved, KeeperStarted, State
from fedkeeper.errors import NoLeader, OutcomeUnknown
from fedkeeper.keeper.api.answers import Redirect
from fedkeeper.keeper.api.call import Call
from fedkeeper.replication.base import ClusterLog, LogStatus, Role

WINDOW_S: Final = 10


class Recent:
    """How often something happened in the last WINDOW_S seconds, to the second."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts = [0] * WINDOW_S
        self._second = int(monotonic())

    def add(self) -> None:
        """It happens."""
        self._turn()
        self._counts[self._second % WINDOW_S] += 1

    def total(self) -> int:
        """Of this second and those before it."""
        self._turn()
        return sum(self._counts)

    def _turn(self) -> None:
        second = int(self._monotonic())
        if second == self._second:
            return
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._counts[passed % WINDOW_S] = 0
        self._second = second


class Cluster:
    """One keeper's view of it. Open it with `async with`."""

    def __init__(
        self, log: ClusterLog, clock: Clock, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.log = log
        self.clock = clock
        self.reads = Recent(monotonic)
        self.writes = Recent(monotonic)
        self.appends = Recent(monotonic)
        self._leads = False
        self._leader = ""
        self._changed: asyncio.Future[None] | None = None  # somebody waits for a leader
        self._barrier: asyncio.Task[State] | None = None  # under way: too late to join
        self._next_barrier: asyncio.Task[State] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        self._stack.callback(self.log.watch(self._watch))
        self._stack.callback(self.log.listen(self._heard))
        self._watch(self.log.status)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
        for task in (self._barrier, self._next_barrier):
            if task is not None:
                task.cancel()
        self._wake()

    async def lead(self, call: Call) -> None:
        """Return if this keeper leads; otherwise send the caller to the one that does, once there is one.

        Raises Redirect; NoLeader if there is none in time.
        """
        if self._leads:
            return
        try:
            async with asyncio.timeout_at(call.deadline):
                while not self._leads:
                    known = self.log.state.keepers.get(self._leader)
                    if known is not None and known.api and known.name != self.log.status.name:
                        raise Redirect(known.api.rstrip("/") + call.raw_path)
                    if self._changed is None:
                        self._changed = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._changed)
        except TimeoutError as exc:
            problem = self.log.status.problem or "no keeper leads"
            raise NoLeader(problem, hint="a majority of the keepers must be up") from exc

    async def propose(self, command: Command, call: Call) -> Applied:
        """As the log does it, until the call's time is up. Raises OutcomeUnknown then."""
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self.log.propose(command)
        except TimeoutError as exc:
            raise OutcomeUnknown(
                f"{type(command).__name__} was proposed and not confirmed in time",
                hint="send it again with the same `request`: it happens once",
            ) from exc

    async def read(self, call: Call) -> State:
        """The state for a linearizable read, on the leader; calls that come together share one barrier.

        Raises Redirect, NoLeader.
        """
        await self.lead(call)
        if self._next_barrier is None:
            self._next_barrier = asyncio.create_task(self._after(self._barrier))
            self._next_barrier.add_done_callback(_seen)
        try:
            async with asyncio.timeout_at(call.deadline):
                return await asyncio.shield(self._next_barrier)
        except TimeoutError as exc:
            raise NoLeader("no majority confirmed the read in time") from exc

    async def _after(self, earlier: asyncio.Task[State] | None) -> State:
        if earlier is not None:
            await asyncio.wait([earlier])
        else:
            await asyncio.sleep(0)  # whoever is ready in this turn of the loop comes along
        # From here on this one is under way: calls that come now may be too late for it.
        self._barrier, self._next_barrier = self._next_barrier, None
        try:
            return await self.log.barrier()
        finally:
            if self._barrier is asyncio.current_task():
                self._barrier = None

    def _watch(self, status: LogStatus) -> None:
        self._leads, self._leader = status.role is Role.LEADER, status.leader
        self._wake()

    def _heard(self, command: Command, _: Applied) -> None:
        self.appends.add()
        if isinstance(command, KeeperStarted | KeeperRemoved):
            self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None


def _seen(task: asyncio.Task[State]) -> None:
    """Its callers may all have gone: then nobody asks for its error."""
    if not task.cancelled():
        task.exception()
