"""What must hold of every state, and of every step from one to the next, whatever was commanded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fedkeeper.core.conducting import KEEPERS_MAX
from fedkeeper.core.kv import ANSWERS_MAX
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import (
    Applied,
    AttemptStatus,
    ClaimConductor,
    Command,
    DeleteValue,
    Invoke,
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
    RunEnded,
    ShardStored,
    State,
    UpdatesFolded,
)
from fedkeeper.core.selection import choose_clients
from fedkeeper.core.sharding import count
from fedkeeper.core.stopping import reached_the_end

UNTIMED = (KeeperStarted, KeeperMeasured, KeeperLost, KeeperRemoved, PutValue, DeleteValue)
UNDER_WAY = (AttemptStatus.PENDING, AttemptStatus.SENDING, AttemptStatus.RUNNING)


def check_step(before: State, command: Command, applied: Applied) -> None:
    """Assert everything about one step."""
    after = applied.state
    check_state(after)
    assert before.now_ms <= after.now_ms <= max(before.now_ms, command.at_ms)
    if isinstance(command, UNTIMED):
        assert after.now_ms == before.now_ms, "a keeper's or a user's clock had a say"
        assert applied.intents == ()
        assert _untouched(before, after, "keepers", "kv", "kv_version", "kv_bytes", "answered")
    if applied.rejected:
        assert applied.intents == ()
        kept = replace(after, now_ms=before.now_ms, answered=before.answered)
        assert kept == before, "a rejected command changed something"
    epoch = getattr(command, "epoch", before.epoch)
    if epoch != before.epoch:
        assert applied == Applied(state=before, rejected=applied.rejected), "an older epoch was not fenced"
        assert applied.rejected
    _check_conductor_step(before, command, applied)
    _check_keepers_and_kv_step(before, command, applied)
    assert len(set(applied.intents)) == len(applied.intents)
    for intent in applied.intents:
        if isinstance(intent, Invoke):
            attempt = after.runs[intent.run].outbox[intent.key]
            assert attempt.status is AttemptStatus.SENDING
            earlier = before.runs[intent.run].outbox.get(intent.key) if intent.run in before.runs else None
            assert earlier is None or earlier.status is AttemptStatus.PENDING, "invoked twice"
    if isinstance(command, UpdatesFolded) and not applied.rejected:
        run = before.runs[command.key.partition("/")[0]]
        first = [run.updates[client].key for client in run.chosen if client in run.updates]
        assert command.base == run.weights
        assert list(command.updates) == first[: len(command.updates)], "others than the first were added up"
    if isinstance(command, RoundAggregated | ShardStored) and not applied.rejected:
        run = before.runs[command.key.partition("/")[0]]
        assert command.base == run.weights, "weights made from others than the run's were committed"
        assert set(command.updates) == {one.key for one in run.updates.values()}, "others were averaged"
        if isinstance(command, RoundAggregated):
            assert set(command.parts) == {part.key for part in run.parts}, "others were put together"
            made = sorted(part.shard for part in run.parts)
            assert made == (list(range(count(run))) if count(run) > 1 else []), "not each shard, once"
    for name in before.runs.keys() & after.runs.keys():
        _check_run_step(before.runs[name], after.runs[name], applied)


def _untouched(before: State, after: State, *but: str) -> bool:
    """Whether everything is as it was, but for these."""
    return replace(after, **{name: getattr(before, name) for name in but}) == before


def _check_conductor_step(before: State, command: Command, applied: Applied) -> None:
    after = applied.state
    if isinstance(command, ClaimConductor) and not applied.rejected:
        assert command.expected_epoch == before.epoch == after.epoch - 1
        assert (after.conductor, after.pinned) == (command.keeper, command.pinned)
        assert (after.conductor_rounds, after.conductor_since_ms) == (0, after.now_ms)
        return
    committed = sum(isinstance(intent, RoundCommitted) for intent in applied.intents)
    kept = replace(after, conductor_rounds=before.conductor_rounds)
    assert after.conductor_rounds == before.conductor_rounds + committed
    names = ("epoch", "conductor", "conductor_why", "conductor_since_ms", "conductor_rounds", "pinned")
    assert all(getattr(kept, name) == getattr(before, name) for name in names), "conducting moved by itself"


def _check_keepers_and_kv_step(before: State, command: Command, applied: Applied) -> None:
    after = applied.state
    if not isinstance(command, (KeeperStarted, KeeperMeasured, KeeperLost, KeeperRemoved)):
        assert after.keepers == before.keepers
    elif not applied.rejected:
        others = {name: info for name, info in after.keepers.items() if name != command.keeper}
        assert others == {name: info for name, info in before.keepers.items() if name != command.keeper}
        assert (command.keeper in after.keepers) is not isinstance(command, KeeperRemoved)
    if not isinstance(command, (PutValue, DeleteValue)):
        names = ("kv", "kv_version", "kv_bytes", "answered")
        assert all(getattr(after, name) == getattr(before, name) for name in names)
    elif after.kv_version != before.kv_version:
        assert after.kv_version == before.kv_version + 1
        assert not applied.rejected
        assert len(after.kv) - len(before.kv) in ((0, 1) if isinstance(command, PutValue) else (-1,))


def _check_run_step(before: Run, after: Run, applied: Applied) -> None:
    name = after.spec.run
    assert after.spec == before.spec
    if before.phase in ENDED:
        assert after == before, "a run went on after its end"
        return
    new_rounds = after.history[len(before.history) :]
    assert after.history[: len(before.history)] == before.history, "history was rewritten"
    assert len(new_rounds) <= 1
    committed = [
        intent for intent in applied.intents if isinstance(intent, RoundCommitted) and intent.run == name
    ]
    assert [intent.round for intent in committed] == [record.round for record in new_rounds]
    told = [intent for intent in applied.intents if isinstance(intent, RunEnded) and intent.run == name]
    assert len(told) == (after.phase in ENDED)
    # No key comes back once it has left the outbox: a late answer finds nothing.
    gone = before.outbox.keys() - after.outbox.keys()
    ended = Counter(attempt.key for attempt in after.ended)
    assert all(count == 1 for count in ended.values())
    if after.round == before.round:
        assert gone <= ended.keys(), "an attempt vanished without a record"
        assert not (after.outbox.keys() - before.outbox.keys()) & {one.key for one in before.ended}


def check_state(state: State) -> None:
    """Assert everything about one state."""
    assert state.now_ms >= 0
    assert 0 <= state.conductor_since_ms <= state.now_ms
    assert len(state.keepers) <= KEEPERS_MAX
    assert all(info.name == name for name, info in state.keepers.items())
    assert all(info.alive or info.measured or not info.latencies for info in state.keepers.values())
    assert len(state.answered) <= ANSWERS_MAX
    assert len({entry.version for entry in state.kv.values()}) == len(state.kv), "two writes, one version"
    assert all(1 <= entry.version <= state.kv_version for entry in state.kv.values())
    texts = "".join(name + entry.value for name, entry in state.kv.items())
    assert state.kv_bytes == len(texts.encode(errors="surrogatepass"))
    for name, run in state.runs.items():
        assert run.spec.run == name
        _check_run(run)
        _check_parts(run)
        _check_folds(run)
        _check_outbox(run)
        _check_history(run)


def _check_run(run: Run) -> None:
    spec = run.spec
    if run.phase in ENDED:
        assert not run.outbox
        assert run.ended_ms >= run.submitted_ms
        assert bool(run.reason) or run.phase is not Phase.FAILED
    else:
        assert run.outbox, "an unfinished run that waits for nothing would never end"
    if run.phase in (Phase.DEPLOYING, Phase.INITIALISING):
        assert (run.round, run.weights, run.chosen) == (0, None, ())
    elif run.phase in (Phase.TRAINING, Phase.AGGREGATING):
        assert 1 <= run.round <= spec.rounds_max
        assert run.round == len(run.history) + 1
        assert run.weights is not None
        clients = [place.client for place in spec.clients]
        assert run.chosen == choose_clients(
            clients, spec.clients_per_round, seed=spec.seed, round_no=run.round
        )
    assert run.updates.keys() <= set(run.chosen)
    assert not run.updates.keys() & run.gave_up.keys()
    by_key = {attempt.key: attempt for attempt in run.ended}
    for client, update in run.updates.items():
        assert update.client == client
        assert update.samples >= 1
        assert by_key[update.key].status is AttemptStatus.OK
        assert (by_key[update.key].client, by_key[update.key].round) == (client, run.round)


def _check_parts(run: Run) -> None:
    """The shards that count are of this round, each once, and nobody is waited for to make them again."""
    shards = [part.shard for part in run.parts]
    assert len(set(shards)) == len(shards), "a shard counted twice"
    assert set(shards) <= set(range(count(run)))
    assert not run.parts or run.phase in (Phase.AGGREGATING, *ENDED)
    by_key = {attempt.key: attempt for attempt in run.ended}
    for part in run.parts:
        attempt = by_key[part.key]
        assert attempt.status is AttemptStatus.OK
        assert (attempt.kind, attempt.shard, attempt.round) == (Kind.SHARD, part.shard, run.round)
    awaited = {one.shard for one in run.outbox.values() if one.kind in (Kind.SHARD, Kind.FOLD)}
    assert not awaited & set(shards)
    if run.phase is Phase.AGGREGATING and count(run) > 1:
        assert run.outbox.keys(), "nobody is waited for"
        assert awaited | set(shards) == set(range(count(run)))


def _check_folds(run: Run) -> None:
    """The early sums are of the first updates: nothing that comes later may come before one of them."""
    folded = [fold.shard for fold in run.folds]
    assert len(set(folded)) == len(folded)
    assert set(folded) <= set(range(count(run)))
    if run.phase in ENDED:
        return
    order = [client for client in run.chosen if client in run.updates]
    waiting = [fold.updates for fold in run.folds]
    waiting += [one.updates for one in run.outbox.values() if one.kind is Kind.FOLD]
    for updates in waiting:
        assert 0 < updates <= len(order)
        behind = run.chosen.index(order[updates - 1])
        assert all(one in run.updates or one in run.gave_up for one in run.chosen[:behind]), "not the first"
    busy = {one.shard for one in run.outbox.values() if one.kind is Kind.FOLD}
    finishing = {one.shard for one in run.outbox.values() if one.kind in (Kind.SHARD, Kind.AGGREGATE)}
    assert not busy & finishing, "it is aggregated, and still added up"


def _check_outbox(run: Run) -> None:
    waited_for = Counter((one.kind, one.client, one.shard) for one in run.outbox.values())
    assert all(count == 1 for count in waited_for.values()), "two attempts for the same purpose at a time"
    kinds = {one.kind for one in run.outbox.values()}
    expected = {
        Phase.DEPLOYING: {Kind.DEPLOY},
        Phase.INITIALISING: {Kind.INIT},
        Phase.TRAINING: {Kind.TRAIN, Kind.FOLD},
        Phase.AGGREGATING: {Kind.SHARD, Kind.FOLD}
        if len(run.parts) < count(run) > 1
        else {Kind.AGGREGATE} | ({Kind.FOLD} if count(run) == 1 else set()),
    }
    assert kinds <= expected.get(run.phase, set())
    for key, attempt in run.outbox.items():
        assert attempt.key == key
        assert key.startswith(f"{run.spec.run}/")
        assert (attempt.run, attempt.round) == (run.spec.run, run.round)
        assert attempt.status in UNDER_WAY
        assert attempt.deadline_ms > 0 or attempt.status is AttemptStatus.PENDING
        if attempt.kind is Kind.TRAIN:
            assert attempt.number < run.spec.attempts_max
            assert attempt.client in run.chosen
            assert attempt.client not in run.updates
            assert attempt.client not in run.gave_up
    failures = Counter(
        (one.kind, one.client, one.shard, one.round)
        for one in run.ended
        if one.status in (AttemptStatus.FAILED, AttemptStatus.SILENT)
    )
    assert all(count <= run.spec.attempts_max for count in failures.values())
    assert all(attempt.status not in UNDER_WAY for attempt in run.ended)


def _check_history(run: Run) -> None:
    spec = run.spec
    assert [record.round for record in run.history] == list(range(1, len(run.history) + 1))
    counted = [key for record in run.history for key in record.updates]
    assert len(set(counted)) == len(counted), "an update counted twice"
    for record in run.history:
        clients = [key.split("/")[2] for key in record.updates]
        assert len(set(clients)) == len(clients)
        assert set(clients) <= set(record.clients)
        assert spec.min_updates <= len(clients) == len(record.clients) - record.gave_up
        assert all(key.startswith(f"{spec.run}/r{record.round}/") for key in record.updates)
        assert record.samples >= len(clients)
        ends = reached_the_end(spec, round_no=record.round, accuracy=record.accuracy)
        assert not ends or (record is run.history[-1] and run.phase is Phase.FINISHED)
    if run.history:
        assert run.weights == run.history[-1].weights
    if run.phase is Phase.FINISHED:
        assert reached_the_end(spec, round_no=len(run.history), accuracy=run.history[-1].accuracy)
