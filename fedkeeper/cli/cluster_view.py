"""`fedkeeper status`: what the keepers say, each of itself and of the others, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from rich.table import Table

from fedkeeper.cli.progress import number, span
from fedkeeper.cli.tables import table
from fedkeeper.keeper.api.schemas import KeeperStatus, RunSummary, Status

ENDED: Final = ("finished", "failed", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What every keeper answered, or why it did not; both by its name."""

    answers: Mapping[str, Status]
    silent: Mapping[str, str]

    @property
    def best(self) -> Status | None:
        """Who knows most: the leader of the newest term, else who has applied most. None: nobody answered."""
        return max(
            self.answers.values(),
            key=lambda one: (one.role == "leader", one.term, one.applied_index),
            default=None,
        )

    @property
    def leader(self) -> str:
        """The leader; empty where there is no majority, so that nothing can be decided now."""
        return self.best.leader if self.best is not None else ""


def headline(overview: Overview, experiment: str) -> list[tuple[str, bool]]:
    """Lines above the tables; True: it is a problem."""
    best = overview.best
    if best is None:
        return [(f"{experiment}: no keeper answers", True)]
    lines: list[tuple[str, bool]] = []
    if best.leader:
        lines.append(
            (f"{experiment}: {best.leader} leads, term {best.term}, commit index {best.commit_index}", False)
        )
    else:
        missing = _missing(overview, best)
        lines.append((f"{experiment}: no majority, so nothing is decided: {missing} away", True))
        lines.append(
            (f"as {best.name} knew it last: term {best.term}, commit index {best.commit_index}", False)
        )
    if best.conductor:
        by_hand = ", by hand" if best.pinned and "hand" not in best.conductor_why else ""
        why = f": {best.conductor_why}" if best.conductor_why else ""
        lines.append((f"{best.conductor} conducts, epoch {best.epoch}{why}{by_hand}", False))
    else:
        lines.append(("nobody conducts yet", False))
    if best.problem and best.leader:
        lines.append((f"{best.name}: {best.problem}", True))
    return lines


def keepers_table(overview: Overview) -> Table:
    """A line per keeper: those that are members, and those of the config that do not answer."""
    shown = table("keepers")
    shown.add_column("keeper", no_wrap=True)
    shown.add_column("is", no_wrap=True)
    shown.add_column("behind", justify="right", no_wrap=True)
    shown.add_column("version", justify="right", no_wrap=True)
    shown.add_column("milliseconds to")
    shown.add_column("note")
    best = overview.best
    known = {one.name: one for one in best.keepers} if best is not None else {}
    for name in sorted(known.keys() | overview.silent.keys()):
        one, said = known.get(name), overview.answers.get(name)
        conducts = best is not None and best.conductor == name
        shown.add_row(
            name,
            _role(name, overview) + (", conducts" if conducts else ""),
            _lag(one, said, best),
            str(one.version or "-") if one is not None else "-",
            latencies(one),
            _note(name, one, said, overview),
        )
    return shown


def runs_table(overview: Overview) -> Table | None:
    """A line per run, the latest first; None if there is none."""
    best = overview.best
    if best is None or not best.runs:
        return None
    shown = table("runs")
    for column in ("run", "is", "round", "updates", "outstanding", "accuracy", "took"):
        shown.add_column(column, justify="left" if column in ("run", "is") else "right")
    for one in sorted(best.runs, key=lambda run: run.submitted_ms, reverse=True):
        shown.add_row(*_run_row(one, best.now_ms))
    return shown


def latencies(keeper: KeeperStatus | None) -> str:
    """`k2 1.2, k3 0.9, ow_here 14.0`: to the other keepers, then to the clusters."""
    if keeper is None or not keeper.latencies:
        return "-"
    ordered = sorted(keeper.latencies.items(), key=lambda one: (not one[0].startswith("keeper/"), one[0]))
    return ", ".join(f"{name.partition('/')[2]} {ms:.1f}" for name, ms in ordered)


def as_json(overview: Overview, experiment: str) -> dict[str, Any]:
    """For programs: the best answer, all of them, and who is silent."""
    plain: dict[str, Any] = msgspec.to_builtins(
        {
            "experiment": experiment,
            "leader": overview.leader,
            "majority": bool(overview.leader),
            "status": overview.best,
            "answers": dict(overview.answers),
            "silent": dict(overview.silent),
        }
    )
    return plain


def _missing(overview: Overview, best: Status) -> str:
    away = [name for name in best.members if name not in overview.answers]
    return f"{' and '.join(away)} {'is' if len(away) == 1 else 'are'}" if away else "the others are"


def _role(name: str, overview: Overview) -> str:
    if name in overview.answers:
        said = overview.answers[name]
        return said.role if said.name in said.members else "no member"
    return "silent"


def _lag(one: KeeperStatus | None, said: Status | None, best: Status | None) -> str:
    """Commands that it does not have yet; by its own word where the leader does not answer."""
    if one is not None and one.lag is not None:
        return str(one.lag)
    if said is not None and best is not None:
        return str(max(0, best.commit_index - said.applied_index))
    return "-"


def _note(name: str, one: KeeperStatus | None, said: Status | None, overview: Overview) -> str:
    if name in overview.silent:
        return overview.silent[name]
    if said is not None and said.problem:
        return said.problem
    if one is not None and not one.alive and one.reason:
        return f"counts as lost: {one.reason}"
    if one is not None and one.reason:
        return one.reason
    return ""


def _run_row(run: RunSummary, now_ms: int) -> tuple[str, ...]:
    over = run.phase in ENDED
    phase = f"{run.phase}: {run.reason}" if over and run.reason else run.phase
    return (
        run.run,
        phase,
        f"{run.round}/{run.rounds_max}",
        "" if over else f"{run.updates}/{run.clients}",
        "" if over else str(run.outstanding),
        number(run.accuracy),
        span(max(0, (run.ended_ms or now_ms) - run.submitted_ms) / 1000),
    )
