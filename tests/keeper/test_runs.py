"""Which run a start is about."""

import pytest

from fedkeeper.core.machine import apply
from fedkeeper.core.model import State, StopRun, SubmitRun
from fedkeeper.errors import RunChanged
from fedkeeper.keeper.runs import KEPT_RUNS, plan_start
from tests.keeper.world import spec


def state_with(*runs: str, digest: str = "d", stopped: tuple[str, ...] = ()) -> State:
    """A state in which `runs` were submitted and some stopped."""
    state = State()
    for at, run in enumerate(runs):
        state = apply(state, SubmitRun(spec=spec(run, digest=digest), at_ms=at)).state
    for run in stopped:
        state = apply(state, StopRun(run=run, reason="test", at_ms=99)).state
    return state


def test_the_first_start_begins_run_one():
    """Names count from 1."""
    start = plan_start(State(), "exp", "d", fresh=False, taken=())
    assert (start.run, start.resumed) == ("exp-1", False)


def test_an_unfinished_run_of_the_same_experiment_is_resumed():
    """The same command goes on where it was."""
    start = plan_start(state_with("exp-1"), "exp", "d", fresh=False, taken=())
    assert (start.run, start.resumed) == ("exp-1", True)


def test_after_an_ended_run_the_next_number_is_taken():
    """Also numbers that only a log folder remembers are not used again."""
    start = plan_start(state_with("exp-1", stopped=("exp-1",)), "exp", "d", fresh=False, taken=("exp-7",))
    assert start.run == "exp-8"


def test_an_unfinished_run_with_another_config_is_not_touched():
    """The error names the run and both ways out."""
    with pytest.raises(RunChanged, match="exp-1 is unfinished") as caught:
        plan_start(state_with("exp-1"), "exp", "other", fresh=False, taken=())
    assert "--fresh" in caught.value.hint


def test_only_the_latest_ended_runs_are_kept():
    """The log and the store do not grow with every run that ever was."""
    names = tuple(f"exp-{number}" for number in range(1, KEPT_RUNS + 4))
    start = plan_start(state_with(*names, stopped=names), "exp", "d", fresh=False, taken=())
    assert start.forget == ("exp-1", "exp-2", "exp-3")


def test_fresh_abandons_what_is_unfinished():
    """Only runs of this experiment's name."""
    start = plan_start(state_with("exp-1", "exp2-1"), "exp", "other", fresh=True, taken=())
    assert start.abandon == ("exp-1",)
    assert start.run == "exp-2"
