"""What a run looks like to people: numbers and lines made of the core's values. No clock, no terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Attempt, AttemptStatus, Kind, Phase, RoundRecord, Run
from fedkeeper.report import function_of, round_row

FAILURES: Final = (AttemptStatus.FAILED, AttemptStatus.SILENT)
UNDER_WAY: Final = (AttemptStatus.SENDING, AttemptStatus.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run at one moment. Counts are of this round's clients; `failed` counts attempts."""

    phase: Phase
    round: int
    rounds_max: int
    chosen: int
    done: int
    running: int
    waiting: int  # for their next attempt
    failed: int
    gave_up: int
    accuracy: float | None  # of the last committed round
    loss: float | None
    best: float | None
    target: float | None
    elapsed_s: float  # since the run was submitted
    left_s: float | None  # at most, by the mean of the rounds so far; None before the first is committed

    @property
    def fraction(self) -> float:
        """0..1, of the rounds at most; a round in training counts by its clients."""
        if self.phase is Phase.FINISHED:
            return 1.0
        part = self.done / self.chosen if self.chosen else 0.0
        return min(1.0, (max(0, self.round - 1) + 0.95 * part) / self.rounds_max) if self.rounds_max else 0.0


def view(run: Run, now_ms: int) -> View:
    """The run at `now_ms` (Unix ms)."""
    clients = [one for one in run.outbox.values() if one.kind is Kind.TRAIN and one.round == run.round]
    last = run.history[-1] if run.history else None
    return View(
        phase=run.phase,
        round=run.round,
        rounds_max=run.spec.rounds_max,
        chosen=len(run.chosen),
        done=len(run.updates),
        running=sum(one.status in UNDER_WAY for one in clients),
        waiting=sum(one.status is AttemptStatus.PENDING for one in clients),
        failed=sum(one.status in FAILURES and one.round == run.round for one in run.ended),
        gave_up=len(run.gave_up),
        accuracy=last.accuracy if last else None,
        loss=last.loss if last else None,
        best=best_accuracy(run),
        target=run.spec.target_accuracy,
        elapsed_s=max(0, (run.ended_ms or now_ms) - run.submitted_ms) / 1000,
        left_s=_left_s(run, now_ms),
    )


def best_accuracy(run: Run) -> float | None:
    """The best test accuracy of all committed rounds."""
    return max((record.accuracy for record in run.history if record.accuracy is not None), default=None)


def new_lines(before: Run | None, after: Run) -> list[str]:
    """What has happened between two states of a run, a line each, oldest first."""
    lines = [_failure_line(attempt) for attempt in new_failures(before, after)]
    if after.deployed and (before is None or not before.deployed):
        lines.insert(0, deployed_line(after.deployed))
    known = len(before.history) if before else 0
    lines += [round_line(record, after.spec.rounds_max) for record in after.history[known:]]
    lines += [
        f"round {after.round}: {client} gave up: {reason}"
        for client, reason in after.gave_up.items()
        if before is None or before.round != after.round or client not in before.gave_up
    ]
    begun = before is None or before.phase is Phase.DEPLOYING
    if begun and after.phase is Phase.INITIALISING:
        lines.append("initialising: first weights, and every client's share of the data")
    started = after.phase is Phase.TRAINING and (before is None or before.round != after.round)
    if started:
        lines.append(f"round {after.round}/{after.spec.rounds_max} started: {len(after.chosen)} clients")
    aggregating = after.phase is Phase.AGGREGATING and (before is None or before.phase is Phase.TRAINING)
    if aggregating:
        lines.append(f"round {after.round}: aggregating {len(after.updates)} updates")
    return lines


def deployed_line(summary: str) -> str:
    """`13 function(s): 12 unchanged, 1 created`, of what was done with how many."""
    total = sum(int(count) for count in re.findall(r"\d+", summary))
    return f"{total} function(s): {summary}"


def round_line(record: RoundRecord, rounds_max: int) -> str:
    """A committed round in one line."""
    parts = [
        f"round {record.round}/{rounds_max} done: accuracy {number(record.accuracy)}",
        f"loss {number(record.loss)}",
        f"{len(record.updates)}/{len(record.clients)} updates",
        f"{record.failures} failed",
        f"{span(max(0, record.aggregated_ms - record.started_ms) / 1000)}",
    ]
    return ", ".join(parts)


def number(value: float | None, digits: int = 4) -> str:
    """A metric, or - where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def span(seconds: float | None) -> str:
    """A time for people: 9.5 s, 3 min 05 s, 2 h 07 min; - for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds per part of the rounds: in all, and the mean of a round."""

    name: str
    total_s: float
    mean_s: float


def parts(run: Run) -> tuple[Parts, ...]:
    """Where the time of the committed rounds went.

    `aggregate` and `evaluate` are the aggregator's own measurements; `other` is what lies between them and
    the keeper's clock: invoking the aggregator, reading and writing weights, committing.
    """
    rows = [round_row(record) for record in run.history]
    invoke, train = sum(row.invoke_s for row in rows), sum(row.train_s for row in rows)
    aggregate, evaluate = sum(row.aggregate_s for row in rows), sum(row.evaluate_s for row in rows)
    total = sum(row.total_s for row in rows)
    other = max(0.0, total - invoke - train - aggregate - evaluate)
    rounds = max(1, len(rows))
    named = [("invoke", invoke), ("train", train), ("aggregate", aggregate), ("evaluate", evaluate)]
    named += [("other", other), ("whole round", total)]
    return tuple(Parts(name=name, total_s=seconds, mean_s=seconds / rounds) for name, seconds in named)


def outcome(run: Run) -> str:
    """How the run stands, in one line."""
    best, target = best_accuracy(run), run.spec.target_accuracy
    match run.phase:
        case Phase.FINISHED if target is not None and best is not None and best >= target:
            return f"finished: the target accuracy {number(target)} is reached"
        case Phase.FINISHED if target is not None:
            return f"finished: all {run.spec.rounds_max} rounds, target accuracy {number(target)} not reached"
        case Phase.FINISHED:
            return f"finished: all {run.spec.rounds_max} rounds"
        case Phase.FAILED | Phase.STOPPED:
            return f"{run.phase}: {run.reason}"
        case _:
            return f"unfinished: {run.phase}, round {run.round} of at most {run.spec.rounds_max}"


def new_failures(before: Run | None, after: Run) -> list[Attempt]:
    """Attempts that failed since: an update refused by the aggregator has changed from ok to failed."""
    known = {(one.key, one.status) for one in before.ended} if before else set()
    return [one for one in after.ended if one.status in FAILURES and (one.key, one.status) not in known]


def _failure_line(attempt: Attempt) -> str:
    what = "silent" if attempt.status is AttemptStatus.SILENT else "failed"
    return f"{_who(attempt)}: {what}: {_short(attempt.reason)}"


def _who(attempt: Attempt) -> str:
    where = f"round {attempt.round}: " if attempt.round else ""
    return f"{where}{function_of(attempt)} on {attempt.cluster}, attempt {attempt.number + 1}"


def _short(reason: str, chars_max: int = 240) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= chars_max else f"{line[: chars_max - 3]}..."


def _left_s(run: Run, now_ms: int) -> float | None:
    if run.phase in ENDED:
        return 0.0
    if not run.history:
        return None
    spans = [max(0, one.aggregated_ms - one.started_ms) for one in run.history]
    mean_ms = sum(spans) / len(spans)
    open_rounds = run.spec.rounds_max - len(run.history)
    in_this_ms = max(0, now_ms - run.round_started_ms)
    return max(0.0, mean_ms * open_rounds - min(in_this_ms, mean_ms)) / 1000
