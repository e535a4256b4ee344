"""The machine: state + command -> state + intents. Pure and total.

Time is data: a command's `at_ms` is its proposer's clock. The state's clock is the running maximum of those
commands that are about runs and the conductor; what keepers say of themselves, and users, moves nothing.
Chance is data: see `selection`. Nothing here raises: an exception would stop the log of every replica
at the same entry, so what does not fit is rejected as a value, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from fedkeeper.core import conducting, kv, rounds
from fedkeeper.core.model import (
    Applied,
    Attempt,
    ClaimConductor,
    Command,
    DeleteValue,
    ForgetRun,
    FunctionsDeployed,
    Intent,
    InvocationFailed,
    InvocationSent,
    KeeperLost,
    KeeperMeasured,
    KeeperRemoved,
    KeeperStarted,
    Kind,
    Phase,
    PutValue,
    RoundAggregated,
    RoundCommitted,
    Run,
    ShardStored,
    State,
    StopRun,
    SubmitRun,
    Tick,
    UpdatesFolded,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.core.outbox import Step
from fedkeeper.core.stopping import faults

ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED)

_Keyed = (
    FunctionsDeployed
    | InvocationSent
    | InvocationFailed
    | WeightsInitialised
    | UpdateStored
    | UpdatesFolded
    | ShardStored
    | RoundAggregated
    | UpdatesRefused
)
_FENCED = _Keyed | Tick  # what only the conductor may say


def apply(state: State, command: Command) -> Applied:
    """Return the state after `command`, what the conductor must now do, or why it changed nothing."""
    match command:
        case PutValue() | DeleteValue():
            return kv.write(state, command)
        case KeeperStarted():
            return conducting.started(state, command)
        case KeeperMeasured():
            return conducting.measured(state, command)
        case KeeperLost():
            return conducting.lost(state, command)
        case KeeperRemoved():
            return conducting.removed(state, command)
        case _:
            return _timed(state, command)


def _timed(
    state: State, command: ClaimConductor | SubmitRun | StopRun | ForgetRun | _Keyed | Tick
) -> Applied:
    """What moves the state's clock: the leader's and the conductor's word on runs, nobody else's."""
    if isinstance(command, _FENCED) and (problem := _fence(state, command)):
        return Applied(state=state, rejected=problem)
    state = replace(state, now_ms=max(state.now_ms, command.at_ms))
    match command:
        case ClaimConductor():
            return conducting.claim(state, command)
        case SubmitRun():
            return _submit(state, command)
        case StopRun():
            return _stop(state, command)
        case ForgetRun():
            return _forget(state, command)
        case Tick():
            return _tick(state)
        case (
            FunctionsDeployed()
            | InvocationSent()
            | InvocationFailed()
            | WeightsInitialised()
            | UpdateStored()
            | UpdatesFolded()
            | ShardStored()
            | RoundAggregated()
            | UpdatesRefused()
        ):
            return _answer(state, command)
        case _:  # pragma: no cover - mypy proves that no command lacks a case
            assert_never(command)


def next_due_ms(state: State) -> int | None:
    """When a Tick would next change something; None if nothing waits for time."""
    due = [at for run in state.runs.values() if run.phase not in ENDED for at in rounds.due_times(run)]
    return min(due, default=None)


def _submit(state: State, command: SubmitRun) -> Applied:
    spec = command.spec
    known = state.runs.get(spec.run)
    if known is not None:
        same = "the same" if known.spec.digest == spec.digest else "another"
        return Applied(state=state, rejected=f"run {spec.run!r} is there already, with {same} config")
    if problem := faults(spec):
        return Applied(state=state, rejected=problem)
    run, intents = rounds.begin(spec, state.now_ms)
    return _with(state, run, intents)


def _stop(state: State, command: StopRun) -> Applied:
    run = state.runs.get(command.run)
    if run is None or run.phase in ENDED:
        return Applied(state=state, rejected=f"run {command.run!r} is not running")
    run, intents = rounds.end(run, Phase.STOPPED, command.reason, state.now_ms)
    return _with(state, run, intents)


def _forget(state: State, command: ForgetRun) -> Applied:
    run = state.runs.get(command.run)
    if run is None or run.phase not in ENDED:
        return Applied(state=state, rejected=f"run {command.run!r} has not ended")
    return Applied(state=replace(state, runs={k: v for k, v in state.runs.items() if k != command.run}))


def _tick(state: State) -> Applied:
    intents: tuple[Intent, ...] = ()
    runs = dict(state.runs)
    for name, run in state.runs.items():
        if run.phase not in ENDED:
            runs[name], more = rounds.tick(run, state.now_ms)
            intents += more
    return Applied(state=replace(state, runs=runs), intents=intents)


def _fence(state: State, command: _FENCED) -> str:
    """Why the conductor has no say any more, nor its clock: Raft itself would let a deposed one through."""
    if command.epoch == state.epoch:
        return ""
    return f"made under epoch {command.epoch}, now is {state.epoch}"


_FITS: Mapping[type, tuple[Kind, ...]] = {  # others: any kind
    FunctionsDeployed: (Kind.DEPLOY,),
    InvocationSent: (Kind.INIT, Kind.TRAIN, Kind.AGGREGATE, Kind.SHARD, Kind.FOLD),
    WeightsInitialised: (Kind.INIT,),
    UpdateStored: (Kind.TRAIN,),
    RoundAggregated: (Kind.AGGREGATE,),
    ShardStored: (Kind.SHARD,),
    UpdatesFolded: (Kind.FOLD,),
    UpdatesRefused: (Kind.AGGREGATE, Kind.SHARD, Kind.FOLD),
}


def _answer(state: State, command: _Keyed) -> Applied:
    """An answer counts once: its key must be in the outbox of its run."""
    run = state.runs.get(command.key.partition("/")[0])
    attempt = _outstanding(run, command.key) if run is not None else None
    if run is None or attempt is None:
        return Applied(state=state, rejected=f"{command.key} is not outstanding")
    if problem := _problem(run, attempt, command):
        return Applied(state=state, rejected=problem)
    return _with(state, *_answered(run, attempt, command, state.now_ms))


def _problem(run: Run, attempt: Attempt, command: _Keyed) -> str:
    """Why it is no answer to this attempt."""
    if attempt.kind not in _FITS.get(type(command), Kind):
        return f"{command.key} is for {attempt.kind}, not a {type(command).__name__}"
    if isinstance(command, UpdatesFolded | ShardStored | RoundAggregated):
        problem = rounds.misfit(run, attempt, command)
        return f"{command.key}: {problem}" if problem else ""
    return ""


def _answered(run: Run, attempt: Attempt, command: _Keyed, now_ms: int) -> Step:
    match command:
        case FunctionsDeployed():
            return rounds.deployed(run, attempt, command, now_ms)
        case InvocationSent():
            return rounds.sent(run, attempt, command.activation_id, now_ms), ()
        case InvocationFailed():
            return rounds.failed(run, attempt, command.reason, now_ms)
        case WeightsInitialised():
            return rounds.initialised(run, attempt, command, now_ms)
        case UpdateStored():
            return rounds.updated(run, attempt, command, now_ms)
        case UpdatesFolded():
            return rounds.folded(run, attempt, command, now_ms)
        case ShardStored():
            return rounds.shard_stored(run, attempt, command, now_ms)
        case RoundAggregated():
            return rounds.aggregated(run, attempt, command, now_ms)
        case UpdatesRefused():
            return rounds.refused(run, attempt, command, now_ms)
        case _:  # pragma: no cover
            assert_never(command)


def _outstanding(run: Run, key: str) -> Attempt | None:
    return run.outbox.get(key)


def _with(state: State, run: Run, intents: tuple[Intent, ...] = ()) -> Applied:
    committed = sum(isinstance(intent, RoundCommitted) for intent in intents)
    state = replace(
        state,
        runs={**state.runs, run.spec.run: run},
        conductor_rounds=state.conductor_rounds + committed,
    )
    return Applied(state=state, intents=intents)
