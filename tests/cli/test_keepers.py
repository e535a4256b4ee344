"""The commands that speak to keepers: status, attach, stop, handover, members, dictionary."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from fedkeeper.cli.cluster_view import Overview, headline, keepers_table
from fedkeeper.errors import JournalFull, NoLeader
from fedkeeper.keeper.client import Versioned
from tests.cli.fakes import Script, healthy, keeper, status

SILENT = "no keeper answered"


def rendered(overview: Overview) -> str:
    """The table as it is printed."""
    console = Console(width=160)
    with console.capture() as capture:
        console.print(keepers_table(overview))
    return capture.get()


def test_status_shows_who_leads_who_conducts_and_why(call, world):
    """Headline, a line per keeper, a line per run."""
    call("main", "-s")
    run = call("fedkeeper", "status")  # the fake's overview does not know the run
    assert run.exit_code == 0, run.output
    lines = run.stdout.splitlines()
    assert lines[0] == "mnist: k1 leads, term 5, commit index 120"
    assert lines[1] == "k1 conducts, epoch 3: it leads"
    assert sum(line.startswith(("| k1", "| k2", "| k3")) for line in lines) == 3
    assert world.connected[-1] == "look"


def test_a_keeper_that_is_away_is_named_with_the_reason():
    """The others go on; its row says since when it is silent and how far it is behind."""
    keepers = (keeper("k1"), keeper("k2"), keeper("k3", alive=False, lag=7, reason="not heard for 5 s"))
    answers = {name: status(name, keepers=keepers) for name in ("k1", "k2")}
    overview = Overview(answers=answers, silent={"k3": "connection refused"})
    assert headline(overview, "mnist")[0] == ("mnist: k1 leads, term 5, commit index 120", False)
    row = next(line for line in rendered(overview).splitlines() if "k3" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][:3] == ["k3", "silent", "7"]
    assert "connection refused" in row


def test_latencies_are_shown_by_what_they_lead_to():
    """They explain a placement by latency."""
    near = keeper("k1", latencies={"keeper/k2": 1.25, "keeper/k3": 0.9, "cluster/ow_here": 14.0})
    overview = healthy(keepers=(near, keeper("k2"), keeper("k3")))
    assert "k2 1.2, k3 0.9, ow_here 14.0" in rendered(overview)
    assert "leader, conducts" in rendered(overview)


def test_without_a_majority_status_says_so_and_shows_what_was_known(call, world):
    """Old data beats none; exit code 1, and how to get out of it."""
    left = status("k2", leader="", role="candidate", problem="no majority: k1, k3 cannot be reached")
    world.overview = Overview(answers={"k2": left}, silent={"k1": SILENT, "k3": SILENT})
    result = call("fedkeeper", "status")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "mnist: no majority, so nothing is decided: k1 and k3 are away"
    assert lines[1] == "as k2 knew it last: term 5, commit index 120"
    assert "Error: there is no majority of keepers" in result.stderr
    assert "start those that are away" in result.stderr


def test_when_no_keeper_runs_status_says_how_to_start_one(call, world):
    """Exit code 1."""
    world.overview = Overview(answers={}, silent=dict.fromkeys(("k1", "k2", "k3"), "does not run"))
    result = call("fedkeeper", "status")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "mnist: no keeper answers"
    assert result.stderr == "Error: no keeper of mnist runs\nHint: start them\n"


def test_status_is_there_for_programs_too(call, world):
    """The best answer, all of them, and who is silent."""
    world.overview = Overview(answers={"k1": status("k1", term=6), "k2": status("k2")}, silent={"k3": SILENT})
    told = json.loads(call("fedkeeper", "status", "--json").stdout)
    assert (told["leader"], told["majority"], told["silent"]) == ("k1", True, {"k3": SILENT})
    assert told["status"]["term"] == 6
    assert told["answers"]["k2"]["role"] == "follower"


def test_a_run_can_be_submitted_and_left(call, world):
    """--detach: the keepers go on, and how to see the run is said."""
    result = call("main", "-s", "--detach")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "run mnist-1 starts",
        "it goes on without this command; to see it: fedkeeper attach mnist-1 -c config.yaml",
    ]
    assert world.ended is False


def test_attach_follows_the_latest_run_to_its_end(call, world, tmp_path):
    """With lines, summary, model and exit code of a start."""
    call("main", "-s", "--detach")
    result = call("fedkeeper", "attach")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "run mnist-1 is in round 0: 0 round(s) are done"
    assert "finished: the target accuracy 0.9500 is reached" in result.stdout
    assert (tmp_path / "logs" / "mnist-1" / "model.safetensors").exists()


def test_attach_shows_how_a_run_ended_at_any_time_later(call):
    """Its summary again, and the exit code that it ended with."""
    call("main", "-s")
    again = call("fedkeeper", "attach", "mnist-1")
    assert again.exit_code == 0
    assert "finished: the target accuracy 0.9500 is reached" in again.stdout
    assert "round 1/3 done" not in again.stdout


def test_attach_names_the_runs_that_there_are(call):
    """An unknown name is an error, and so is that there is none yet."""
    none = call("fedkeeper", "attach")
    assert none.exit_code == 1
    assert "no run of this experiment was begun yet" in none.stderr
    call("main", "-s")
    wrong = call("fedkeeper", "attach", "mnist-7")
    assert wrong.exit_code == 1
    assert "the keepers know no run 'mnist-7'\nHint: known: mnist-1" in wrong.stderr


def test_what_hinders_the_keepers_is_said_among_the_lines(call, world):
    """Whoever waits must know for what."""
    world.script.notices = ("the keepers have no majority (k2, k3 away): the run pauses until they have",)
    assert "(k2, k3 away): the run pauses" in call("main", "-s").stdout


def test_a_run_is_stopped_exported_and_forgotten(call, world, tmp_path):
    """By name, whoever started it."""
    world.script.accuracies = (0.1, 0.2, 0.3)
    call("main", "-s", "--detach")
    stopped = call("fedkeeper", "stop", "mnist-1")
    assert stopped.exit_code == 0, stopped.output
    assert stopped.stdout == "run mnist-1 is stopped, in round 0 of at most 3\n"
    assert world.log.state.runs["mnist-1"].reason == "stopped by a user"
    ended = call("fedkeeper", "attach", "mnist-1")
    assert ended.exit_code == 1
    assert "stopped: stopped by a user" in ended.stderr
    assert call("fedkeeper", "forget", "mnist-1").exit_code == 0
    assert not world.log.state.runs


def test_stopping_a_run_that_has_ended_changes_nothing(call):
    """How it ended is said."""
    call("main", "-s")
    late = call("fedkeeper", "stop", "mnist-1")
    assert late.exit_code == 0
    assert late.stdout.startswith("run mnist-1 had ended already: finished: the target accuracy")


def test_export_writes_the_model_of_the_latest_run_that_has_one(call, tmp_path):
    """Or of the one that is named; without a committed round there is none."""
    nothing = call("fedkeeper", "export")
    assert nothing.exit_code == 1
    assert "no run of this experiment has a committed round yet" in nothing.stderr
    call("main", "-s")
    call("main", "-s", "--new", "--detach")
    done = call("fedkeeper", "export", "--output", "m.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout == "mnist-1: model after round 3 written to m.safetensors\n"
    young = call("fedkeeper", "export", "mnist-2")
    assert young.exit_code == 1
    assert "run mnist-2 has no committed round yet" in young.stderr


def test_the_conductor_is_chosen_by_hand_or_by_placement(call, world):
    """And who conducts then is said."""
    world.overview = healthy(conductor="k2", pinned=True, conductor_why="chosen by hand", epoch=4)
    by_hand = call("fedkeeper", "handover", "k2")
    assert by_hand.stdout == "k2 conducts (by hand, until it is lost or --auto), epoch 4\n"
    world.overview = healthy(epoch=5)
    assert call("fedkeeper", "handover", "--auto").stdout == "k1 conducts (by placement: it leads), epoch 5\n"
    assert world.asked == [("handover", "k2"), ("handover", "")]
    assert call("fedkeeper", "handover").exit_code == 2
    assert call("fedkeeper", "handover", "k2", "--auto").exit_code == 2


def test_members_come_and_go(call, world):
    """And the config is to be changed as well, which is said."""
    added = call("fedkeeper", "keeper", "add", "k4", "10.0.0.4:7000")
    assert added.exit_code == 0, added.output
    assert "write it into config.yaml on every host" in added.stdout
    assert call("fedkeeper", "keeper", "remove", "k1").exit_code == 0
    assert world.asked == [("add", "k4", "10.0.0.4:7000"), ("remove", "k1")]


@pytest.mark.parametrize(
    ("given", "kept"), [("3", 3), ('{"a": [1]}', {"a": [1]}), ("plain words", "plain words"), ('"3"', "3")]
)
def test_values_are_json_or_else_texts(call, world, given, kept):
    """What comes out is JSON again."""
    assert call("fedkeeper", "dict", "set", "x", given).stdout == "x: version 1\n"
    assert world.entries["x"].value == kept
    assert json.loads(call("fedkeeper", "dict", "get", "x").stdout) == kept


def test_the_dictionary_is_read_linearizably_by_default(call, world):
    """--stale asks the next keeper."""
    world.entries = {"a/1": Versioned(value=1, version=7), "b": Versioned(value="x", version=8)}
    assert call("fedkeeper", "dict", "get", "b", "--stale").stdout == '"x"\n'
    assert world.asked == [("get", "b", True)]
    assert call("fedkeeper", "dict", "list", "a/").stdout == "a/1 (version 7): 1\n"
    listed = json.loads(call("fedkeeper", "dict", "list", "--json").stdout)
    assert listed == {"a/1": {"value": 1, "version": 7}, "b": {"value": "x", "version": 8}}
    assert call("fedkeeper", "dict", "delete", "b").exit_code == 0
    assert list(world.entries) == ["a/1"]


def test_errors_of_the_dictionary_leave_with_their_reason(call):
    """A name that is not there, a version that is another, a number that is no JSON."""
    missing = call("fedkeeper", "dict", "get", "x")
    assert (missing.exit_code, missing.stderr) == (1, "Error: no entry 'x'\n")
    assert "another version" in call("fedkeeper", "dict", "set", "x", "1", "--expected", "4").stderr
    assert call("fedkeeper", "dict", "set", "x", "NaN").exit_code == 2


def test_a_keeper_is_run_by_its_name(call, world):
    """`main.py -k` and `fedkeeper keeper run` are the same; the embedded ones are started with a flag."""
    assert call("main", "-k", "k1").exit_code == 0
    assert call("fedkeeper", "keeper", "run", "k2", "--until-unused").exit_code == 0
    assert world.hosted == [("k1", False), ("k2", True)]


def test_a_keeper_that_stops_by_itself_says_why(call, world):
    """With the exit code of the reason."""
    world.script = Script(keeper_breaks=JournalFull("no space left on /var", hint="make room"))
    result = call("main", "-k", "k1")
    assert result.exit_code == 1
    assert result.stderr == "Error: no space left on /var\nHint: make room\n"


def test_no_leader_in_time_is_an_error_like_any_other(call, world):
    """When no keeper has answered for too long."""
    world.script = replace(world.script, breaks=NoLeader("no majority for 600 s", hint="start the others"))
    result = call("main", "-s")
    assert result.exit_code == 1
    assert "Error: no majority for 600 s\nHint: start the others" in result.stderr
