"""Which run a start is about."""

from dataclasses import dataclass

import pytest

from fedkeeper.core.model import Phase
from fedkeeper.errors import RunChanged
from fedkeeper.keeper.runs import KEPT_RUNS, plan_start


@dataclass
class Summary:
    """A run, as far as it matters here."""

    run: str
    submitted_ms: int
    phase: Phase = Phase.TRAINING
    digest: str = "d"
    round: int = 1


def known(*runs: str, stopped: tuple[str, ...] = ()) -> list[Summary]:
    """Runs, submitted in this order, of which some were stopped."""
    return [
        Summary(run, at, Phase.STOPPED if run in stopped else Phase.TRAINING) for at, run in enumerate(runs)
    ]


def test_the_first_start_begins_run_one():
    """Names count from 1."""
    start = plan_start((), "exp", "d", fresh=False, taken=())
    assert (start.run, start.resumed) == ("exp-1", False)


def test_an_unfinished_run_of_the_same_experiment_is_resumed():
    """The same command goes on where it was."""
    start = plan_start(known("exp-1"), "exp", "d", fresh=False, taken=())
    assert (start.run, start.resumed) == ("exp-1", True)


def test_after_an_ended_run_the_next_number_is_taken():
    """Also numbers that only a log folder remembers are not used again."""
    start = plan_start(known("exp-1", stopped=("exp-1",)), "exp", "d", fresh=False, taken=("exp-7",))
    assert start.run == "exp-8"


def test_an_unfinished_run_with_another_config_is_not_touched():
    """The error names the run and both ways out."""
    with pytest.raises(RunChanged, match="exp-1 is unfinished") as caught:
        plan_start(known("exp-1"), "exp", "other", fresh=False, taken=())
    assert "--fresh" in caught.value.hint


def test_only_the_latest_ended_runs_are_kept():
    """The log and the store do not grow with every run that ever was."""
    names = tuple(f"exp-{number}" for number in range(1, KEPT_RUNS + 4))
    start = plan_start(known(*names, stopped=names), "exp", "d", fresh=False, taken=())
    assert start.forget == ("exp-1", "exp-2", "exp-3")


def test_fresh_abandons_what_is_unfinished():
    """Only runs of this experiment's name."""
    start = plan_start(known("exp-1", "exp2-1"), "exp", "other", fresh=True, taken=())
    assert start.abandon == ("exp-1",)
    assert start.run == "exp-2"


def test_new_begins_another_run_beside_an_unfinished_one():
    """Whatever its config is; nothing is abandoned."""
    start = plan_start(known("exp-1"), "exp", "other", fresh=False, new=True, taken=())
    assert (start.run, start.resumed, start.abandon) == ("exp-2", False, ())
