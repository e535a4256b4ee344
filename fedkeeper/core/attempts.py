"""What an attempt is called, where it is carried out, and how long it may take."""

from __future__ import annotations

from fedkeeper.core.model import Kind, Run, RunSpec


def key(run: Run, kind: Kind, client: str, number: int) -> str:
    """What names an attempt everywhere, for good."""
    match kind:
        case Kind.DEPLOY:
            return f"{run.spec.run}/deploy/a{number}"
        case Kind.INIT:
            return f"{run.spec.run}/init/a{number}"
        case Kind.TRAIN:
            return f"{run.spec.run}/r{run.round}/{client}/a{number}"
        case Kind.AGGREGATE:
            return f"{run.spec.run}/r{run.round}/aggregate/s0/a{number}"


def timeout_ms(spec: RunSpec, kind: Kind) -> int:
    """How long one attempt may take."""
    match kind:
        case Kind.DEPLOY:
            return spec.deploy_timeout_ms
        case Kind.TRAIN:
            return spec.client_timeout_ms
        case Kind.INIT | Kind.AGGREGATE:
            return spec.server_timeout_ms
