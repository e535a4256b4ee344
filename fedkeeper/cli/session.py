"""What the commands need of the rest of FedKeeper; `fedkeeper.wiring` fits it, and so do the tests' fakes."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fedkeeper.config import Experiment, load
from fedkeeper.core.model import Run
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.keeper.api.schemas import RunSummary, Status
from fedkeeper.keeper.client import Json, Versioned
from fedkeeper.providers.base import Provider


class Session(Protocol):
    """The platforms of one experiment, opened. Raises FedKeeperErrors only."""

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The clusters that were asked for, by name."""
        ...

    def targets(self) -> tuple[Target, ...]:
        """Where `main.py` deploys: each client under its name, server functions on the server's cluster."""
        ...

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        """Build and deploy `targets`, those of `targets()` if None. "client_3" is made from fl_client."""
        ...


class Runs(Protocol):
    """What is done with runs. Raises FedKeeperErrors only."""

    async def begin(self, *, fresh: bool, new: bool) -> tuple[str, Run | None]:
        """Submit the next run of this experiment, or find the unfinished one: its name, and it as it stands.

        `fresh`: abandon unfinished ones first; `new`: another one beside them. RunChanged if the unfinished
        one has another config. None: it was submitted just now.
        """
        ...

    async def runs(self) -> Sequence[RunSummary]:
        """All runs that the keepers know, in a line each."""
        ...

    async def run(self, name: str) -> Run:
        """One of them, whole. NotThere if there is none of that name."""
        ...

    def follow(self, run: str, notice: Callable[[str], None]) -> AsyncIterator[Run]:
        """The run, as it stands and after each change, to its end; `notice` hears why nothing comes."""
        ...

    async def reported(self, run: Run) -> None:
        """Wait, within limits, until embedded keepers have written everything about a run that has ended."""
        ...

    async def stop_run(self, run: str, reason: str) -> Run:
        """End it before its end; one that has ended stays as it is."""
        ...

    async def forget_run(self, run: str) -> None:
        """Drop a run that has ended, and its objects in the store."""
        ...

    async def export_model(self, run: Run, path: Path) -> None:
        """Write the weights of the last committed round to `path` (safetensors)."""
        ...


class Dictionary(Protocol):
    """The users' replicated dictionary."""

    async def get(self, name: str, *, stale: bool) -> Versioned:
        """Its value and version. NotThere if there is none. `stale`: as the next keeper has it."""
        ...

    async def put(self, name: str, value: Json, *, expected: int | None) -> int:
        """Set it; the version of the write. Rejected if it has another version than `expected` (0: none)."""
        ...

    async def delete(self, name: str, *, expected: int | None) -> None:
        """Take it away. NotThere if it is not there."""
        ...

    async def entries(self, prefix: str, *, stale: bool) -> Mapping[str, Versioned]:
        """All entries whose name begins so."""
        ...


class Cluster(Runs, Dictionary, Protocol):
    """The keepers of one experiment, as seen from outside."""

    @property
    def embedded(self) -> bool:
        """Whether they run on this machine, for as long as they are used."""
        ...

    async def views(self) -> tuple[Mapping[str, Status], Mapping[str, str]]:
        """Every keeper's own view by its name, and of the others why there is none. Asks for no majority."""
        ...

    async def alone(self, run: str) -> bool:
        """Whether they are embedded, and neither another command nor another run needs them."""
        ...

    def at_close(self, *, end: bool) -> None:
        """Whether embedded keepers are ended when this is closed (by the last command that uses them).

        If it is not said: if no run needs them, or if we started them and began no run.
        """
        ...

    def how_to_start(self) -> str:
        """What to type to have keepers."""
        ...

    async def handover(self, keeper: str) -> None:
        """Make it the conductor until it is lost; empty: let the placement choose again."""
        ...

    async def add_keeper(self, name: str, address: str) -> None:
        """Take a member in, at host:port of its Raft port; returns when that is committed."""
        ...

    async def remove_keeper(self, name: str) -> None:
        """Let a member go; returns when that is committed."""
        ...


class Open(Protocol):
    """Opens a session; closing it gives back connections and embedded services."""

    def __call__(
        self, experiment: Experiment, *, scenario: str, clusters: Collection[str] | None
    ) -> AbstractAsyncContextManager[Session]:
        """`clusters`: None for all."""
        ...


Reach = Literal["start", "join", "look"]
"""Embedded keepers are only asked (`look`), or started where they do not run: with this config (`start`), or
with `join` those that run may have another one."""


class Connect(Protocol):
    """Reaches the keepers; closing it gives back connections and leases on embedded keepers."""

    def __call__(self, experiment: Experiment, *, reach: Reach) -> AbstractAsyncContextManager[Cluster]:
        """Does not fail where none runs: calls do."""
        ...


class Host(Protocol):
    """Is a keeper."""

    async def __call__(
        self,
        experiment: Experiment,
        name: str,
        *,
        until_unused: bool,
        stop: asyncio.Event,
    ) -> None:
        """Run it here until what `stop` was given is called, or SIGTERM, or (`until_unused`) nobody uses it.

        Raises what it stopped for by itself, or why it was not started.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where the commands get everything from; given as click's `obj` by tests."""

    load: Callable[[Path], Experiment]
    open: Open
    connect: Connect
    host: Host


def real_backend() -> Backend:
    """The product's own. Each part is imported when a command calls it: a keeper, say, needs no client."""
    return Backend(
        load=load,
        open=_later("session:open_experiment"),
        connect=_later("cluster:open_cluster"),
        host=_later("hosting:host_keeper"),
    )


def _later(place: str) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        return pkgutil.resolve_name(f"fedkeeper.wiring.{place}")(*args, **options)

    return call


if TYPE_CHECKING:
    from fedkeeper.wiring.cluster import open_cluster
    from fedkeeper.wiring.hosting import host_keeper
    from fedkeeper.wiring.session import open_experiment

    # Checked by mypy, imported only when a command runs.
    _opens: Open = open_experiment
    _connects: Connect = open_cluster
    _hosts: Host = host_keeper
