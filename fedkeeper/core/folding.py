"""Adding up a round's first updates while the others are still being waited for.

The sum of the updates is made in the order of the clients, so what can be added early are those of the first
clients, up to the first one that has neither handed in nor given up. Each shard does it by itself.
"""

from __future__ import annotations

from dataclasses import replace

from fedkeeper.core import outbox, sharding
from fedkeeper.core.model import Attempt, Fold, Intent, Kind, Phase, Run
from fedkeeper.core.outbox import Step


def go_on(run: Run, now_ms: int) -> Step:
    """Have what has come together added up, if it is worth it, shard by shard.

    It is when at least `early_updates_min` updates with `early_bytes_min` bytes are not in a shard's sums.
    """
    spec = run.spec
    nbytes = run.weights.nbytes if run.weights is not None else 0
    if not spec.early_updates_min or nbytes * len(run.chosen) < spec.early_bytes_min:
        return run, ()
    run = _settle(run)
    shards = sharding.count(run)
    least = min((fold.updates for fold in run.folds), default=0) if len(run.folds) == shards else 0
    if not _worth_it(run, least, nbytes):
        return run, ()
    busy = {one.shard for one in run.outbox.values() if one.kind is Kind.FOLD}
    intents: tuple[Intent, ...] = ()
    for shard in range(shards):
        before = outbox.ended_alike(run, Kind.FOLD, shard)
        hopeless = sum(map(outbox.is_failure, before)) >= spec.attempts_max
        if shard in busy or hopeless or not _worth_it(run, in_sums(run, shard), nbytes):
            continue
        run, more = outbox.start(
            run, Kind.FOLD, shard=shard, number=len(before), updates=run.ready, now_ms=now_ms
        )
        intents += more
    return run, intents


def waits_for_others(run: Run, client: str) -> bool:
    """Whether an update of `client` changes nothing yet: the first client that is awaited is another one.

    Then nothing more can be added up, and training goes on. An update costs the same however many there are.
    """
    if run.phase is not Phase.TRAINING or run.settled >= len(run.chosen):
        return False
    first = run.chosen[run.settled]
    return first != client and first not in run.updates and first not in run.gave_up


def in_sums(run: Run, shard: int) -> int:
    """How many of the round's updates, from the first on, this shard's sums hold."""
    return next((fold.updates for fold in run.folds if fold.shard == shard), 0)


def under_way(run: Run, shard: int) -> bool:
    """Whether somebody is adding up for this shard."""
    return any((one.kind, one.shard) == (Kind.FOLD, shard) for one in run.outbox.values())


def with_fold(run: Run, attempt: Attempt, fold: Fold) -> Run:
    """The shard's sums go this far now."""
    others = tuple(one for one in run.folds if one.shard != attempt.shard)
    return replace(run, folds=(*others, fold))


def without_folds(run: Run) -> Run:
    """Nothing was added up."""
    return replace(run, folds=(), settled=0, ready=0)


def _worth_it(run: Run, folded: int, nbytes: int) -> bool:
    new = run.ready - folded
    return new >= run.spec.early_updates_min and new * nbytes >= run.spec.early_bytes_min


def _settle(run: Run) -> Run:
    """Count the first clients of which nothing more is to come, and the updates among them."""
    settled, ready = run.settled, run.ready
    while settled < len(run.chosen):
        client = run.chosen[settled]
        if client not in run.updates and client not in run.gave_up:
            break
        settled, ready = settled + 1, ready + (client in run.updates)
    return run if settled == run.settled else replace(run, settled=settled, ready=ready)
