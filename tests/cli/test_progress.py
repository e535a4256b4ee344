"""The view of a run: numbers and lines from the core's values, whatever shows them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedkeeper.cli.progress import deployed_line, new_lines, number, outcome, parts, round_line, span, view
from fedkeeper.cli.show import Screen, clean, live_view, status_line, time_table
from fedkeeper.core.model import InvocationSent, Phase
from fedkeeper.deployment import Line, LineState
from fedkeeper.replication.memory import MemoryLog
from tests.cli.fakes import Driver, Script, spec


async def run_after(steps: int, script: Script | None = None, **changes: object):
    """The run after so many rounds of answers, and the time by then."""
    log = MemoryLog()
    driver = Driver(log, script or Script())
    await driver.submit(spec(**({"deploy_timeout_ms": 0} | changes)))
    for _ in range(steps):
        await driver.step("mnist-1")
    return log.state.runs["mnist-1"], log, driver


async def test_before_the_first_round_nothing_is_known():
    """No accuracy, no time left, no fraction."""
    run, _, driver = await run_after(0)
    seen = view(run, driver.at_ms)
    assert (seen.phase, seen.round, seen.done, seen.left_s) == (Phase.INITIALISING, 0, 0, None)
    assert (seen.accuracy, seen.best, seen.fraction) == (None, None, 0.0)


async def test_a_deployment_is_seen_as_such():
    """While it lasts, on a terminal; afterwards what it did, in a line."""
    before, _, driver = await run_after(0, deploy_timeout_ms=60_000)
    assert live_view(view(before, driver.at_ms + 12_000)).plain == "deploying the functions: 12.0 s"
    after, _, _ = await run_after(1, deploy_timeout_ms=60_000)
    assert new_lines(before, after)[0] == "5 function(s): 5 created"
    assert new_lines(after, after) == []
    assert deployed_line("12 unchanged, 1 created") == "13 function(s): 12 unchanged, 1 created"


async def test_clients_are_counted_by_how_they_stand():
    """One runs, one waits for its second attempt, one is done."""
    run, log, driver = await run_after(1, Script(failing={"client_1": "bad"}))
    for attempt in tuple(run.outbox.values()):
        if attempt.client == "client_2":
            await log.propose(
                InvocationSent(key=attempt.key, activation_id="x", epoch=log.state.epoch, at_ms=driver.at_ms)
            )
            continue
        await log.propose(driver._answer(run, attempt, log.state.epoch))
    seen = view(log.state.runs["mnist-1"], driver.at_ms)

    assert (seen.chosen, seen.done, seen.running, seen.waiting, seen.failed) == (3, 1, 1, 1, 1)
    assert status_line(seen).startswith("1/3 clients done, 1 running, 1 failed, 1 waiting | ")


async def test_the_time_left_is_the_mean_of_the_rounds_so_far():
    """At most: the target may be reached before the last round."""
    run, _, _ = await run_after(3)
    assert len(run.history) == 1
    took_ms = run.history[0].aggregated_ms - run.history[0].started_ms
    seen = view(run, run.round_started_ms)
    assert seen.left_s == pytest.approx(2 * took_ms / 1000)
    assert view(run, run.round_started_ms + 10 * took_ms).left_s == pytest.approx(took_ms / 1000)


async def test_the_fraction_never_falls_and_ends_at_one():
    """A bar that goes back is worse than none."""
    log = MemoryLog()
    driver = Driver(log, Script(failing={"client_1": "bad"}))
    fractions = []
    log.listen(
        lambda _, applied: (
            fractions.append(view(applied.state.runs["mnist-1"], driver.at_ms).fraction)
            if "mnist-1" in applied.state.runs
            else None
        )
    )
    await driver.submit(spec())
    while await driver.step("mnist-1"):
        pass
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


async def test_the_parts_of_a_round_add_up_to_the_whole():
    """`other` is what neither platforms nor aggregator account for."""
    run, _, _ = await run_after(20)
    *shares, whole = parts(run)
    assert [one.name for one in shares] == ["invoke", "train", "aggregate", "evaluate", "other"]
    assert sum(one.total_s for one in shares) == pytest.approx(whole.total_s)
    assert whole.mean_s == pytest.approx(whole.total_s / 3)


async def test_a_round_is_one_line():
    """The snapshot that README and users grep for."""
    run, _, _ = await run_after(20)
    assert round_line(run.history[0], 3) == (
        "round 1/3 done: accuracy 0.5000, loss 1.0000, 3/3 updates, 0 failed, 0.8 s"
    )


async def test_tables_fit_and_are_ascii():
    """Eighty columns, no line drawing: they go into logs and mails."""
    run, _, _ = await run_after(20)
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False)
    console.print(time_table(run))
    text = out.getvalue()
    assert text.isascii()
    assert [line.rstrip() for line in text.splitlines()][:4] == [
        "wall time of the rounds, by part",
        "+-------------+--------+---------+",
        "| part        | in all | a round |",
        "+-------------+--------+---------+",
    ]


async def test_the_live_view_fits_a_narrow_terminal():
    """Two lines of at most 80 columns, or Live would smear them."""
    run, _, driver = await run_after(3, Script(failing={"client_1": "bad"}), rounds_max=10_000)
    out = io.StringIO()
    Console(file=out, width=80, highlight=False, force_terminal=False).print(
        live_view(view(run, driver.at_ms))
    )
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in lines)


async def test_how_a_run_stands_is_one_line():
    """Failed with the reason, unfinished with the round."""
    failed, _, _ = await run_after(9, Script(init_failure="no data"))
    assert outcome(failed) == "failed: fl_server_init failed 2 time(s), the last time: no data"
    unfinished, _, _ = await run_after(3)
    assert outcome(unfinished) == "unfinished: training, round 2 of at most 3"
    no_target, _, _ = await run_after(20, target_accuracy=None)
    assert outcome(no_target) == "finished: all 3 rounds"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0.0 s"), (9.54, "9.5 s"), (59.9, "59.9 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_times_are_for_people(seconds, text):
    """Two units at most."""
    assert span(seconds) == text


def test_numbers_that_are_not_there_are_a_dash():
    """Never None, never nan."""
    assert (number(None), number(0.12345)) == ("-", "0.1235")


def test_control_characters_never_reach_the_terminal():
    """What a function wrote could move the cursor or set the title."""
    assert clean("a\x1b]0;evil\x07b\nc\u202e") == "a ]0;evil b c "


def test_a_functions_line_has_state_place_time_and_problem(capsys):
    """The snapshot of one that took its time and failed."""
    line = Line(
        cluster="ow", function="f", state=LineState.FAILED, seconds=12.3, problem="no [bold]space[/bold]"
    )
    Screen().deployment(line)
    Screen().deployment(Line(cluster="ow", function="f", state=LineState.WORKING))
    assert capsys.readouterr().out == "failed    ow/f  12.3 s: no [bold]space[/bold]\n"


def test_long_lines_are_not_wrapped_where_nobody_looks(capsys):
    """A log file is searched by line."""
    Screen().line("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"
