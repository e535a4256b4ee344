"""What the commands do with runs: begin one, follow it to its end, write its model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import structlog
from rich.console import RenderableType
from rich.text import Text

from fedkeeper import logs
from fedkeeper.cli.progress import new_failures, new_lines, outcome, view
from fedkeeper.cli.reached import Reached
from fedkeeper.cli.session import Cluster
from fedkeeper.cli.show import Screen, live_view, now_ms
from fedkeeper.config import Experiment
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Phase, Run
from fedkeeper.errors import FedKeeperError, Interrupted, RunError, RunFailed
from fedkeeper.keeper.api.schemas import RunSummary
from fedkeeper.report import round_row

log = structlog.get_logger()


async def start(at: Reached, *, fresh: bool, new: bool, detach: bool) -> None:
    """Submit a run, or find the unfinished one, and show it until its end.

    RunFailed if it failed; Interrupted after Ctrl-C: it can be resumed, or goes on without us.
    """
    if not at.cluster.embedded:
        at.interrupts.stopping = "leaving: the run goes on (Ctrl-C again: at once)"
    name, before = await at.cluster.begin(fresh=fresh, new=new)
    logs.to_folder(at.experiment.logs.folder / name, run=name)
    _say_start(at.screen, before, name)
    if detach:
        at.cluster.at_close(end=False)
        at.screen.line(f"it goes on without this command; to see it: {attach_command(at.experiment, name)}")
        return
    run = await _watch(at, name, before)
    if run.phase not in ENDED and await at.cluster.alone(name):
        at.cluster.at_close(end=True)
        at.screen.line(outcome(run))
        hint = "the state is kept: the same command resumes the run"
        raise Interrupted(f"run {name} is stopped in round {run.round}", hint=hint)
    await _conclude(at, run)


async def attach(at: Reached, *, run: str) -> None:
    """Show a run, the latest if empty, until its end; it goes on whatever happens here."""
    at.cluster.at_close(end=False)  # they end by themselves when nobody has used them for a while
    known = await at.cluster.runs()
    name = run or _latest(at.experiment, known)
    if not name:
        raise RunError("no run of this experiment was begun yet", hint="begin one with -s")
    if name not in {one.run for one in known}:
        hint = f"known: {', '.join(sorted(one.run for one in known)) or 'none'}"
        raise RunError(f"the keepers know no run {name!r}", hint=hint)
    before = await at.cluster.run(name)
    logs.to_folder(at.experiment.logs.folder / name, run=name)
    at.interrupts.stopping = "leaving: the run goes on (Ctrl-C again: at once)"
    if before.phase not in ENDED:
        accuracy = view(before, before.submitted_ms).accuracy
        reached = "" if accuracy is None else f", accuracy so far {accuracy:.4f}"
        at.screen.line(
            f"run {name} is in round {before.round}: {len(before.history)} round(s) are done{reached}"
        )
    await _conclude(at, await _watch(at, name, before))


async def export(at: Reached, *, run: str, output: Path | None) -> None:
    """Write the model of `run`, the latest if empty: the weights of its last committed round."""
    known = sorted(await at.cluster.runs(), key=lambda one: one.submitted_ms, reverse=True)
    names = [run] if run else [one.run for one in known if _is_of(at.experiment, one.run)]
    if run and run not in {one.run for one in known}:
        hint = f"known: {', '.join(one.run for one in known) or 'none'}"
        raise RunError(f"the keepers know no run {run!r}", hint=hint)
    for name in names:
        found = await at.cluster.run(name)
        if found.history:
            break
    else:
        what = f"run {run}" if run else "no run of this experiment"
        raise RunError(f"{what} has {'no' if run else 'a'} committed round yet", hint="begin one with -s")
    path = output or at.experiment.logs.folder / name / "model.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        await at.cluster.export_model(found, path)
    except OSError as exc:
        raise RunError(f"the model could not be written to {path}: {exc}") from exc
    at.screen.line(f"{name}: model after round {len(found.history)} written to {path}")


def attach_command(experiment: Experiment, run: str) -> str:
    """What to type to see a run."""
    return f"fedkeeper attach {run} -c {experiment.path}"


async def _watch(at: Reached, name: str, before: Run | None) -> Run:
    """Show what happens to the run until it has ended, or Ctrl-C."""
    shown = before
    for text in new_lines(None, before) if before is not None and not before.history else ():
        at.screen.line(text)

    def below() -> RenderableType:
        return live_view(view(shown, now_ms())) if shown is not None else Text("")

    async def follow() -> None:
        nonlocal shown
        async for after in at.cluster.follow(name, at.screen.line):
            for text in new_lines(shown, after):
                at.screen.line(text)
            if not at.cluster.embedded:  # or keepers write the same into the same file
                _log_news(shown, after)
            shown = after

    stop = asyncio.Event()
    at.interrupts.graceful = stop.set
    following, stopped = asyncio.ensure_future(follow()), asyncio.ensure_future(stop.wait())
    try:
        with at.screen.live(below):
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        at.interrupts.graceful = None
        for task in (following, stopped):
            task.cancel()
        await asyncio.wait({following, stopped})
    if not following.cancelled():
        following.result()
    if shown is None:
        raise Interrupted(f"run {name} was not seen yet", hint="the same command goes on where it was")
    return shown


async def _conclude(at: Reached, run: Run) -> None:
    """Summary, model and verdict of a run that has ended; or how to see it again."""
    name, folder = run.spec.run, at.experiment.logs.folder / run.spec.run
    if run.phase not in ENDED:
        at.cluster.at_close(end=False)
        raise Interrupted(
            f"run {name} goes on without this command, in round {run.round} of at most {run.spec.rounds_max}",
            hint=f"to see it again: {attach_command(at.experiment, name)}",
        )
    await at.cluster.reported(run)
    model, problem = await _export(at.cluster, run, folder)
    at.screen.summary(run, folder=folder, model=model)
    if not at.cluster.embedded:
        log.info("run ended", phase=str(run.phase), rounds=len(run.history), reason=run.reason)
    if run.phase is not Phase.FINISHED:
        kind = RunFailed if run.phase is Phase.FAILED else RunError
        raise kind(f"run {name} {outcome(run)}", hint=f"see {folder}/activations.csv and events.jsonl")
    if problem is not None:
        raise problem


async def _export(cluster: Cluster, run: Run, folder: Path) -> tuple[Path | None, FedKeeperError | None]:
    """Write the model beside the logs; what hinders that comes after the summary."""
    path = folder / "model.safetensors"
    if not run.history:
        return None, None
    try:
        await cluster.export_model(run, path)
    except (FedKeeperError, OSError) as exc:
        problem = f"the model could not be written to {path}: {exc}"
        hint = f"the run is over and its weights are in the store: fedkeeper export {run.spec.run}"
        return None, RunError(problem, hint=hint)
    return path, None


def _latest(experiment: Experiment, runs: Sequence[RunSummary]) -> str:
    """The latest run of this experiment that goes on, else the latest; empty if there is none."""
    mine = [one for one in runs if _is_of(experiment, one.run)]
    latest = max(mine, key=lambda one: (one.phase not in ENDED, one.submitted_ms), default=None)
    return latest.run if latest is not None else ""


def _is_of(experiment: Experiment, run: str) -> bool:
    return run.rpartition("-")[0] == experiment.name


def _log_news(before: Run | None, after: Run) -> None:
    """Rounds and failures as events, here where the command runs; keepers write theirs where they run."""
    for attempt in new_failures(before, after):
        log.warning(
            "attempt failed",
            key=attempt.key,
            cluster=attempt.cluster,
            activation_id=attempt.activation_id,
            status=str(attempt.status),
            reason=attempt.reason,
        )
    for record in after.history[len(before.history) if before else 0 :]:
        log.info("round finished", **asdict(round_row(record)))


def _say_start(screen: Screen, before: Run | None, run_name: str) -> None:
    if before is None:
        screen.line(f"run {run_name} starts")
        return
    accuracy = view(before, before.submitted_ms).accuracy
    reached = "" if accuracy is None else f", accuracy so far {accuracy:.4f}"
    done = f"{len(before.history)} round(s) are done{reached}"
    screen.line(f"run {run_name} resumes in round {before.round}: {done}")
