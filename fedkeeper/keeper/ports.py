"""What the engine needs beyond log, store and platforms; `fedkeeper.wiring` fits it, and so do tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedkeeper.core.model import Attempt, Run, RunSpec
from fedkeeper.providers.base import Activation

Before = Callable[[], Awaitable[None]]  # awaited right before each effect; raises if it must not happen


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What became of a run's functions."""

    urls: Mapping[str, str]  # where clients on the invoker route are invoked, by client
    summary: str  # "13 created"


class Deployer(Protocol):
    """Brings functions to their platforms. Idempotent: what is there already, as wanted, is left alone."""

    async def deploy(self, spec: RunSpec, before: Before) -> Deployment:
        """All functions of a run. FedKeeperError: which one failed, and why; the others were tried."""
        ...

    async def redeploy(self, spec: RunSpec, cluster: str, function: str, before: Before) -> None:
        """One function that has vanished from its platform. FedKeeperError as above."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An ended attempt, and the platform's record of its activation (None: it keeps none)."""

    attempt: Attempt
    cluster: str
    platform: str
    function: str
    activation: Activation | None


class Reports(Protocol):
    """What is written of runs for people, by the keeper that conducts. Never raises for the disk's sake."""

    def take_over(self) -> None:
        """This keeper conducts from here on: believe the files, which others may have written meanwhile."""
        ...

    def lacks(self, attempt: Attempt) -> bool:
        """Whether an ended attempt, or its platform's record, is not written yet as it is."""
        ...

    async def begin(self, run: Run) -> None:
        """The first of a run in this keeper's epoch: complete what an earlier one left unwritten."""
        ...

    async def changed(self, run: Run) -> None:
        """A round was committed."""
        ...

    def record(self, records: Sequence[Record]) -> None:
        """Attempts have ended; the same again is harmless."""
        ...

    async def ended(self, run: Run) -> None:
        """The run is over, and all its records are in."""
        ...
