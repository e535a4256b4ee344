"""Faults that the simulation must find: each takes one guard out of the product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedkeeper.core import folding, kv, machine, rounds
from fedkeeper.core.model import AttemptStatus, Kind, Run
from fedkeeper.keeper.lease import Lease

Patch = Callable[[pytest.MonkeyPatch], None]


def _no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    """A deposed conductor's commands count."""
    patch.setattr(machine, "_fence", lambda _state, _command: "")


def _no_key_check(patch: pytest.MonkeyPatch) -> None:
    """An answer counts although its key is not outstanding: told twice, or too late."""

    def outstanding(run: Run, key: str) -> Any:
        late = next((one for one in run.ended if one.key == key), None)
        return run.outbox.get(key) or (late and replace(late, status=AttemptStatus.RUNNING))

    patch.setattr(machine, "_outstanding", outstanding)


def _lease_ignored(patch: pytest.MonkeyPatch) -> None:
    """A conductor acts for as long as it has not heard that it is none any more."""
    patch.setattr(Lease, "held", lambda self: not self._revoked)


def _shard_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """A shard that is told of twice counts twice, so that one of the others is not waited for."""
    outstanding = machine._outstanding

    def late(run: Run, key: str) -> Any:
        told = next((one for one in run.ended if one.key == key and one.kind is Kind.SHARD), None)
        return outstanding(run, key) or (told and replace(told, status=AttemptStatus.RUNNING))

    patch.setattr(machine, "_outstanding", late)


def _no_base_check(patch: pytest.MonkeyPatch) -> None:
    """An aggregation of other weights, or of other updates, is committed."""
    patch.setattr(rounds, "misfit", lambda _run, _command: "")


def _double_commit(patch: pytest.MonkeyPatch) -> None:
    """A round that has been committed begins again, and is committed again."""
    begin = rounds._begin_round

    def again(run: Run, round_no: int, now_ms: int) -> Any:
        return begin(run, max(1, round_no - (round_no == 3)), now_ms)

    patch.setattr(rounds, "_begin_round", again)


def _no_deduplication(patch: pytest.MonkeyPatch) -> None:
    """A request that comes again writes again."""
    patch.setattr(kv, "_repeated", lambda _state, _request: None)


def _no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """A write counts whatever version it expected."""
    problem = kv._problem

    def careless(state: Any, command: Any, old: Any, grows: int) -> str:
        return problem(state, replace(command, expected=None), old, grows)

    patch.setattr(kv, "_problem", careless)


def _late_update_in_early_sums(patch: pytest.MonkeyPatch) -> None:
    """Updates of clients behind one that is still awaited are added up as if they were the first."""

    def settle(run: Run) -> Run:
        return replace(run, settled=len(run.chosen), ready=len(run.updates))

    patch.setattr(folding, "_settle", settle)


MUTATIONS: Mapping[str, Patch] = {
    "no epoch check": _no_epoch_check,
    "no key check": _no_key_check,
    "a shard counted twice": _shard_counted_twice,
    "lease ignored": _lease_ignored,
    "no check of what was averaged": _no_base_check,
    "double commit of a round": _double_commit,
    "early sums of later updates": _late_update_in_early_sums,
    "no de-duplication of requests": _no_deduplication,
    "no compare-and-set": _no_compare_and_set,
}
