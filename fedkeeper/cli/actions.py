"""What the commands do, given an opened session. Nothing here knows click."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from rich.console import RenderableType
from rich.text import Text

from fedkeeper import deployment
from fedkeeper.cli.interrupts import Interrupts
from fedkeeper.cli.progress import new_failures, new_lines, outcome, view
from fedkeeper.cli.session import Session
from fedkeeper.cli.show import Screen, live_view, now_ms
from fedkeeper.config import Experiment, Learning, Limits
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Applied, Command, Phase, Run
from fedkeeper.deployment import Line, LineState, Target, failures
from fedkeeper.errors import FedKeeperError, Interrupted, RunError, RunFailed
from fedkeeper.providers.base import Provider
from fedkeeper.report import round_row, write_json

ASK_AGAIN_S = 0.1
NAMED_MAX = 5  # functions named in an error; all have their line above it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An experiment and its opened sessions, one per scenario, with the functions that are meant in each."""

    experiment: Experiment
    parts: Sequence[tuple[Session, Sequence[Target]]]

    @property
    def total(self) -> int:
        """How many functions."""
        return sum(len(targets) for _, targets in self.parts)

    @property
    def in_flight_max(self) -> int:
        """How many functions may be worked on at one time."""
        found = [one.limits for one in self.experiment.scenarios.values() if isinstance(one, Learning)]
        return (found[0] if found else Limits()).deployments_in_flight_max


async def deploy(opened: Opened, screen: Screen, *, hidden: Collection[LineState] = ()) -> None:
    """Deploy the functions; FedKeeperError names what failed, after all were tried.

    `hidden`: states that are only counted, without a line for each function.
    """
    lines: list[Line] = []
    with screen.deploying("deploying", opened.total, hidden=hidden) as progress:
        for session, targets in opened.parts:
            lines += await session.deploy(progress, targets)
    _conclude(screen, lines, "deployed")


async def remove(opened: Opened, screen: Screen) -> None:
    """Remove the functions; FedKeeperError names what failed, after all were tried."""
    lines: list[Line] = []
    with screen.deploying("removing", opened.total) as progress:
        for session, targets in opened.parts:
            lines += await deployment.remove(
                targets, session.providers, in_flight_max=opened.in_flight_max, progress=progress
            )
    _conclude(screen, lines, "removed")


async def describe(opened: Opened, screen: Screen, *, save: Path | None) -> None:
    """Print what is deployed, a line each; `save`: as JSON with the platforms' own metadata as well."""
    lines: list[Line] = []
    plain: list[dict[str, Any]] = []
    for session, targets in opened.parts:
        found = await deployment.describe(targets, session.providers, in_flight_max=opened.in_flight_max)
        lines += found
        plain += [_metadata(session, line) for line in found if line.deployed is not None]
    for line in lines:
        screen.found(line)
    if save is not None:
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        value = {"experiment": opened.experiment.name, "saved": saved, "functions": plain}
        if not write_json(save, value):
            raise FedKeeperError(f"{save}: not written", hint="is there space, and the right to write?")
        screen.line(f"saved {len(plain)} function(s) to {save}")
    _raise_failures(screen, lines)


async def invoke(opened: Opened, screen: Screen, *, timeout_s: float) -> None:
    """Invoke the functions, all at once, and print their answers; FedKeeperError if one fails."""
    pairs = [(session.providers[one.cluster], one) for session, targets in opened.parts for one in targets]
    answers = await asyncio.gather(*(_answer(provider, one, timeout_s) for provider, one in pairs))
    for (_, target), answer in zip(pairs, answers, strict=True):
        said = answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)
        screen.line(f"{target.cluster}/{target.function}: {said}")
    if failed := sum(isinstance(answer, str) for answer in answers):
        raise FedKeeperError(f"{failed} of {len(pairs)} function(s) gave no answer")


async def _answer(provider: Provider, target: Target, timeout_s: float) -> Mapping[str, Any] | str:
    """A function's result, or in words why there is none."""
    try:
        async with asyncio.timeout(timeout_s):
            key = f"invoke/{target.function}/{uuid.uuid4().hex}"
            activation_id = await provider.invoke(target.function, {}, key=key, timeout_s=timeout_s)
            while (activation := await provider.activation(activation_id)) is None:  # noqa: ASYNC110 - remote
                await asyncio.sleep(ASK_AGAIN_S)
    except TimeoutError:
        return f"no answer in {timeout_s:g} s"
    except FedKeeperError as exc:
        return str(exc)
    return activation.result if activation.ok else f"{activation.status}: {activation.reason}"


async def start(opened: Opened, screen: Screen, interrupts: Interrupts, *, fresh: bool) -> None:
    """Deploy what is missing, then start or resume the run and show it until its end.

    RunFailed if it failed; Interrupted after Ctrl-C, when the state is on disk and the run can be resumed.
    """
    await deploy(opened, screen, hidden={LineState.UNCHANGED})
    ((session, _),) = opened.parts
    known = session.state.runs
    run_name = await session.start(fresh=fresh)
    folder = opened.experiment.logs.folder / run_name
    _say_start(screen, known.get(run_name), run_name)
    interrupts.graceful = session.request_stop
    run = await _watch(session, screen, run_name)
    interrupts.graceful = None
    if run.phase not in ENDED:
        screen.line(outcome(run))
        hint = "the state is kept: the same command resumes the run"
        raise Interrupted(f"run {run_name} is stopped in round {run.round}", hint=hint)
    model, problem = await _export(session, run, folder)
    screen.summary(run, folder=folder, model=model)
    log.info("run ended", phase=str(run.phase), rounds=len(run.history), reason=run.reason)
    if run.phase is not Phase.FINISHED:
        kind = RunFailed if run.phase is Phase.FAILED else RunError
        raise kind(f"run {run_name} {outcome(run)}", hint=f"see {folder}/activations.csv and events.jsonl")
    if problem is not None:
        raise problem


async def export(opened: Opened, screen: Screen, *, run: str, output: Path | None) -> None:
    """Write the model of `run`, the latest if empty: the weights of its last committed round."""
    ((session, _),) = opened.parts
    with_weights = {name: one for name, one in session.state.runs.items() if one.history}
    if not with_weights:
        raise RunError("no run of this experiment has a committed round yet", hint="begin one with -s")
    name = run or max(with_weights, key=lambda one: with_weights[one].submitted_ms)
    if name not in with_weights:
        raise RunError(f"run {name!r} has no model here", hint=f"those that have: {', '.join(with_weights)}")
    path = output or opened.experiment.logs.folder / name / "model.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        await session.export_model(name, path)
    except OSError as exc:
        raise RunError(f"the model could not be written to {path}: {exc}") from exc
    screen.line(f"{name}: model after round {len(with_weights[name].history)} written to {path}")


async def _watch(session: Session, screen: Screen, run_name: str) -> Run:
    """Show what happens to the run until it has ended, or was told to stop."""
    shown: Run | None = session.state.runs.get(run_name)
    for text in new_lines(None, shown) if shown is not None and not shown.history else ():
        screen.line(text)

    def on_applied(_: Command, applied: Applied) -> None:
        nonlocal shown
        after = applied.state.runs.get(run_name)
        if after is None or after is shown:
            return
        for text in new_lines(shown, after):
            screen.line(text)
        _log_news(shown, after)
        shown = after

    def below() -> RenderableType:
        return live_view(view(shown, now_ms())) if shown is not None else Text("")

    stop = session.listen(on_applied)
    try:
        with screen.live(below):
            return await session.finished(run_name)
    finally:
        stop()


def _log_news(before: Run | None, after: Run) -> None:
    """Rounds and failures as events."""
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
    elif before.phase in ENDED:
        screen.line(f"run {run_name} has ended already: {outcome(before)}")
    else:
        accuracy = view(before, before.submitted_ms).accuracy
        reached = "" if accuracy is None else f", accuracy so far {accuracy:.4f}"
        done = f"{len(before.history)} round(s) are done{reached}"
        screen.line(f"run {run_name} resumes in round {before.round}: {done}")


async def _export(session: Session, run: Run, folder: Path) -> tuple[Path | None, FedKeeperError | None]:
    """Write the model beside the logs; what hinders that comes after the summary."""
    path = folder / "model.safetensors"
    if not run.history:
        return None, None
    try:
        await session.export_model(run.spec.run, path)
    except (FedKeeperError, OSError) as exc:
        problem = f"the model could not be written to {path}: {exc}"
        hint = f"the run is over and its weights are in the store: fedkeeper export {run.spec.run}"
        return None, RunError(problem, hint=hint)
    return path, None


def _conclude(screen: Screen, lines: Sequence[Line], verb: str) -> None:
    count = {state: sum(line.state is state for line in lines) for state in LineState}
    said = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    screen.line(f"{len(lines)} function(s): {said}" if lines else f"nothing to be {verb}")
    _raise_failures(screen, lines)


def _raise_failures(screen: Screen, lines: Sequence[Line]) -> None:
    failed = failures(lines)
    if not failed:
        return
    screen.hints(failed)
    names = [f"{line.cluster}/{line.function}" for line in failed[:NAMED_MAX]]
    more = f" and {len(failed) - NAMED_MAX} more" if len(failed) > NAMED_MAX else ""
    raise FedKeeperError(
        f"{len(failed)} of {len(lines)} function(s) failed: {', '.join(names)}{more}",
        hint="what went well stands; the same command tries the others again",
    )


def _metadata(session: Session, line: Line) -> dict[str, Any]:
    """What the platform says of a function, as JSON."""
    found = line.deployed
    assert found is not None
    return {
        "cluster": line.cluster,
        "platform": session.providers[line.cluster].platform,
        "function": line.function,
        "state": found.state,
        "version": found.version,
        "digest": found.digest,
        "url": found.url,
        "updated": datetime.fromtimestamp(found.updated_ms / 1000, tz=UTC).isoformat(),
        "message": found.message,
        "details": dict(found.details),
    }
