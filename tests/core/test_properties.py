"""What holds for every history of commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkeeper.core.machine import apply, next_due_ms
from fedkeeper.core.model import ClaimConductor, Command, Phase, State, Tick
from fedkeeper.core.outbox import deadline_ms
from fedkeeper.replication import codec
from tests.core.histories import histories, play
from tests.core.invariants import check_step
from tests.strategies import commands


def replay(state: State, commands: Iterable[Command]) -> State:
    """The state after `commands`."""
    for command in commands:
        state = apply(state, command).state
    return state


@given(st.lists(commands, max_size=20))
def test_no_command_makes_it_raise(history):
    """Not even when nothing fits anything: it would stop the log of every replica."""
    state = State()
    for command in history:
        applied = apply(state, command)
        check_step(state, command, applied)
        state = applied.state


@settings(max_examples=100)
@given(histories)
def test_every_step_keeps_the_rules(history):
    """The rules are in invariants.py; here the histories go deep, with odd values on the way."""
    state = State()
    done, applied = play(history)
    for command, one in zip(done, applied, strict=True):
        check_step(state, command, one)
        state = one.state


@settings(max_examples=60)
@given(history=histories, cut=st.integers(0, 30))
def test_a_snapshot_at_any_point_changes_nothing(history, cut):
    """Nor does writing the commands and reading them again: the same state, and the same intents."""
    done, applied = play(history)
    lines = [codec.encode(command) for command in done]
    restored = codec.decode_state(codec.encode_state(replay(State(), done[:cut])))
    for line, expected in zip(lines[cut:], applied[cut:], strict=False):
        again = apply(restored, codec.decode(line))
        assert again == expected
        restored = again.state
    assert codec.encode_state(restored) == codec.encode_state(applied[-1].state)


@settings(max_examples=100)
@given(histories)
def test_a_takeover_noted_once_decides_as_one_noted_in_every_attempt(history):
    """The same intents, rejections and ends of attempts; only where the times stand differs."""
    done, _ = play(history)
    states = {True: State(), False: State()}
    for command in done:
        both = []
        for resumes, state in states.items():
            same = replace(command, resumes=resumes) if isinstance(command, ClaimConductor) else command
            one = apply(state, same)
            states[resumes] = one.state
            both.append((one.intents, one.rejected, next_due_ms(one.state), _told(one.state)))
        assert both[0] == both[1]


def _told(state: State) -> list[object]:
    return [
        (
            {key: (one.status, deadline_ms(run, one)) for key, one in run.outbox.items()},
            [(one.key, one.status, one.reason, one.sent_ms, one.ended_ms) for one in run.ended],
            run.history,
            run.phase,
            run.reason,
        )
        for run in state.runs.values()
    ]


@settings(max_examples=100)
@given(histories)
def test_an_accepted_answer_is_accepted_once(history):
    """Told again, at once or at the end, it is rejected with a reason."""
    done, applied = play(history)
    last = applied[-1].state
    for command, one in zip(done, applied, strict=True):
        if hasattr(command, "key") and type(command).__name__ != "InvocationSent" and not one.rejected:
            assert apply(one.state, command).rejected
            assert apply(last, command).rejected


@settings(max_examples=100)
@given(histories)
def test_time_alone_ends_every_run(history):
    """With nobody answering any more, deadlines and attempts are used up, within a bound."""
    _, applied = play(history)
    state = applied[-1].state
    for run in state.runs.values():
        if run.spec.attempts_max > 3:
            return
    for _ in range(100):
        due_ms = next_due_ms(state)
        if due_ms is None:
            break
        command = Tick(epoch=state.epoch, at_ms=due_ms)
        one = apply(state, command)
        check_step(state, command, one)
        assert one.state != state, "due, and nothing came of it: the conductor would spin"
        state = one.state
    assert all(
        run.phase not in (Phase.DEPLOYING, Phase.INITIALISING, Phase.TRAINING) for run in state.runs.values()
    )
    assert next_due_ms(state) is None


class DeepEnoughError(Exception):
    """Every phase and several rounds were met."""


def test_the_histories_go_deep():
    """They reach every phase and several rounds, or the properties above would prove little."""
    reached = set()

    @settings(max_examples=600, derandomize=True, phases=[HypothesisPhase.generate])
    @given(histories)
    def collect(history):
        for one in play(history)[1]:
            reached.update((run.phase, len(run.history)) for run in one.state.runs.values())
        phases, rounds = {phase for phase, _ in reached}, {number for _, number in reached}
        if phases == set(Phase) and {0, 1, 2} <= rounds:
            raise DeepEnoughError

    with pytest.raises(DeepEnoughError):
        collect()
