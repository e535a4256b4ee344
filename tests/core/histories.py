"""Histories of commands that go deep: arbitrary ones, of which most are bent to fit the state they meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from fedkeeper.core import records, sharding
from fedkeeper.core.machine import ENDED, apply
from fedkeeper.core.model import (
    Applied,
    ClaimConductor,
    ClientPlace,
    Command,
    DeleteValue,
    FunctionsDeployed,
    InvocationFailed,
    InvocationSent,
    KeeperLost,
    KeeperMeasured,
    KeeperRemoved,
    KeeperStarted,
    Kind,
    PutValue,
    RoundAggregated,
    Run,
    RunSpec,
    ShardStored,
    State,
    SubmitRun,
    Tick,
    UpdatesFolded,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from tests.strategies import commands, texts, values

FAR = 2**53  # the largest number in a command
_good = st.sampled_from(("c0", "c1", "c2", "aggregate", "\ud800", "é"))
_odd = st.one_of(_good, texts, st.sampled_from(("aggregate/s0", "")))


def _places(names: list[str]) -> tuple[ClientPlace, ...]:
    return tuple(
        ClientPlace(client=name, cluster="lab", route="direct" if number % 2 else "invoker")
        for number, name in enumerate(names)
    )


def _specs(
    names: st.SearchStrategy[str], per_round: tuple[int, ...], minimum: tuple[int, ...]
) -> st.SearchStrategy[RunSpec]:
    return st.builds(
        RunSpec,
        run=st.sampled_from(("m", "n", "\udfff")),
        digest=st.sampled_from(("d", "e")),
        seed=st.integers(0, 9),
        clients=st.lists(names, min_size=2, max_size=4, unique=True).map(_places),
        server_cluster=st.just("lab"),
        clients_per_round=st.sampled_from(per_round),
        rounds_max=st.sampled_from((1, 2, 3, FAR)),
        target_accuracy=st.one_of(st.none(), st.just(0.5)),
        min_updates=st.sampled_from(minimum),
        attempts_max=st.sampled_from((1, 2, 3, FAR)),
        client_timeout_ms=st.sampled_from((1_000, 1_000, FAR)),
        server_timeout_ms=st.sampled_from((1_000, 1_000, FAR)),
        round_timeout_ms=st.sampled_from((0, 0, 1_500)),
        deploy_timeout_ms=st.sampled_from((0, 0, 1_000)),
        retry_backoff_ms=st.sampled_from((0, 100, FAR)),
        shards=st.sampled_from((1, 1, 1, 1, 1, 2, 0)),
        shard_bytes_max=st.sampled_from((FAR // 2, FAR)),  # of weights of up to FAR bytes
        shard_updates_bytes_max=st.sampled_from((FAR // 2, FAR)),
        early_updates_min=st.sampled_from((0, 0, 1)),
        early_bytes_min=st.sampled_from((0, 1)),
    )


good_specs = _specs(_good, (1, 2), (1,))
odd_specs = _specs(_odd, (0, 1, 2, 5), (0, 1, 2))


@dataclass(frozen=True, slots=True)
class Move:
    """Something that happens. What is proposed depends on the state when its turn comes; see `fit`."""

    command: Command | Mapping[Kind, Command]  # the latter: an answer, of the kind that is waited for
    pick: int  # which run, which attempt
    after_ms: int
    fitting: bool  # the key is outstanding, the time has gone on
    agreeing: bool  # an aggregation names the right weights and updates; samples are as they should be
    fenced: bool  # the epoch is the present one


def fit(move: Move, state: State) -> Command:
    """The command that is proposed."""
    attempts = [
        (run, one) for run in state.runs.values() if run.phase not in ENDED for one in run.outbox.values()
    ]
    run, attempt = attempts[move.pick % len(attempts)] if attempts else (None, None)
    command: Any = move.command
    if isinstance(command, Mapping):
        command = command[attempt.kind if attempt else Kind.INIT]
    if move.fitting:
        command = replace(command, at_ms=min(state.now_ms + move.after_ms, FAR))
        if hasattr(command, "run") and state.runs:
            command = replace(command, run=list(state.runs)[move.pick % len(state.runs)])
        if hasattr(command, "key") and run and attempt:
            command = replace(command, key=attempt.key)
            if move.agreeing:
                command = _agreeing(command, run)
    if move.fenced and isinstance(command, ClaimConductor):
        command = replace(command, expected_epoch=state.epoch)
    elif move.fenced and hasattr(command, "epoch"):
        command = replace(command, epoch=state.epoch)
    result: Command = command
    return result


def _agreeing(command: Command, run: Run) -> Command:
    match command:
        case UpdateStored():
            return replace(command, samples=max(1, abs(command.samples)))
        case FunctionsDeployed():
            return replace(command, urls={place.client: "http://f" for place in run.spec.clients})
        case WeightsInitialised():
            return replace(command, samples={place.client: 5 for place in run.spec.clients})
        case RoundAggregated() if run.weights is not None:
            updates = tuple(update.key for update in records.ordered_updates(run))
            parts = tuple(part.key for part in sharding.in_order(run))
            return replace(command, base=run.weights, updates=updates, parts=parts)
        case UpdatesFolded() if run.weights is not None:
            updates = tuple(update.key for update in records.ordered_updates(run))
            last = run.outbox[command.key].updates
            return replace(command, base=run.weights, updates=updates[:last])
        case ShardStored() if run.weights is not None:
            updates = tuple(update.key for update in records.ordered_updates(run))
            return replace(command, base=run.weights, updates=updates)
        case UpdatesRefused():
            return replace(command, refused={update.key: "NaN" for update in run.updates.values()})
        case _:
            return command


_answers = st.fixed_dictionaries(
    {
        Kind.DEPLOY: values(FunctionsDeployed),
        Kind.INIT: values(WeightsInitialised),
        Kind.TRAIN: values(UpdateStored),
        Kind.AGGREGATE: values(RoundAggregated),
        Kind.SHARD: values(ShardStored),
        Kind.FOLD: values(UpdatesFolded),
    }
)
_usually = st.sampled_from((True,) * 9 + (False,))


def _move(command: st.SearchStrategy[Any]) -> st.SearchStrategy[Move]:
    return st.builds(
        Move,
        command=command,
        pick=st.integers(0, 7),
        after_ms=st.sampled_from((0, 0, 0, 1, 99, 100, 999, 1_000, 1_500, 70_000)),
        fitting=_usually,
        agreeing=_usually,
        fenced=_usually,
    )


def _submit(specs: st.SearchStrategy[RunSpec]) -> st.SearchStrategy[Command]:
    return st.builds(SubmitRun, spec=specs, at_ms=st.integers(0, 3))


_keeper = st.sampled_from(("k1", "k2", "k3"))
_name = st.sampled_from(("a", "b", "\ud800"))
_condition = st.one_of(st.none(), st.integers(0, 3))
_request = st.sampled_from(("", "r1", "r2"))
_value = st.sampled_from(("1", '"é"'))
_now = st.integers(0, 9)
_far = st.dictionaries(st.sampled_from(("keeper/k1", "cluster/a")), st.sampled_from((0.5, -1.0)))
_housekeeping = st.one_of(
    st.builds(KeeperStarted, keeper=_keeper, api=st.just(""), version=st.just(2), at_ms=_now),
    st.builds(KeeperMeasured, keeper=_keeper, latencies=_far, at_ms=_now),
    st.builds(KeeperLost, keeper=_keeper, reason=st.just("gone"), at_ms=_now),
    st.builds(KeeperRemoved, keeper=_keeper, at_ms=_now),
    st.builds(
        ClaimConductor,
        keeper=_keeper,
        expected_epoch=st.just(0),
        at_ms=_now,
        pinned=st.booleans(),
        resumes=st.booleans(),
    ),
    st.builds(PutValue, name=_name, value=_value, expected=_condition, request=_request, at_ms=_now),
    st.builds(DeleteValue, name=_name, expected=_condition, request=_request, at_ms=_now),
)
_start = _move(_submit(good_specs))
_kinds: list[st.SearchStrategy[Any]] = [
    *[_answers] * 12,
    *[values(kind) for kind in (InvocationSent, InvocationFailed, InvocationFailed, UpdatesRefused, Tick)],
    _submit(good_specs),
    _submit(odd_specs),
    _housekeeping,
    commands,
]
# Not `one_of`: it would count every kind of `commands` as often as an answer.
_next = _move(st.sampled_from(range(len(_kinds))).flatmap(_kinds.__getitem__))
histories = st.tuples(_start, st.lists(_next, min_size=12, max_size=30)).map(lambda both: [both[0], *both[1]])


def play(history: Iterable[Move], state: State | None = None) -> tuple[list[Command], list[Applied]]:
    """The commands that a history comes to, and what each of them did."""
    state = state or State()
    done: list[Command] = []
    applied: list[Applied] = []
    for move in history:
        done.append(fit(move, state))
        applied.append(apply(state, done[-1]))
        state = applied[-1].state
    return done, applied
