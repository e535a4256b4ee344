"""Which run a start is about: the unfinished one of that name, or the next."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from fedkeeper.core.machine import ENDED
from fedkeeper.errors import RunChanged


class Known(Protocol):
    """What must be known of a run; `keeper.api.schemas.RunSummary` has it."""

    @property
    def run(self) -> str:
        """Its name."""
        ...

    @property
    def digest(self) -> str:
        """Of its config."""
        ...

    @property
    def phase(self) -> str:
        """Where it stands."""
        ...

    @property
    def round(self) -> int:
        """Its round."""
        ...

    @property
    def submitted_ms(self) -> int:
        """When it was begun."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start has to do."""

    run: str
    resumed: bool
    abandon: tuple[str, ...] = ()  # unfinished runs to stop first
    forget: tuple[str, ...] = ()  # ended runs whose objects and state are no longer kept


KEPT_RUNS = 10  # ended runs of a name that stay in the log and the store; their logs/ stay for good


def plan_start(
    runs: Collection[Known], name: str, digest: str, *, fresh: bool, new: bool = False, taken: Iterable[str]
) -> Start:
    """Resume the unfinished run of `name` if it is the same experiment; else begin `name-<n>`.

    Args:
        runs: what the keepers know.
        name: the experiment's name.
        digest: of its config.
        fresh: abandon an unfinished run instead of resuming it.
        new: leave an unfinished run alone, and begin another one beside it.
        taken: run names that the keepers may have forgotten, e.g. folders under logs/.

    Raises:
        RunChanged: the unfinished run has another config, and neither `fresh` nor `new` is set.
    """
    mine = re.compile(rf"{re.escape(name)}-(\d+)")
    ours = sorted((run for run in runs if mine.fullmatch(run.run)), key=lambda run: run.submitted_ms)
    unfinished = [run for run in ours if run.phase not in ENDED]
    if unfinished and not (fresh or new):
        latest = unfinished[-1]
        if latest.digest == digest:
            return Start(run=latest.run, resumed=True)
        raise RunChanged(
            f"run {latest.run} is unfinished (round {latest.round}) and was started with another config",
            hint="put the config back to resume it, or abandon it and start anew with --fresh;"
            " --new starts another one beside it",
        )
    ended = [run.run for run in ours if run.phase in ENDED]
    names = (*(run.run for run in runs), *taken)
    numbers = [int(found[1]) for one in names if (found := mine.fullmatch(one))]
    return Start(
        run=f"{name}-{max(numbers, default=0) + 1}",
        resumed=False,
        abandon=tuple(run.run for run in unfinished) if fresh else (),
        forget=tuple(ended[:-KEPT_RUNS]),
    )
