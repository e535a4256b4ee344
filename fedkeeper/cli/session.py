"""What the commands need of the rest of FedKeeper; `fedkeeper.wiring` fits it, and so do the tests' fakes."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedkeeper.config import Experiment, load
from fedkeeper.core.model import Run, State
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.providers.base import Provider
from fedkeeper.replication.base import Listener


class Session(Protocol):
    """One experiment, opened: its platforms, its store, its log. Raises FedKeeperErrors only."""

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The clusters that were asked for, by name."""
        ...

    @property
    def state(self) -> State:
        """The replicated state; an immutable value, so any thread may read it."""
        ...

    def targets(self) -> tuple[Target, ...]:
        """Where `main.py` deploys: each client under its name, server functions on the server's cluster."""
        ...

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        """Build and deploy `targets`, those of `targets()` if None. "client_3" is made from fl_client."""
        ...

    async def start(self, *, fresh: bool) -> str:
        """Resume the unfinished run of this experiment, or begin the next; return its name.

        `fresh`: abandon an unfinished one first. RunChanged if that has another config. From here on its
        events and reports are written to logs/<run>.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command applied, on the event loop; returns how to stop."""
        ...

    async def finished(self, run: str) -> Run:
        """The run at its end, or as it stands after `request_stop`."""
        ...

    def request_stop(self) -> None:
        """Let `finished` return soon, with everything that was decided on disk."""
        ...

    async def export_model(self, run: str, path: Path) -> None:
        """Write the weights of the last committed round to `path` (safetensors)."""
        ...


class Open(Protocol):
    """Opens a session; closing it gives back connections and embedded services."""

    def __call__(
        self,
        experiment: Experiment,
        *,
        scenario: str,
        clusters: Collection[str] | None,
        learn: bool,
    ) -> AbstractAsyncContextManager[Session]:
        """`clusters`: None for all; `learn`: with log and engine, as `start` needs them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where the commands get an experiment and a session from; given as click's `obj` by tests."""

    load: Callable[[Path], Experiment]
    open: Open


def real_backend() -> Backend:
    """The product's own. Imported only now: `--help` must not wait for the platforms' libraries."""
    return Backend(load=load, open=pkgutil.resolve_name("fedkeeper.wiring:open_experiment"))


if TYPE_CHECKING:
    from fedkeeper.wiring import open_experiment

    _fits: Open = open_experiment  # checked by mypy, imported only when a command runs
