"""Which run a start is about: the unfinished one of that name, or the next."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import State
from fedkeeper.errors import RunChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start has to do."""

    run: str
    resumed: bool
    abandon: tuple[str, ...] = ()  # unfinished runs to stop first
    forget: tuple[str, ...] = ()  # ended runs whose objects and state are no longer kept


KEPT_RUNS = 10  # ended runs of a name that stay in the log and the store; their logs/ stay for good


def plan_start(state: State, name: str, digest: str, *, fresh: bool, taken: Iterable[str]) -> Start:
    """Resume the unfinished run of `name` if it is the same experiment; else begin `name-<n>`.

    Args:
        state: what the log knows.
        name: the experiment's name.
        digest: of its config.
        fresh: abandon an unfinished run instead of resuming it.
        taken: run names that the log may have forgotten, e.g. folders under logs/.

    Raises:
        RunChanged: the unfinished run has another config, and `fresh` is not set.
    """
    mine = re.compile(rf"{re.escape(name)}-(\d+)")
    unfinished = tuple(
        run for run in state.runs.values() if run.phase not in ENDED and mine.fullmatch(run.spec.run)
    )
    if unfinished and not fresh:
        latest = max(unfinished, key=lambda run: run.submitted_ms)
        if latest.spec.digest == digest:
            return Start(run=latest.spec.run, resumed=True)
        raise RunChanged(
            f"run {latest.spec.run} is unfinished (round {latest.round}) and was started with another config",
            hint="put the config back to resume it, or abandon it and start anew with --fresh",
        )
    ended = sorted(
        (run for run in state.runs.values() if run.phase in ENDED and mine.fullmatch(run.spec.run)),
        key=lambda run: run.submitted_ms,
    )
    numbers = [int(found[1]) for one in (*state.runs, *taken) if (found := mine.fullmatch(one))]
    return Start(
        run=f"{name}-{max(numbers, default=0) + 1}",
        resumed=False,
        abandon=tuple(run.spec.run for run in unfinished),
        forget=tuple(run.spec.run for run in ended[:-KEPT_RUNS]),
    )
