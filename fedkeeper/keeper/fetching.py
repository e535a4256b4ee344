"""Fetching a cluster's records of activations that have ended: of a few one by one, of many from its list."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import Attempt, Run
from fedkeeper.errors import EpochOver, ProviderError
from fedkeeper.providers.base import Activation, Provider

log = structlog.get_logger(__name__)

FEW = 8  # are asked for one by one, at once
TOGETHER_MAX = 500  # are asked for together: their logs are in memory until they are written
GATHER_S = 5.0  # in which many come together: a list has what is not wanted as well
TRIES_MAX = 4  # a platform writes its record a moment after the function has returned
TRY_AGAIN_S = 0.5
CLOCK_SKEW_MS = 60_000  # how far a platform's clock may be from ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An attempt that has ended, and whose record is to be written."""

    run: Run
    attempt: Attempt
    written: asyncio.Future[None] = field(compare=False)  # also if there is none; cancelled: not wanted
    tries: int = 0


Found = Sequence[tuple[Wanted, Activation | None]]


class Fetcher:
    """One cluster's, for one epoch."""

    def __init__(self, provider: Provider, clock: Clock, hand_on: Callable[[Found], Awaitable[None]]) -> None:
        """`hand_on` writes; what it is told is done with, whatever becomes of it."""
        self._provider = provider
        self._clock = clock
        self._hand_on = hand_on
        self._waiting: list[Wanted] = []  # bounded by the attempts of two rounds
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()

    def add(self, wanted: Wanted) -> None:
        """Fetch it when its turn comes."""
        self._waiting.append(wanted)
        self._some.set()

    def hurry(self) -> None:
        """Somebody waits for what is there: do not gather more."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._some.wait()
            if len(self._waiting) > FEW and not any(one.tries for one in self._waiting):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GATHER_S):
                        await self._hurry.wait()
            self._hurry.clear()
            self._some.clear()
            todo, self._waiting = self._waiting, []
            todo.sort(key=lambda one: one.attempt.sent_ms)  # what began together is close in the list
            missing: list[Wanted] = []
            for first in range(0, len(todo), TOGETHER_MAX):
                missing += await self._fetch(todo[first : first + TOGETHER_MAX])
            if missing:
                await self._clock.sleep(TRY_AGAIN_S)
                for one in missing:
                    self.add(one)

    async def _fetch(self, todo: Sequence[Wanted]) -> list[Wanted]:
        """Hand on what can be had, or never will; the others."""
        todo = [one for one in todo if not one.written.done()]  # or the run was forgotten
        named = {one.attempt.activation_id: one.attempt for one in todo if one.attempt.activation_id}
        found, again = await self._ask(named)
        done, missing = [], []
        for one in todo:
            activation = found.get(one.attempt.activation_id)
            if activation is None and again and one.attempt.activation_id and one.tries + 1 < TRIES_MAX:
                missing.append(replace(one, tries=one.tries + 1))
            else:
                done.append((one, activation))
        try:
            await self._hand_on(done)
        except EpochOver:
            missing = []
        for one in todo if not missing else [one for one, _ in done]:
            if not one.written.done():
                one.written.set_result(None)
        return missing

    async def _ask(self, named: Mapping[str, Attempt]) -> tuple[Mapping[str, Activation], bool]:
        """The records that are there, and whether it is worth asking for the others again."""
        try:
            if len(named) > FEW:
                since_ms = min(attempt.sent_ms for attempt in named.values()) - CLOCK_SKEW_MS
                return await self._provider.activations(named.keys(), since_ms=since_ms), True
            found = await asyncio.gather(*map(self._provider.activation, named))
        except ProviderError as exc:
            keys = [attempt.key for attempt in named.values()]
            log.warning("no activation records", keys=keys[:FEW], count=len(keys), problem=str(exc))
            return {}, False
        return {one.activation_id: one for one in found if one is not None}, True
