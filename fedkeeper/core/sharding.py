"""Over how many aggregators a round's aggregation is spread, and which of their shards are there."""

from __future__ import annotations

from fedkeeper.core.model import Part, Run

SHARDS_MAX = 256


def count(run: Run) -> int:
    """How many shards the new weights of the run's current round have. The same throughout the round.

    As many as `spec.shards` says. If that is 0, as few as make each of them at most `shard_bytes_max` of the
    weights, and have each aggregator read at most `shard_updates_bytes_max` of the updates of all that were
    asked; but SHARDS_MAX at most.
    """
    spec = run.spec
    if spec.shards:
        return spec.shards
    nbytes = run.weights.nbytes if run.weights is not None else 0
    by_model = _ceil(nbytes, spec.shard_bytes_max)
    by_updates = _ceil(nbytes * len(run.chosen), spec.shard_updates_bytes_max)
    return max(1, min(SHARDS_MAX, max(by_model, by_updates)))


def in_order(run: Run) -> tuple[Part, ...]:
    """The shards that are there, by number."""
    return tuple(sorted(run.parts, key=lambda part: part.shard))


def complete(run: Run) -> bool:
    """Whether the weights can be put together."""
    return len(run.parts) == count(run)


def _ceil(total: int, each: int) -> int:
    return -(-total // each)
