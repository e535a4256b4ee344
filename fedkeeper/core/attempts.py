"""What an attempt is called, where it is carried out, and how long it may take."""

from __future__ import annotations

from fedkeeper.core import sharding
from fedkeeper.core.model import Kind, Run, RunSpec


def key(run: Run, kind: Kind, client: str, shard: int, number: int) -> str:
    """What names an attempt everywhere, for good.

    "mnist-1/deploy/a0", "mnist-1/init/a0", "mnist-1/r3/client_7/a0"; "mnist-1/r3/aggregate/s0/a0" aggregates
    the first shard, or all where there is one; "mnist-1/r3/aggregate/join/a0" puts several together;
    "mnist-1/r3/aggregate/s0/fold/a0" adds up first updates.
    """
    match kind:
        case Kind.DEPLOY:
            return f"{run.spec.run}/deploy/a{number}"
        case Kind.INIT:
            return f"{run.spec.run}/init/a{number}"
        case Kind.TRAIN:
            return f"{run.spec.run}/r{run.round}/{client}/a{number}"
        case Kind.AGGREGATE:
            what = "join" if sharding.count(run) > 1 else "s0"
            return f"{run.spec.run}/r{run.round}/aggregate/{what}/a{number}"
        case Kind.FOLD:
            return f"{run.spec.run}/r{run.round}/aggregate/s{shard}/fold/a{number}"
        case Kind.SHARD:
            return f"{run.spec.run}/r{run.round}/aggregate/s{shard}/a{number}"


def timeout_ms(spec: RunSpec, kind: Kind) -> int:
    """How long one attempt may take."""
    match kind:
        case Kind.DEPLOY:
            return spec.deploy_timeout_ms
        case Kind.TRAIN:
            return spec.client_timeout_ms
        case Kind.INIT | Kind.AGGREGATE | Kind.SHARD | Kind.FOLD:
            return spec.server_timeout_ms
