"""Real processes: exit codes, Ctrl-C, and a terminal or pipe that goes away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
HANGS = {"rounds_then_wait": 1}


@pytest.fixture
def process(world, tmp_path):
    """Start a command over a fake session; ended for certain when the test is."""
    started = []

    def start(script, *arguments, **popen):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | popen
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "tests.cli.program", json.dumps(script), *arguments]
        child = subprocess.Popen(argv, cwd=tmp_path, env=environment, **options)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def until(path: Path, child: subprocess.Popen) -> None:
    """Wait until `child` has made the file."""
    limit = time.monotonic() + WAIT_S
    while not path.exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "arguments", "code"),
    [
        ("main.py", ["-h"], 0),
        ("deploy.py", ["--help"], 0),
        ("main.py", [], 2),
        ("main.py", ["-s", "-d"], 2),
        ("main.py", ["-s", "-c", "not-there.yaml"], 2),
        ("deploy.py", ["-a"], 2),
        ("deploy.py", ["-d"], 2),
        ("deploy.py", ["-a", "-d", "-f", "nodeinfp"], 2),
    ],
)
def test_exit_codes_of_the_scripts(world, tmp_path, script, arguments, code):
    """The scripts as they are in a clone; nothing is started, and no traceback shown."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == bool(code)


def test_the_first_ctrl_c_stops_in_order(process, tmp_path):
    """What was decided stays, everything is closed, exit code 130, and how to go on is said."""
    child = process(HANGS, "main", "-s")
    until(tmp_path / "waiting", child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=WAIT_S)

    assert child.returncode == 130
    assert "stopping: the state is kept, the same command resumes" in out
    assert "unfinished: training, round 2 of at most 3" in out
    hint = "Hint: the state is kept: the same command resumes the run"
    assert err == f"Error: run mnist-1 is stopped in round 2\n{hint}\n"
    assert (tmp_path / "closed").exists()


def test_the_second_ctrl_c_stops_at_once(process, tmp_path):
    """Even where the first one is not heard; what was opened is closed all the same."""
    child = process(HANGS | {"deaf": True}, "main", "-s")
    until(tmp_path / "waiting", child)
    child.send_signal(signal.SIGINT)
    assert _line(child, "stopping: the state is kept")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=WAIT_S)

    assert child.returncode == 130
    assert "stopping at once" in out
    assert "Error: interrupted" in err
    assert (tmp_path / "closed").exists()


def test_sigterm_is_a_ctrl_c(process, tmp_path):
    """Service managers and containers stop a process so."""
    child = process(HANGS, "main", "-s")
    until(tmp_path / "waiting", child)
    child.terminate()
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 130


def test_ctrl_c_before_there_is_a_run_ends_the_command(process, tmp_path):
    """The same command goes on with whatever became of it."""
    child = process({"slow_start": True}, "main", "-s")
    until(tmp_path / "waiting", child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 130
    assert "the same command goes on where it was" in err
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedded": False}, "leaving: the run goes on (Ctrl-C again: at once)"),
        ({"shared": True}, "stopping: the state is kept"),
    ],
)
def test_ctrl_c_leaves_a_run_that_others_keep(process, tmp_path, changes, said):
    """Keepers elsewhere, or that another command uses, go on; how to see the run again is said."""
    child = process(HANGS | changes, "main", "-s")
    until(tmp_path / "waiting", child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 130
    assert said in out
    assert "Error: run mnist-1 goes on without this command, in round 2 of at most 3" in err
    assert "Hint: to see it again: fedkeeper attach mnist-1 -c config.yaml" in err


def test_a_keeper_runs_until_it_is_told_to_stop(process, tmp_path):
    """SIGTERM is an end in order: exit code 0."""
    child = process({}, "main", "-k", "k2")
    until(tmp_path / "waiting", child)
    child.terminate()
    out, err = child.communicate(timeout=WAIT_S)
    assert (child.returncode, err) == (0, "")
    assert "keeper k2 is stopping" in out


def test_a_run_outlives_whoever_read_its_output(process, tmp_path):
    """`main.py -s | head -1`: the pipe closes, the run ends well."""
    reading, writing = os.pipe()
    child = process({}, "main", "-s", stdout=writing)
    os.close(writing)
    os.close(reading)
    _, err = child.communicate(timeout=WAIT_S)
    assert (child.returncode, err) == (0, "")
    assert (tmp_path / "logs" / "mnist-1" / "model.safetensors").exists()


def test_a_run_outlives_a_full_disk_behind_its_output(process, tmp_path):
    """`main.py -s > file` where there is no space."""
    with Path("/dev/full").open("w") as full:
        child = process({}, "main", "-s", stdout=full)
        _, err = child.communicate(timeout=WAIT_S)
    assert (child.returncode, err) == (0, "")


@pytest.mark.parametrize("arguments", [("status", "--json"), ("dict", "list", "--json")])
def test_an_answer_for_a_program_is_not_lost_quietly(process, arguments):
    """A full disk behind `status --json > file`: exit 1 and the reason, not an empty file and exit 0."""
    with Path("/dev/full").open("w") as full:
        child = process({}, "fedkeeper", *arguments, stdout=full)
        _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 1
    assert "Error: the answer cannot be written to stdout: No space left on device" in err


def test_an_answer_for_a_program_comes_whole_or_fails(process):
    """What reads `status --json` has gone away: no exit 0 either."""
    reading, writing = os.pipe()
    os.close(reading)
    child = process({}, "fedkeeper", "status", "--json", stdout=writing)
    os.close(writing)
    child.communicate(timeout=WAIT_S)
    assert child.returncode != 0


def test_a_stream_that_cannot_say_everything_gets_question_marks(process):
    """An ASCII terminal must not end a run because of an umlaut in an error."""
    environment_before = os.environ.get("PYTHONIOENCODING")
    os.environ["PYTHONIOENCODING"] = "ascii"
    try:
        child = process({"failing": {"client_1": "schön"}}, "main", "-s")
    finally:
        if environment_before is None:
            del os.environ["PYTHONIOENCODING"]
        else:
            os.environ["PYTHONIOENCODING"] = environment_before
    out, _ = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert "failed: sch?n" in out


def test_a_terminal_shows_the_live_state(process, tmp_path):
    """On a terminal the state of the round stands below the lines, and is gone at the end."""
    leader, follower = pty.openpty()
    child = process(HANGS, "main", "-s", stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    seen = _read_until(leader, "3 running", child)
    child.send_signal(signal.SIGINT)
    seen += _read_until(leader, "resumes the run", child)
    os.close(leader)

    assert child.wait(WAIT_S) == 130
    assert "round 2/3 training" in seen
    assert "accuracy 0.5000 (target 0.9500)" in seen
    assert "round 1/3 done: accuracy 0.5000" in seen


def _line(child: subprocess.Popen, start: str) -> str:
    """The next line of stdout that starts so; empty if there is none."""
    return next((line for line in child.stdout if line.startswith(start)), "")


def _read_until(leader: int, text: str, child: subprocess.Popen) -> str:
    """What the terminal got, up to `text`."""
    seen = ""
    limit = time.monotonic() + WAIT_S
    while text not in seen:
        assert time.monotonic() < limit, seen
        try:
            seen += os.read(leader, 65536).decode(errors="replace")
        except OSError:
            raise AssertionError(f"the terminal was closed: {seen}") from None
    return seen
