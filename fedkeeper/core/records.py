"""What is kept of a round for good."""

from __future__ import annotations

import math

from fedkeeper.core.model import RoundAggregated, RoundRecord, Run, Update
from fedkeeper.core.outbox import is_failure


def ordered_updates(run: Run) -> tuple[Update, ...]:
    """The round's updates in the order in which they are averaged: that of the clients in the spec."""
    order = {place.client: index for index, place in enumerate(run.spec.clients)}
    return tuple(sorted(run.updates.values(), key=lambda update: order[update.client]))


def record(run: Run, command: RoundAggregated, now_ms: int) -> RoundRecord:
    """A round that is being committed."""
    updates = ordered_updates(run)
    mine = [one for one in run.ended if one.round == run.round]
    losses = [(update.loss, update.samples) for update in updates if update.loss is not None]
    weight = sum(samples for _, samples in losses)
    train_loss = sum(loss * samples for loss, samples in losses) / weight if weight else math.nan
    spent_s = command.aggregate_s + max((part.aggregate_s for part in run.parts), default=0.0)
    return RoundRecord(
        round=run.round,
        weights=command.weights,
        loss=command.loss,
        accuracy=command.accuracy,
        clients=run.chosen,
        updates=tuple(update.key for update in updates),
        samples=sum(update.samples for update in updates),
        failures=sum(map(is_failure, mine)),
        gave_up=len(run.gave_up),
        update_bytes=sum(update.ref.nbytes for update in updates),
        train_loss=train_loss if math.isfinite(train_loss) else None,  # the sum of huge ones is infinite
        started_ms=run.round_started_ms,
        invoked_ms=run.invoked_ms or run.trained_ms,
        trained_ms=run.trained_ms,
        aggregated_ms=now_ms,
        aggregate_s=spent_s if math.isfinite(spent_s) else command.aggregate_s,
        evaluate_s=command.evaluate_s,
    )
