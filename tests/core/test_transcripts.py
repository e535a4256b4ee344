"""Conversations with the machine, kept as text: command, `----`, what came of it.

After a change that is meant, `FEDKEEPER_REWRITE=1 python -m pytest tests/core/test_transcripts.py` writes
them anew, and the change is reviewed as a diff. A command line is

    [+MS] verb arguments [name=value …] [epoch=N]

where +MS lets time go on. A blank line ends a block; lines that begin with # are kept as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.core import records, sharding
from fedkeeper.core.conducting import Placement, Policy, choose
from fedkeeper.core.machine import apply
from fedkeeper.core.model import (
    Applied,
    AttemptStatus,
    ClaimConductor,
    ClientPlace,
    Command,
    DeleteValue,
    ForgetRun,
    FunctionsDeployed,
    Intent,
    InvocationFailed,
    InvocationSent,
    Invoke,
    KeeperLost,
    KeeperMeasured,
    KeeperRemoved,
    KeeperStarted,
    ObjectRef,
    Prune,
    PutValue,
    RoundAggregated,
    RoundCommitted,
    Run,
    RunSpec,
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
from fedkeeper.core.outbox import deadline_ms

FOLDER = Path(__file__).parent / "transcripts"
Options = dict[str, str]


def _ref(name: str) -> ObjectRef:
    return ObjectRef(name=name, sha256="0" * 64, nbytes=8)


def _number(options: Options, name: str) -> float | None:
    return float(options[name]) if name in options else None


class Conversation:
    """The state so far, and the time."""

    def __init__(self) -> None:
        self.state = State()
        self.now_ms = 0

    def say(self, line: str) -> list[str]:
        """What one command line brings about."""
        words = line.split()
        if words[0].startswith("+"):
            self.now_ms += int(words.pop(0))
        verb, *rest = words
        options = dict(word.split("=", 1) for word in rest if "=" in word)
        arguments = [word for word in rest if "=" not in word]
        if verb == "choose":
            return self._choose(arguments[0], options)
        before = self.state
        applied = apply(before, self._command(verb, arguments, options))
        self.state = applied.state
        return [*_told(applied), *_changed(before, applied.state)]

    def _choose(self, leader: str, options: Options) -> list[str]:
        rounds_, every_s = int(options.get("every_rounds", 1)), float(options.get("every_s", 0))
        policy = Policy(placement=Placement(options["policy"]), every_rounds=rounds_, every_s=every_s)
        choice = choose(self.state, policy, leader=leader, now_ms=self.now_ms)
        return [f"{choice.keeper}, because {choice.why}" if choice else "as it is"]

    def _command(self, verb: str, arguments: list[str], options: Options) -> Command:
        at_ms, epoch = self.now_ms, int(options.get("epoch", self.state.epoch))
        name, text = (arguments or [""])[0], " ".join(arguments[1:])
        run = self.state.runs.get(name.split("/")[0])
        table: dict[str, Callable[[], Command]] = {
            "claim": lambda: ClaimConductor(
                keeper=name,
                expected_epoch=int(options.get("expected", self.state.epoch)),
                at_ms=at_ms,
                why=text,
                pinned="pinned" in options,
                resumes="resumes" in options,
            ),
            "started": lambda: KeeperStarted(keeper=name, api="http://k", version=2, at_ms=at_ms),
            "measured": lambda: KeeperMeasured(keeper=name, latencies=_latencies(options), at_ms=at_ms),
            "lost": lambda: KeeperLost(keeper=name, reason=text, at_ms=at_ms),
            "removed": lambda: KeeperRemoved(keeper=name, at_ms=at_ms),
            "put": lambda: PutValue(name=name, value=text, at_ms=at_ms, **_conditions(options)),
            "delete": lambda: DeleteValue(name=name, at_ms=at_ms, **_conditions(options)),
            "deployed": lambda: FunctionsDeployed(
                key=name, urls=_urls(arguments[1:]), summary="3 created", epoch=epoch, at_ms=at_ms
            ),
            "submit": lambda: SubmitRun(spec=_spec(name, options), at_ms=at_ms),
            "stop": lambda: StopRun(run=name, reason=text, at_ms=at_ms),
            "forget": lambda: ForgetRun(run=name, at_ms=at_ms),
            "tick": lambda: Tick(epoch=epoch, at_ms=at_ms),
            "sent": lambda: InvocationSent(key=name, activation_id="ab12", epoch=epoch, at_ms=at_ms),
            "failed": lambda: InvocationFailed(key=name, reason=text, epoch=epoch, at_ms=at_ms),
            "initialised": lambda: WeightsInitialised(
                key=name,
                weights=_ref("w0"),
                samples=_samples(run, int(options.get("rows", "10"))),
                epoch=epoch,
                at_ms=at_ms,
            ),
            "stored": lambda: UpdateStored(
                key=name,
                ref=_ref(name),
                samples=int(options.get("samples", "10")),
                loss=_number(options, "loss"),
                accuracy=None,
                epoch=epoch,
                at_ms=at_ms,
            ),
            "aggregated": lambda: _aggregated(name, run, options, epoch, at_ms),
            "folded": lambda: _folded(name, run, options, epoch, at_ms),
            "sharded": lambda: _sharded(name, run, options, epoch, at_ms),
            "refused": lambda: UpdatesRefused(
                key=name, refused=dict.fromkeys(arguments[1:], "NaN"), epoch=epoch, at_ms=at_ms
            ),
        }
        return table[verb]()


def _latencies(options: Options) -> dict[str, float]:
    """`k2=1.5` is to a keeper, `lab=2` to a cluster."""
    return {f"{'keeper' if name[0] == 'k' else 'cluster'}/{name}": float(ms) for name, ms in options.items()}


def _conditions(options: Options) -> dict[str, Any]:
    numbers = ("expected", "fence_version", "total_bytes_max")
    return {name: int(text) if name in numbers else text for name, text in options.items()}


def _urls(clients: list[str]) -> dict[str, str]:
    return {client: f"http://{client}" for client in clients}


def _samples(run: Run | None, rows: int) -> dict[str, int]:
    return {place.client: rows for place in run.spec.clients} if run else {}


def _base(run: Run | None, options: Options) -> ObjectRef:
    return _ref(options.get("base", run.weights.name if run and run.weights else "none"))


def _keys(options: Options, name: str, counted: list[str]) -> tuple[str, ...]:
    return tuple(options[name].split(",") if name in options else counted)


def _folded(key: str, run: Run | None, options: Options, epoch: int, at_ms: int) -> Command:
    counted = [update.key for update in records.ordered_updates(run)] if run else []
    last = run.outbox[key].updates if run and key in run.outbox else 0
    return UpdatesFolded(
        key=key,
        base=_base(run, options),
        ref=_ref(key),
        updates=_keys(options, "updates", counted[:last]),
        epoch=epoch,
        at_ms=at_ms,
    )


def _sharded(key: str, run: Run | None, options: Options, epoch: int, at_ms: int) -> Command:
    counted = [update.key for update in records.ordered_updates(run)] if run else []
    return ShardStored(
        key=key,
        base=_base(run, options),
        ref=_ref(key),
        updates=_keys(options, "updates", counted),
        aggregate_s=0.5,
        epoch=epoch,
        at_ms=at_ms,
    )


def _aggregated(key: str, run: Run | None, options: Options, epoch: int, at_ms: int) -> Command:
    counted = [update.key for update in records.ordered_updates(run)] if run else []
    made = [part.key for part in sharding.in_order(run)] if run else []
    return RoundAggregated(
        key=key,
        base=_base(run, options),
        weights=_ref(f"w{run.round if run else 0}"),
        updates=_keys(options, "updates", counted),
        parts=_keys(options, "parts", made),
        loss=_number(options, "loss"),
        accuracy=_number(options, "accuracy"),
        aggregate_s=0.5,
        evaluate_s=0.5,
        epoch=epoch,
        at_ms=at_ms,
    )


def _spec(run: str, options: Options) -> RunSpec:
    names = options.get("clients", "c0,c1,c2").split(",")
    spec = RunSpec(
        run=run,
        digest=options.pop("digest", "d"),
        seed=1,
        clients=tuple(ClientPlace(client=name, cluster="lab", route="direct") for name in names),
        server_cluster="lab",
        clients_per_round=len(names),
        rounds_max=2,
        target_accuracy=_number(options, "target"),
        min_updates=1,
        attempts_max=2,
        client_timeout_ms=1_000,
        server_timeout_ms=5_000,
        round_timeout_ms=0,
        retry_backoff_ms=100,
    )
    routes = options.pop("route", "direct")
    numbers = {name: int(value) for name, value in options.items() if name not in ("clients", "target")}
    if "invoker" in routes:
        spec = replace(spec, clients=tuple(replace(place, route="invoker") for place in spec.clients))
    return replace(spec, **numbers)


def _told(applied: Applied) -> list[str]:
    rejected = [f"rejected: {applied.rejected}"] if applied.rejected else []
    return rejected + [f"-> {_intent(intent)}" for intent in applied.intents]


def _intent(intent: Intent) -> str:
    match intent:
        case Invoke():
            return f"invoke {intent.key}"
        case Prune():
            return f"prune {intent.run} below round {intent.before_round}"
        case RoundCommitted():
            return f"committed {intent.run} round {intent.round}"
        case _:
            return f"ended {intent.run}"


def _changed(before: State, after: State) -> list[str]:
    lines = []
    if (before.epoch, before.conductor) != (after.epoch, after.conductor):
        lines.append(f"epoch {after.epoch}, conductor {after.conductor}")
    lines += _keepers(before, after) + _dictionary(before, after)
    lines += [f"{name} is gone" for name in before.runs.keys() - after.runs.keys()]
    for name, run in after.runs.items():
        if before.runs.get(name) != run:
            lines += _run(run, before.runs.get(name))
    return lines or ["nothing changed"]


def _keepers(before: State, after: State) -> list[str]:
    lines = [f"keeper {name} is gone" for name in before.keepers.keys() - after.keepers.keys()]
    for name, info in after.keepers.items():
        if before.keepers.get(name) != info:
            state = "alive" if info.alive else f"lost: {info.reason}"
            far = ", ".join(f"{to} {ms:g} ms" for to, ms in info.latencies.items())
            lines.append(f"keeper {name}: {state}" + (f", {far}" if far else ""))
    return lines


def _dictionary(before: State, after: State) -> list[str]:
    lines = [f"{name} is no more" for name in before.kv.keys() - after.kv.keys()]
    for name, entry in after.kv.items():
        if before.kv.get(name) != entry:
            lines.append(f"{name} = {entry.value}, version {entry.version}")
    for request in after.answered.keys() - before.answered.keys():
        answer = after.answered[request]
        lines.append(f"request {request}: {answer.rejected or f'version {answer.version}'}")
    if after.kv_bytes != before.kv_bytes:
        lines.append(f"the dictionary has {after.kv_bytes} bytes")
    return lines


def _run(run: Run, before: Run | None) -> list[str]:
    weights = run.weights.name if run.weights else "none"
    lines = [f"{run.spec.run}: {run.phase}, round {run.round}, weights {weights}"]
    if run.reason and (before is None or before.reason != run.reason):
        lines.append(f"  because {run.reason}")
    for record in run.history[len(before.history) if before else 0 :]:
        lines.append(
            f"  history: round {record.round}, updates {','.join(record.updates)}, samples {record.samples},"
            f" failures {record.failures}, gave up {record.gave_up}, train loss {record.train_loss}"
        )
    known = {one.key: one for one in before.ended} if before else {}
    for one in run.ended:
        if known.get(one.key) != one:
            lines.append(f"  {one.key} {one.status}" + (f": {one.reason}" if one.reason else ""))
    for one in run.outbox.values():
        due_ms = deadline_ms(run, one)
        known_ms = deadline_ms(before, before.outbox[one.key]) if before and one.key in before.outbox else 0
        if before is None or before.outbox.get(one.key) != one or known_ms != due_ms:
            pending = one.status is AttemptStatus.PENDING
            until = f"not before {one.not_before_ms}" if pending else f"until {due_ms}"
            lines.append(f"  {one.key} {one.status}, {until}")
    return lines


def _replay(text: str) -> str:
    """The transcript with what its commands bring about today."""
    conversation, blocks = Conversation(), []
    for block in text.strip().split("\n\n"):
        lines = []
        for line in block.splitlines():
            if line == "----":
                break
            lines.append(line)
        spoken = [line for line in lines if not line.startswith("#")]
        if spoken:
            lines.append("----")
            for line in spoken:
                lines += conversation.say(line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_machine_decides_as_it_did(path):
    """A changed decision is a diff of the transcript."""
    kept = path.read_text("utf-8")
    now = _replay(kept)
    if os.environ.get("FEDKEEPER_REWRITE"):
        path.write_text(now, "utf-8")
    else:
        assert now == kept


def test_there_are_transcripts():
    """An empty folder would pass."""
    assert len(list(FOLDER.glob("*.txt"))) >= 12
