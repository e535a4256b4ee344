"""One keeper: what runs in its process beside the log and the API, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import KeeperRemoved, KeeperStarted, RunSpec
from fedkeeper.errors import (
    ClusterError,
    FedKeeperError,
    JournalUnconfirmed,
    KeeperStopped,
    StoreUnavailable,
)
from fedkeeper.keeper.belonging import Belonging
from fedkeeper.keeper.conducting import Conducting
from fedkeeper.keeper.measuring import Measuring
from fedkeeper.keeper.proposing import AGAIN_S, unfinished
from fedkeeper.replication.base import ClusterLog, LogStatus, Role
from fedkeeper.replication.codec import VERSION
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

REFUSED_S: Final = 5.0  # after an announcement that the cluster would not have
STORE_S: Final = 3.0  # for the store to answer when a run is submitted
REPORTS_S: Final = 5.0  # for the records of a run that has just ended
HANDOVER_S: Final = 2.0  # of leading and conducting, when this keeper is ended
SAID_AFTER_S: Final = 1.0  # changes of the leader are no pause
TELL_MAX: Final = 20  # times that a removal is told

Check = Callable[[RunSpec, Mapping[str, Any]], None]  # spec, fingerprint; raises what does not fit


class Keeper:
    """Runs from `run` until it is cancelled or cannot go on."""

    def __init__(
        self,
        *,
        name: str,
        log: ClusterLog,
        conducting: Conducting,
        measuring: Measuring,
        belonging: Belonging,
        clock: Clock,
        api_url: str,
        raft_address: str,
    ) -> None:
        """`api_url`: where others reach its API; `raft_address`: where its Raft port listens, host:port."""
        self.name = name
        self.api_url = api_url
        self.raft_address = raft_address
        self._log = log
        self._conducting = conducting
        self._measuring = measuring
        self._belonging = belonging
        self._clock = clock
        self._wake = asyncio.Event()
        self._announced = False
        self._running: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Why it does not work as it should, for people; empty: it does."""
        return self._log.status.problem or self._conducting.problem

    def busy(self) -> bool:
        """Whether a run is not finished."""
        return unfinished(self._log.state)

    def start(self) -> None:
        """Begin to work; returns at once."""
        self._running = asyncio.create_task(self._run(), name=f"keeper {self.name}")

    async def stopped(self) -> None:
        """Wait until it cannot go on, and raise why."""
        assert self._running is not None, "not started"
        await asyncio.shield(self._running)

    async def close(self) -> None:
        """Finish its reports, hand over what it does to others that are up, each in bounded time; and end."""
        if self._running is None:
            return
        if not self._running.done():
            with contextlib.suppress(TimeoutError):  # the next conductor completes them
                async with asyncio.timeout(REPORTS_S):
                    await self._conducting.reported()
            try:
                async with asyncio.timeout(HANDOVER_S):
                    await self._hand_over()
            except (FedKeeperError, TimeoutError) as exc:
                log.info("nobody took over in time", problem=str(exc))
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        stops = (
            self._log.watch(lambda _: self._wake.set()),
            self._log.listen(lambda _, __: self._wake.set()),
        )
        stopped = asyncio.ensure_future(self._log.stopped())
        work = asyncio.ensure_future(self._work())
        belongs = asyncio.ensure_future(self._belonging.run())
        tasks = (stopped, work, belongs)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for done in tasks:  # the log knows best why
                if done.done():
                    done.result()
        finally:
            for stop in stops:
                stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while not self._log.status.ready:  # or what an earlier life claimed would look like news
            self._wake.clear()
            if not self._log.status.ready:
                await self._wake.wait()
        log.info("keeper is ready", keeper=self.name, epoch=self._log.state.epoch)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._conducting.run())
                group.create_task(self._measuring.run())
                group.create_task(self._announce())
                group.create_task(self._tell_of_pauses())
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from None

    async def _announce(self) -> None:
        """Whenever the cluster does not know that this keeper is up, and where."""
        while True:
            self._wake.clear()
            if self._is_known():
                await self._wake.wait()
                continue
            command = KeeperStarted(
                keeper=self.name, api=self.api_url, version=VERSION, at_ms=self._clock.now_ms()
            )
            try:
                applied = await self._log.propose(command)
            except KeeperStopped:
                raise
            except (ClusterError, JournalUnconfirmed):
                await self._clock.sleep(AGAIN_S)
                continue
            self._announced = True
            if applied.rejected:
                log.warning("the cluster does not take this keeper's announcement", reason=applied.rejected)
                await self._clock.sleep(REFUSED_S)

    def _is_known(self) -> bool:
        if all(member.name != self.name for member in self._log.status.members):
            return True  # removed: there is nothing to announce
        known = self._log.state.keepers.get(self.name)
        return (
            self._announced
            and known is not None
            and (known.alive, known.api, known.version) == (True, self.api_url, VERSION)
        )

    async def _tell_of_pauses(self) -> None:
        """Once when the cluster cannot decide anything, and once when it can again."""
        said = ""
        while True:
            self._wake.clear()
            problem = self._log.status.problem
            if problem and not said:
                await self._clock.sleep(SAID_AFTER_S)
                problem = self._log.status.problem
                if problem:
                    log.warning("paused", problem=problem)
            elif said and not problem:
                log.warning("goes on")
            said = problem
            await self._wake.wait()

    async def _hand_over(self) -> None:
        status = self._log.status
        successor = _successor(status)
        if not successor:
            return
        await self._conducting.quiet()
        if status.role is Role.LEADER:
            await self._log.transfer(successor)  # which has itself, or whom placement chooses, conduct
        if self._conducting.conducts and self._log.state.conductor == self.name:
            await self._conducting.give_way(f"{self.name} was ended")


class KeeperControl:
    """What the API has its keeper do; see `keeper.api.control.Control`."""

    def __init__(
        self,
        *,
        log: ClusterLog,
        conducting: Conducting,
        store: UpdateStore,
        check: Check,
        config: Mapping[str, Any],
        clock: Clock,
    ) -> None:
        """`config`: redacted. `check`: whether this keeper's config has what a run needs."""
        self._log = log
        self._conducting = conducting
        self._store = store
        self._check = check
        self._config = dict(config)
        self._clock = clock

    async def submit(self, spec: RunSpec, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Refuse a run that this keeper's config does not fit, or whose store does not let us in.

        A store that is away is waited for once the run is there. What is shown of it is in the spec's book.
        """
        del config
        self._check(spec, fingerprint)
        try:
            async with asyncio.timeout(STORE_S):
                await self._store.ping()
        except (StoreUnavailable, TimeoutError) as exc:
            log.warning("the store does not answer yet", run=spec.run, problem=str(exc))

    async def forget(self, run: str) -> None:
        """The store first: a name that comes up again must find nothing there."""
        await self._store.drop(run)

    async def conduct(self, keeper: str | None) -> None:
        """By hand, or as placement has it."""
        await self._conducting.handover(keeper)

    async def transfer(self, to: str) -> None:
        """What is under way here ends first: the new leader, as a rule, conducts at once."""
        await self._conducting.quiet()
        try:
            await self._log.transfer(to)
        finally:
            self._conducting.resume()

    async def add_member(self, name: str, address: str) -> None:
        """It announces itself once it has caught up."""
        await self._log.add_member(name, address)

    async def remove_member(self, name: str) -> None:
        """And forget what is known of it."""
        await self._log.remove_member(name)
        for _ in range(TELL_MAX):
            with contextlib.suppress(ClusterError, JournalUnconfirmed):
                await self._log.propose(KeeperRemoved(keeper=name, at_ms=self._clock.now_ms()))
                return
            await self._clock.sleep(AGAIN_S)

    async def config(self) -> Mapping[str, Any]:
        """Without secrets."""
        return self._config


def _successor(status: LogStatus) -> str:
    """The connected member that is furthest on; empty: there is none."""
    others = [one for one in status.members if one.connected and one.name != status.name]
    return max(others, key=lambda one: (one.match_index or 0, one.name)).name if others else ""
