"""When a run is done, and what a round must have."""

from __future__ import annotations

from fedkeeper.core.model import RunSpec
from fedkeeper.core.sharding import SHARDS_MAX


def reached_the_end(spec: RunSpec, *, round_no: int, accuracy: float | None) -> bool:
    """True after the last round, or when a round's accuracy is at the target or above."""
    if round_no >= spec.rounds_max:
        return True
    return spec.target_accuracy is not None and accuracy is not None and accuracy >= spec.target_accuracy


def faults(spec: RunSpec) -> str:
    """Why a spec can never run; empty if it can. What the config checks as well, for specs from elsewhere."""
    names = [place.client for place in spec.clients]
    checks = (
        (not spec.run or "/" in spec.run, f"run name {spec.run!r} is empty or has a slash"),
        (not names, "no clients"),
        (len(set(names)) != len(names), "a client is named twice"),
        # "aggregate/s0" would take the aggregator's keys.
        (any(not name or "/" in name for name in names), "a client's name is empty or has a slash"),
        (spec.rounds_max < 1, f"rounds_max is {spec.rounds_max}, must be 1 or more"),
        (spec.attempts_max < 1, f"attempts_max is {spec.attempts_max}, must be 1 or more"),
        (
            not 1 <= spec.min_updates <= spec.clients_per_round,
            f"min_updates is {spec.min_updates}, must be 1 to clients_per_round ({spec.clients_per_round})",
        ),
        (
            spec.clients_per_round > len(names),
            f"clients_per_round is {spec.clients_per_round}, there are {len(names)} clients",
        ),
        (spec.client_timeout_ms < 1 or spec.server_timeout_ms < 1, "a timeout is below 1 ms"),
        (
            min(spec.round_timeout_ms, spec.retry_backoff_ms, spec.deploy_timeout_ms) < 0,
            "a time is negative",
        ),
        (min(spec.early_updates_min, spec.early_bytes_min) < 0, "a size for adding up early is negative"),
        (not 0 <= spec.shards <= SHARDS_MAX, f"shards is {spec.shards}, must be 0 to {SHARDS_MAX}"),
        (
            spec.shards == 0 and min(spec.shard_bytes_max, spec.shard_updates_bytes_max) < 1,
            "shards is 0, and a size of the rule for their number is below 1 byte",
        ),
    )
    return "; ".join(problem for wrong, problem in checks if wrong)
