"""Decisions that are a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkeeper.core.machine import apply, next_due_ms
from fedkeeper.core.model import AttemptStatus, ClaimConductor, InvocationFailed, State, SubmitRun, Tick
from fedkeeper.core.selection import choose_clients
from fedkeeper.core.stopping import faults, reached_the_end
from tests.core.test_transcripts import _spec
from tests.strategies import texts

SPEC = _spec("m", {})


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"run": ""}, "run name '' is empty or has a slash"),
        ({"run": "a/b"}, "run name 'a/b' is empty or has a slash"),
        ({"clients": ()}, "no clients"),
        ({"clients": SPEC.clients[:1] * 2}, "a client is named twice"),
        ({"clients": (replace(SPEC.clients[0], client="a/s0"), *SPEC.clients[1:])}, "has a slash"),
        ({"rounds_max": 0}, "rounds_max is 0"),
        ({"attempts_max": 0}, "attempts_max is 0"),
        ({"min_updates": 0}, "min_updates is 0"),
        ({"min_updates": 4}, "min_updates is 4, must be 1 to clients_per_round (3)"),
        ({"clients_per_round": 4}, "clients_per_round is 4, there are 3 clients"),
        ({"client_timeout_ms": 0}, "a timeout is below 1 ms"),
        ({"server_timeout_ms": 0}, "a timeout is below 1 ms"),
        ({"round_timeout_ms": -1}, "a time is negative"),
        ({"retry_backoff_ms": -1}, "a time is negative"),
    ],
)
def test_a_spec_that_can_never_run_is_refused(changed, problem):
    """With the reason; the machine starts nothing."""
    spec = replace(SPEC, **changed)
    assert problem in faults(spec)
    assert bool(faults(spec)) == bool(problem)
    assert bool(apply(State(), SubmitRun(spec=spec, at_ms=1)).state.runs) != bool(problem)


@pytest.mark.parametrize(
    ("round_no", "accuracy", "target", "ends"),
    [
        (1, 0.89, 0.9, False),
        (1, 0.9, 0.9, True),
        (1, None, 0.9, False),
        (1, 1.0, None, False),
        (2, None, None, True),
        (3, 0.0, 0.9, True),
    ],
)
def test_a_run_ends_at_its_target_or_after_its_last_round(round_no, accuracy, target, ends):
    """`rounds_max` is 2."""
    spec = replace(SPEC, target_accuracy=target)
    assert reached_the_end(spec, round_no=round_no, accuracy=accuracy) is ends


def test_each_further_attempt_waits_twice_as_long():
    """From `retry_backoff_ms`, up to a minute, and no more attempts than `attempts_max`."""
    spec = replace(SPEC, attempts_max=5, retry_backoff_ms=9_000)
    state = apply(State(), SubmitRun(spec=spec, at_ms=0)).state
    waits = []
    while state.runs["m"].outbox:
        (attempt,) = state.runs["m"].outbox.values()
        if attempt.status is AttemptStatus.PENDING:
            waits.append(attempt.not_before_ms - state.now_ms)
            assert next_due_ms(state) == attempt.not_before_ms
            state = apply(state, Tick(epoch=0, at_ms=attempt.not_before_ms)).state
        else:
            failed = InvocationFailed(key=attempt.key, reason="no", epoch=0, at_ms=state.now_ms)
            state = apply(state, failed).state
    assert waits == [9_000, 18_000, 36_000, 60_000]


def test_nothing_is_due_without_runs():
    """The conductor may sleep."""
    assert next_due_ms(State()) is None


def test_the_clock_never_goes_back():
    """A new conductor's clock may be behind."""
    state = apply(State(), ClaimConductor(keeper="k1", expected_epoch=0, at_ms=5_000)).state
    assert apply(state, Tick(epoch=1, at_ms=4_000)).state.now_ms == 5_000


def test_every_version_draws_the_same_clients():
    """These were drawn by version 0.1: a run that is resumed by a later one must go on with them."""
    clients = [f"client_{number}" for number in range(10)]
    drawn = [choose_clients(clients, 3, seed=42, round_no=round_no) for round_no in (1, 2, 3)]
    assert drawn == [
        ("client_4", "client_6", "client_8"),
        ("client_0", "client_2", "client_5"),
        ("client_4", "client_5", "client_8"),
    ]


@given(
    clients=st.lists(texts, unique=True, max_size=8),
    count=st.integers(0, 9),
    seed=st.integers(),
    round_no=st.integers(1, 99),
)
def test_a_draw_is_of_distinct_clients_in_the_order_given(clients, count, seed, round_no):
    """As many as were asked for, or all."""
    drawn = choose_clients(clients, count, seed=seed, round_no=round_no)
    assert len(drawn) == min(count, len(clients))
    assert list(drawn) == [client for client in clients if client in drawn]


def test_every_client_is_drawn_about_equally_often():
    """3 of 10 in 1000 rounds: 300 times each, give or take six standard deviations (14.5)."""
    clients = [f"client_{number}" for number in range(10)]
    drawn = [one for no in range(1000) for one in choose_clients(clients, 3, seed=7, round_no=no)]
    assert all(abs(drawn.count(client) - 300) < 87 for client in clients)
