"""The life of one run: deploy, initialise, then train and aggregate, round by round, until its end.

Every function takes a Run and returns the Run after it, most of them with the intents that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedkeeper.core import attempts, folding, outbox, records, sharding
from fedkeeper.core.model import (
    Attempt,
    AttemptStatus,
    Fold,
    FunctionsDeployed,
    Intent,
    Invoke,
    Kind,
    Part,
    Phase,
    Prune,
    RoundAggregated,
    RoundCommitted,
    Run,
    RunEnded,
    RunSpec,
    ShardStored,
    Update,
    UpdatesFolded,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.core.outbox import Step
from fedkeeper.core.persistent import Buckets, Grown
from fedkeeper.core.selection import choose_clients
from fedkeeper.core.stopping import reached_the_end

BACKOFF_MS_MAX = 60_000
_AGGREGATING = (Kind.AGGREGATE, Kind.SHARD, Kind.FOLD)


# --- what happens -----------------------------------------------------------------------------


def begin(spec: RunSpec, now_ms: int) -> Step:
    """A new run, whose first effect is to deploy its functions, or to write the initial weights."""
    deploys = spec.deploy_timeout_ms > 0
    phase = Phase.DEPLOYING if deploys else Phase.INITIALISING
    run = Run(spec=spec, phase=phase, round=0, weights=None, submitted_ms=now_ms)
    return outbox.start(run, Kind.DEPLOY if deploys else Kind.INIT, number=0, now_ms=now_ms)


def sent(run: Run, attempt: Attempt, activation_id: str, now_ms: int) -> Run:
    """The platform has taken it: its time runs from now."""
    running = replace(
        attempt,
        status=AttemptStatus.RUNNING,
        activation_id=activation_id,
        sent_ms=attempt.sent_ms or now_ms,
        deadline_ms=(attempt.sent_ms or now_ms) + attempts.timeout_ms(run.spec, attempt.kind),
    )
    run = replace(run, outbox=Buckets.of(run.outbox).put(attempt.key, running))
    if attempt.kind is Kind.TRAIN and attempt.number == 0:
        run = replace(run, invoked_ms=now_ms)
    return run


def taken_over(run: Run, now_ms: int, *, once: bool) -> Run:
    """There is a new conductor: what it must send, perhaps again, has its time from now on.

    Else what nobody sent while there was no conductor would be given up, and invoked anew, the moment
    it is sent at last. `once`: noted in the run, not in every attempt, of which there may be thousands.
    """
    if once:
        return replace(run, resumed_ms=now_ms) if run.outbox else run
    waiting = {
        key: outbox.issued(run, one, now_ms) if one.status is AttemptStatus.SENDING else one
        for key, one in run.outbox.items()
    }
    return replace(run, outbox=Buckets(waiting))


def failed(
    run: Run, attempt: Attempt, reason: str, now_ms: int, *, status: AttemptStatus = AttemptStatus.FAILED
) -> Step:
    """An attempt came to nothing: try again while attempts are left, else go on without it."""
    run = outbox.close(run, attempt, status, reason, now_ms)
    run, intents = _again(run, attempt, reason, now_ms)
    run, more = _close_training(run, now_ms)
    return run, intents + more


def deployed(run: Run, attempt: Attempt, command: FunctionsDeployed, now_ms: int) -> Step:
    """Every function is on its platform: the initial weights come next."""
    invoked = [place.client for place in run.spec.clients if place.route == "invoker"]
    without = [client for client in invoked if not command.urls.get(client)]
    if without:
        return failed(run, attempt, f"no URL of {', '.join(without)}", now_ms)
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    run = replace(run, phase=Phase.INITIALISING, urls=dict(command.urls), deployed=command.summary)
    return outbox.start(run, Kind.INIT, number=0, now_ms=now_ms)


def initialised(run: Run, attempt: Attempt, command: WeightsInitialised, now_ms: int) -> Step:
    """The initial weights stand: round 1 begins."""
    places = [place.client for place in run.spec.clients]
    without = [client for client in places if command.samples.get(client, 0) < 1]
    if without:
        return failed(run, attempt, f"no rows were dealt to {', '.join(without)}", now_ms)
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    run = replace(run, weights=command.weights, samples=dict(command.samples))
    return _begin_round(run, 1, now_ms)


def updated(run: Run, attempt: Attempt, command: UpdateStored, now_ms: int) -> Step:
    """A client's update counts, once."""
    if command.samples < 1:
        return failed(run, attempt, f"trained on {command.samples} rows", now_ms)
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    update = Update(
        key=command.key,
        client=attempt.client,
        ref=command.ref,
        samples=command.samples,
        loss=command.loss,
        accuracy=command.accuracy,
    )
    updates = Buckets.of(run.updates).put(attempt.client, update)
    run = replace(run, updates=updates, trained_ms=now_ms)
    if folding.waits_for_others(run, attempt.client):
        return run, ()
    return _close_training(run, now_ms)


def misfit(run: Run, attempt: Attempt, command: RoundAggregated | ShardStored | UpdatesFolded) -> str:
    """Why an aggregation may not be committed: other weights below it, or other updates or shards in it."""
    if command.base != run.weights:
        return "it was made from other weights than the run's"
    if isinstance(command, UpdatesFolded):
        first = tuple(update.key for update in records.ordered_updates(run)[: attempt.updates])
        return "" if command.updates == first else "it added up others than the first updates"
    if set(command.updates) != {update.key for update in run.updates.values()}:
        return "it averaged other updates than those that were counted"
    if isinstance(command, RoundAggregated) and command.parts != tuple(
        part.key for part in sharding.in_order(run)
    ):
        return "it was put together from other shards than those that were counted"
    return ""


def folded(run: Run, attempt: Attempt, command: UpdatesFolded, now_ms: int) -> Step:
    """A shard's first updates are added up; the rest is added when it is there."""
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    fold = Fold(shard=attempt.shard, key=command.key, ref=command.ref, updates=attempt.updates)
    run = folding.with_fold(run, attempt, fold)
    if run.phase is Phase.AGGREGATING:
        return _aggregate_shard(run, attempt.shard, now_ms)
    return folding.go_on(run, now_ms)


def shard_stored(run: Run, attempt: Attempt, command: ShardStored, now_ms: int) -> Step:
    """A shard counts, once; with the last one the weights can be put together."""
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    part = Part(shard=attempt.shard, key=command.key, ref=command.ref, aggregate_s=command.aggregate_s)
    run = replace(run, parts=(*run.parts, part))
    return _aggregate(run, now_ms) if sharding.complete(run) else (run, ())


def aggregated(run: Run, attempt: Attempt, command: RoundAggregated, now_ms: int) -> Step:
    """The round is committed; the next one begins, or the run ends."""
    run = outbox.close(run, attempt, AttemptStatus.OK, "", now_ms)
    record = records.record(run, command, now_ms)
    run = replace(run, weights=command.weights, history=(*run.history, record))
    intents: tuple[Intent, ...] = (
        RoundCommitted(run=run.spec.run, round=run.round),
        Prune(run=run.spec.run, before_round=run.round),
    )
    if reached_the_end(run.spec, round_no=run.round, accuracy=command.accuracy):
        run, more = end(run, Phase.FINISHED, "", now_ms)
    else:
        run, more = _begin_round(run, run.round + 1, now_ms)
    return run, intents + more


def refused(run: Run, attempt: Attempt, command: UpdatesRefused, now_ms: int) -> Step:
    """The aggregator would not take some updates, or shards: their attempts failed after all."""
    if attempt.kind is Kind.AGGREGATE and any(part.key in command.refused for part in run.parts):
        return _shards_refused(run, attempt, command, now_ms)
    if lost := [fold for fold in run.folds if fold.key in command.refused]:
        run = replace(run, folds=tuple(fold for fold in run.folds if fold not in lost))
        return failed(run, attempt, command.refused[lost[0].key], now_ms)
    bad = {update.client: update for update in run.updates.values() if update.key in command.refused}
    if not bad:
        return failed(run, attempt, "it refused updates that were never counted", now_ms)
    run = outbox.close(run, attempt, AttemptStatus.OK, f"refused {len(bad)} update(s)", now_ms)
    for other in [one for one in run.outbox.values() if one.kind in _AGGREGATING]:
        run = outbox.close(run, other, AttemptStatus.ABANDONED, "another one refused updates", now_ms)
    run = replace(
        folding.without_folds(run),
        phase=Phase.TRAINING,
        parts=(),
        updates={client: update for client, update in run.updates.items() if client not in bad},
        ended=Grown(_refused_attempt(one, command) for one in run.ended),
    )
    intents: tuple[Intent, ...] = ()
    by_key = {one.key: one for one in run.ended}
    for update in bad.values():
        run, more = _again(run, by_key[update.key], command.refused[update.key], now_ms)
        intents += more
    run, more = _close_training(run, now_ms)
    return run, intents + more


def _shards_refused(run: Run, attempt: Attempt, command: UpdatesRefused, now_ms: int) -> Step:
    """Some shards are missing or damaged: they alone are made again."""
    bad = [part for part in run.parts if part.key in command.refused]
    run = outbox.close(run, attempt, AttemptStatus.OK, f"refused {len(bad)} shard(s)", now_ms)
    run = replace(
        run,
        parts=tuple(part for part in run.parts if part not in bad),
        ended=Grown(_refused_attempt(one, command) for one in run.ended),
    )
    intents: tuple[Intent, ...] = ()
    by_key = {one.key: one for one in run.ended}
    for part in bad:
        run, more = _again(run, by_key[part.key], command.refused[part.key], now_ms)
        intents += more
        if run.phase is Phase.FAILED:
            break
    return run, _still_meant(run, intents)


def tick(run: Run, now_ms: int) -> Step:
    """Release what waited for its time; give up on what had its time."""
    intents: tuple[Intent, ...] = ()
    if run.phase is Phase.TRAINING and 0 < _round_deadline_ms(run) <= now_ms:
        run, intents = _cut_training_short(run, now_ms)  # first, or what is abandoned would be released
    for attempt in [one for one in run.outbox.values() if outbox.due_ms(run, one) <= now_ms]:
        if attempt.key not in run.outbox:
            continue  # given up with one of those before it
        if attempt.status is AttemptStatus.PENDING:
            run, more = outbox.issue(run, attempt, now_ms)
            intents += more
        else:
            reason = f"no answer in {outbox.allowed_ms(run, attempt) / 1000:g} s"
            run, more = failed(run, attempt, reason, now_ms, status=AttemptStatus.SILENT)
            intents += more
    return run, _still_meant(run, intents)


def end(run: Run, phase: Phase, reason: str, now_ms: int) -> Step:
    """The run is over; whatever is still under way is abandoned."""
    for attempt in run.outbox.values():
        run = outbox.close(run, attempt, AttemptStatus.ABANDONED, f"the run is {phase}", now_ms)
    run = replace(run, phase=phase, reason=reason, ended_ms=now_ms)
    return run, (RunEnded(run=run.spec.run),)


# --- what can be asked ------------------------------------------------------------------------


def due_times(run: Run) -> Iterator[int]:
    """When time alone changes something in this run, Unix ms."""
    for attempt in run.outbox.values():
        yield outbox.due_ms(run, attempt)
    if run.phase is Phase.TRAINING and _round_deadline_ms(run):
        yield _round_deadline_ms(run)


# --- how ----------------------------------------------------------------------------------------


def _begin_round(run: Run, round_no: int, now_ms: int) -> Step:
    spec = run.spec
    chosen = choose_clients(
        (place.client for place in spec.clients),
        spec.clients_per_round,
        seed=spec.seed,
        round_no=round_no,
    )
    run = replace(
        folding.without_folds(run),
        phase=Phase.TRAINING,
        round=round_no,
        chosen=chosen,
        updates={},
        gave_up={},
        parts=(),
        ended=Grown(one for one in run.ended if one.round >= round_no - 1),
        round_started_ms=now_ms,
        invoked_ms=0,
        trained_ms=0,
    )
    clusters = {place.client: place.cluster for place in spec.clients}
    issued = [
        outbox.made(run, Kind.TRAIN, client=one, cluster=clusters[one], number=0, issued_ms=now_ms)
        for one in chosen
    ]
    run = replace(run, outbox=Buckets({**run.outbox, **{one.key: one for one in issued}}))
    return run, tuple(Invoke(run=spec.run, key=one.key) for one in issued)


def _close_training(run: Run, now_ms: int) -> Step:
    """Aggregate once nobody is being waited for, if there are enough updates."""
    if run.phase is not Phase.TRAINING:
        return run, ()
    if any(one.kind is Kind.TRAIN for one in run.outbox.values()):
        return folding.go_on(run, now_ms)
    if len(run.updates) < run.spec.min_updates:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(run.gave_up.items())[:3])
        problem = (
            f"round {run.round}: {len(run.updates)} update(s), min_updates is {run.spec.min_updates}"
            f" ({len(run.gave_up)} of {len(run.chosen)} clients gave none: {reasons})"
        )
        return end(run, Phase.FAILED, problem, now_ms)
    run = replace(run, phase=Phase.AGGREGATING, trained_ms=run.trained_ms or now_ms)
    return _aggregate(run, now_ms)


def _aggregate(run: Run, now_ms: int) -> Step:
    """Every shard; then, or at once where there is one, what they come to."""
    if sharding.complete(run):
        number = outbox.next_number(run, Kind.AGGREGATE)
        return outbox.start(run, Kind.AGGREGATE, number=number, now_ms=now_ms)
    intents: tuple[Intent, ...] = ()
    for shard in range(sharding.count(run)):
        run, more = _aggregate_shard(run, shard, now_ms)
        intents += more
    return run, intents


def _aggregate_shard(run: Run, shard: int, now_ms: int) -> Step:
    """One of them, unless somebody is still adding up for it: then when that has ended."""
    if folding.under_way(run, shard):
        return run, ()
    kind = Kind.SHARD if sharding.count(run) > 1 else Kind.AGGREGATE
    number = outbox.next_number(run, kind, shard)
    return outbox.start(run, kind, shard=shard, number=number, now_ms=now_ms)


def _cut_training_short(run: Run, now_ms: int) -> Step:
    reason = f"the round's {run.spec.round_timeout_ms / 1000:g} s were over"
    late = [one for one in run.outbox.values() if one.kind is Kind.TRAIN]
    for attempt in late:
        run = outbox.close(run, attempt, AttemptStatus.ABANDONED, reason, now_ms)
    run = replace(run, gave_up=Buckets({**run.gave_up, **{one.client: reason for one in late}}))
    return _close_training(run, now_ms)


def _again(run: Run, attempt: Attempt, reason: str, now_ms: int) -> Step:
    """The next attempt after one that failed, or what follows when there is none left."""
    if attempt.kind is Kind.FOLD:  # it only was to save time
        return _aggregate_shard(run, attempt.shard, now_ms) if run.phase is Phase.AGGREGATING else (run, ())
    if attempt.kind is Kind.DEPLOY:  # the platforms were tried often enough by whoever deployed
        return end(run, Phase.FAILED, f"the functions could not be deployed: {reason}", now_ms)
    failures = attempt.number + 1  # of a client all earlier ones failed, or there would be no further one
    if attempt.kind in _AGGREGATING:  # an aggregator that refused updates did its work
        failures = sum(outbox.is_failure(one) for one in outbox.ended_alike(run, attempt.kind, attempt.shard))
    if failures < run.spec.attempts_max:
        wait_ms = min(run.spec.retry_backoff_ms * 2 ** (failures - 1), BACKOFF_MS_MAX)
        return outbox.start(
            run,
            attempt.kind,
            client=attempt.client,
            cluster=attempt.cluster,
            shard=attempt.shard,
            number=attempt.number + 1,
            now_ms=now_ms,
            not_before_ms=now_ms + wait_ms,
        )
    if attempt.kind is Kind.TRAIN:
        return replace(run, gave_up=Buckets.of(run.gave_up).put(attempt.client, reason)), ()
    what = "fl_server_init" if attempt.kind is Kind.INIT else f"round {run.round}: fl_server_aggregator"
    return end(run, Phase.FAILED, f"{what} failed {failures} time(s), the last time: {reason}", now_ms)


def _refused_attempt(attempt: Attempt, command: UpdatesRefused) -> Attempt:
    if attempt.key not in command.refused:
        return attempt
    return replace(attempt, status=AttemptStatus.FAILED, reason=command.refused[attempt.key])


def _still_meant(run: Run, intents: tuple[Intent, ...]) -> tuple[Intent, ...]:
    """Without the invocation of what was given up in the same breath."""
    return tuple(one for one in intents if not isinstance(one, Invoke) or one.key in run.outbox)


def _round_deadline_ms(run: Run) -> int:
    return run.round_started_ms + run.spec.round_timeout_ms if run.spec.round_timeout_ms else 0
