"""What the state asks for: effects for the conductor to carry out, and news for the reports."""

from __future__ import annotations

from dataclasses import dataclass

from fedkeeper.core.values import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoke:
    """Carry this attempt out: deploy, or invoke its function. It is in the outbox of its run under `key`."""

    run: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Weights and updates of rounds below `before_round` are no longer needed by the core."""

    run: str
    before_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCommitted:
    """For the reports: a round is done."""

    run: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """For the reports: the run has ended, see its phase."""

    run: str


Intent = Invoke | Prune | RoundCommitted | RunEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply` returns. `rejected` says why a command changed nothing; empty if it did its work."""

    state: State
    intents: tuple[Intent, ...] = ()
    rejected: str = ""
