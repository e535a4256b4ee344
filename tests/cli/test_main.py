"""main.py: one action, a line per event, a table at the end, errors with code and hint."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedkeeper.deployment import Target
from fedkeeper.errors import RequestRefused, RunChanged, StoreUnavailable
from tests.cli.fakes import REAL, SECRET, TARGETS, Driver, Script, spec


@pytest.mark.parametrize(
    "arguments", [[], ["-d", "-s"], ["-d", "-r"], ["--deploy", "--remove", "--start_fl"]]
)
def test_exactly_one_action_is_asked_for(call, arguments):
    """None or several: a usage error, before anything is opened."""
    result = call("main", *arguments)
    assert result.exit_code == 2
    assert "-d (deploy), -r (remove), -s (start), -k NAME (be a keeper)" in result.stderr


def test_a_missing_config_says_to_copy_the_sample(call, tmp_path):
    """The default is config.yaml."""
    (tmp_path / "config.yaml").unlink()
    result = call("main", "-s")
    assert result.exit_code == 2
    assert "config.yaml" in result.stderr
    assert "copy the sample" in result.stderr


def test_faults_of_the_config_are_shown_with_exit_code_2(call, tmp_path):
    """What `load` says comes out as it is, on stderr."""
    (tmp_path / "config.yaml").write_text("name: x\n")
    result = call("main", "-s")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "scenarios" in result.stderr
    assert "Traceback" not in result.output


def test_deploy_brings_clients_and_server_functions_a_line_each(call, world):
    """-d: each client under its name on its cluster; the second time nothing changes."""
    first = call("main", "-d")
    assert first.exit_code == 0, first.output
    assert sorted(line.split()[:2] for line in first.stdout.splitlines()[:-1]) == [  # slow ones: and how long
        ["created", "gcf_a/client_2"],
        ["created", "ow_a/client_0"],
        ["created", "ow_a/fl_server_aggregator"],
        ["created", "ow_a/fl_server_init"],
        ["created", "ow_b/client_1"],
    ]
    assert first.stdout.splitlines()[-1] == "5 function(s): 5 created"
    assert call("main", "-d").stdout.splitlines()[-1] == "5 function(s): 5 unchanged"
    assert world.opened[0] == ("federated_learning", None)
    assert world.closed == 2


def test_remove_takes_them_away(call, world):
    """-r after -d leaves the platforms empty; again, all are absent, and that is no failure."""
    call("main", "-d")
    assert call("main", "-r").stdout.splitlines()[-1] == "5 function(s): 5 removed"
    assert all(not platform.functions for platform in world.platforms.values())
    again = call("main", "-r")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[-1] == "5 function(s): 5 absent"


def test_a_partial_failure_names_what_failed_and_exits_1_after_trying_all(call, world):
    """The others are deployed; problem and hint are on the screen."""
    world.platforms["ow_b"].failures["client_1"] = [
        RequestRefused("ow_b", "client_1", "memory 4096 MB exceeds 512 MB", hint="ask for less memory")
    ]
    result = call("main", "-d")
    assert result.exit_code == 1
    assert "failed    ow_b/client_1: memory 4096 MB exceeds 512 MB" in result.stdout
    assert "hint: ask for less memory" in result.stdout
    assert "Error: 1 of 5 function(s) failed: ow_b/client_1" in result.stderr
    assert sum(len(platform.functions) for platform in world.platforms.values()) == 4


def test_a_start_deploys_learns_and_ends_with_a_table(call, tmp_path):
    """Plain lines where nobody looks: one per event, then the summary, then where everything is."""
    result = call("main", "-s")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["run mnist-1 starts", "5 function(s): 5 created"]
    assert "round 1/3 started: 3 clients" in lines
    assert "round 1: aggregating 3 updates" in lines
    assert any(line.startswith("round 3/3 done: accuracy 0.9600, loss 0.3333, 3/3 updates") for line in lines)
    assert any("accuracy, best" in line and "0.9600" in line for line in lines)
    assert any("train" in line and " s |" in line for line in lines)
    assert "finished: the target accuracy 0.9500 is reached" in lines
    assert f"logs:  {tmp_path / 'logs' / 'mnist-1'}" in result.stdout
    assert (tmp_path / "logs" / "mnist-1" / "model.safetensors").read_bytes() == b"weights"


def test_embedded_keepers_write_the_events_themselves(call, tmp_path):
    """Also while nobody is attached; the command would write the same once more."""
    call("main", "-s")
    path = tmp_path / "logs/mnist-1/events.jsonl"
    assert not path.exists() or "round finished" not in path.read_text()


def test_rounds_and_failures_are_events_where_the_command_runs(call, world, tmp_path):
    """Keepers on other hosts write their own there; here, events.jsonl tells the whole story to programs."""
    world.script.failing = {"client_1": "bad rows"}
    world.script.embedded = False
    call("main", "-s")

    events = [json.loads(one) for one in (tmp_path / "logs/mnist-1/events.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round finished"]
    assert [(one["round"], one["accuracy"], one["updates"]) for one in rounds] == [
        (1, 0.5, 2),
        (2, 0.8, 2),
        (3, 0.96, 2),
    ]
    failed = [event for event in events if event["event"] == "attempt failed"]
    assert len(failed) == 6
    assert failed[0]["key"] == "mnist-1/r1/client_1/a0"
    assert failed[0]["reason"] == "bad rows"
    assert list(failed[0])[:4] == ["at", "level", "event", "run"]
    assert events[-1]["event"] == "run ended"
    assert events[-1]["run"] == "mnist-1"


def test_no_line_is_coloured_where_nobody_looks(call):
    """A log file must not hold escape sequences."""
    assert "\x1b" not in call("main", "-s").output


def test_failures_are_told_with_their_reason(call, world):
    """Which client, where, which attempt, why; the run goes on without it."""
    world.script.failing = {"client_1": "ValueError: \x1b[2J bad rows"}
    result = call("main", "-s")
    assert result.exit_code == 0
    assert "round 1: client_1 on ow_b, attempt 1: failed: ValueError:  [2J bad rows" in result.stdout
    assert "round 1: client_1 on ow_b, attempt 2: failed" in result.stdout
    assert "round 1: client_1 gave up: ValueError" in result.stdout
    assert "2/3 updates, 2 failed" in result.stdout


def test_a_failed_run_exits_1_and_says_why(call, world):
    """Summary first, then the error."""
    world.script.init_failure = "no such data"
    result = call("main", "-s")
    assert result.exit_code == 1
    assert (
        "Error: run mnist-1 failed: fl_server_init failed 2 time(s), the last time: no such data"
        in result.stderr
    )
    assert "activations.csv" in result.stderr
    assert "run mnist-1" in result.stdout


def test_an_unreached_target_is_said(call, world):
    """All rounds done is a good end, but not a silent one."""
    world.script.accuracies = (0.1, 0.2, 0.3)
    result = call("main", "-s")
    assert result.exit_code == 0
    assert "finished: all 3 rounds, target accuracy 0.9500 not reached" in result.stdout


def test_metrics_that_are_not_there_are_a_dash(call, world):
    """A loss that was not finite travels as None."""
    world.script.accuracies = (None, None, None)
    result = call("main", "-s")
    assert result.exit_code == 0
    assert "round 1/3 done: accuracy -, loss 1.0000" in result.stdout


async def test_a_resumed_run_says_so(world, tmp_path):
    """Round and accuracy so far, and no committed round is told again."""
    driver = Driver(world.log, world.script)
    await driver.submit(spec())
    while not world.log.state.runs["mnist-1"].history:
        await driver.step("mnist-1")

    result = await _in_thread(world, "-s")

    assert result.exit_code == 0, result.output
    assert "run mnist-1 resumes in round 2: 1 round(s) are done, accuracy so far 0.5000" in result.stdout
    assert "round 1/3 done" not in result.stdout
    assert "round 2/3 done" in result.stdout


def test_what_becomes_of_an_unfinished_run_is_passed_on(call, world):
    """--fresh abandons it, --new leaves it alone; neither means anything without -s, nor together."""
    assert call("main", "-s", "--fresh").exit_code == 0
    assert call("main", "-s", "--new").exit_code == 0
    assert world.started == [(True, False), (False, True)]
    assert call("main", "-d", "--fresh").exit_code == 2
    assert call("main", "-k", "k1", "--detach").exit_code == 2
    assert call("main", "-s", "--fresh", "--new").exit_code == 2


def test_embedded_keepers_are_started_for_a_run_only(call, world):
    """Who only looks on joins those that run."""
    assert call("main", "-s").exit_code == 0
    assert call("fedkeeper", "attach").exit_code == 0
    assert world.connected == ["start", "join"]


def test_errors_of_the_run_leave_with_their_code_and_hint(call, world):
    """A store that stays away ends the run; the message is the error's own."""
    world.script.breaks = StoreUnavailable("no primary for 60 s", hint="is mongod running?")
    result = call("main", "-s")
    assert result.exit_code == 1
    assert "Error: no primary for 60 s\nHint: is mongod running?\n" in result.stderr
    assert "Traceback" not in result.output
    assert world.closed == 1


def test_a_changed_config_is_exit_code_2(call, world):
    """As every fault of what the user wrote."""
    world.script.breaks = RunChanged("run mnist-1 is unfinished", hint="--fresh")
    assert call("main", "-s").exit_code == 2


def test_verbose_shows_the_traceback_as_well(call, world):
    """For whoever looks for a fault."""
    world.script.breaks = StoreUnavailable("no primary for 60 s")
    result = call("main", "-s", "-v")
    assert "Traceback" in result.stderr
    assert "Error: no primary for 60 s" in result.stderr


def test_the_unexpected_is_one_line_and_a_file(call, world, tmp_path):
    """A fault of ours: the user sees one line and where the traceback is."""
    world.script.breaks = ZeroDivisionError("division by zero")
    result = call("main", "-s")
    assert result.exit_code == 1
    assert "Error: unexpected ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.output
    (kept,) = (tmp_path / "logs").glob("error-*.txt")
    assert str(kept.relative_to(tmp_path)) in result.stderr
    assert "Traceback" in kept.read_text()


def test_an_error_inside_a_task_group_is_found(call, world):
    """asyncio wraps it; people want the error itself."""
    world.script.breaks = ExceptionGroup("tasks", [ExceptionGroup("more", [StoreUnavailable("no primary")])])
    result = call("main", "-s")
    assert result.exit_code == 1
    assert "Error: no primary" in result.stderr


def test_a_model_that_cannot_be_written_is_an_error_after_the_summary(call, world):
    """The run is finished, and its weights are in the store."""
    world.script.export = StoreUnavailable("no primary", hint="start it")
    result = call("main", "-s")
    assert result.exit_code == 1
    assert "finished: the target" in result.stdout
    assert "the model could not be written" in result.stderr
    assert "fedkeeper export" in result.stderr


def test_warnings_of_the_config_are_shown_at_each_start(call, tmp_path):
    """TLS that is not verified among them."""
    (tmp_path / "config.yaml").write_text(REAL)
    for _ in range(2):
        result = call("main", "-d")
        assert result.exit_code == 0, result.output
        assert "Warning: " in result.stderr
        assert "tls_verify" in result.stderr
        assert "long-key" not in result.output


def test_secrets_of_the_config_are_never_printed(call, world, tmp_path):
    """Not even when a platform's error repeats them."""
    (tmp_path / "config.yaml").write_text(REAL)
    world.platforms["ow_b"].failures["client_1"] = [RequestRefused("ow_b", "client_1", f"401 for {SECRET}")]
    world.script.breaks = StoreUnavailable(f"refused {SECRET}")

    deployed, started = call("main", "-d"), call("main", "-s", "-v")

    for result in (deployed, started):
        assert result.exit_code == 1
        assert "long-key" not in result.output
        assert "***" in result.output


def test_targets_are_the_sessions(world):
    """The fake's own shape: what the tests above rely on."""
    assert Target(cluster="gcf_a", function="client_2") in TARGETS
    assert replace(TARGETS[0]) == TARGETS[0]
    assert Script().accuracies[-1] == 0.96


async def _in_thread(world, *arguments):
    """Call main beside the test's own loop."""
    import asyncio

    from click.testing import CliRunner

    from fedkeeper.cli import main

    return await asyncio.to_thread(CliRunner().invoke, main, arguments, obj=world.backend())
