"""The embedded keepers: whoever dies or leaves, the run ends as if nothing had been."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.lab import Lab, faulty, faulty_client, kill, status, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

THREE = {"stopping": {"rounds_max": 3}}


def held(tmp_path: Path) -> tuple[dict[str, object], Path]:
    """Three rounds, the second of which does not end before the file is there."""
    gate = tmp_path / "gate"
    source = faulty("fl_client", tmp_path / "held", {"r2/client_0/a0": f"until {gate}"})
    return {**THREE, "functions": {"fl_client": {"openwhisk": {"func_path": str(source)}}}}, gate


def every_client_once(lab: Lab, run: str) -> None:
    """One activation per client, round and server task, all of them good; each round committed once."""
    attempts = lab.rows(run, "activations")
    assert len(attempts) == 1 + 3 * 5
    assert all(row["attempt"] == "0" and row["status"] == "ok" for row in attempts)
    assert [row["round"] for row in lab.rows(run, "rounds")] == ["1", "2", "3"]


def test_a_conductor_that_is_killed_costs_nothing(lab: Lab, calm: str):
    """kill -9 again and again: another one goes on, and it comes back; no client trains twice."""
    lab.write("wild", learning=THREE)
    command = lab.start()
    for line in ("round 1/3 started", "round 2/3 started", "round 2: aggregating", "round 3/3 started"):
        until(lambda line=line: line in lab.said() or command.poll() is not None, line)
        if command.poll() is None:
            lab.conductor().kill()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("wild-1") == calm
    every_client_once(lab, "wild-1")


def test_a_run_outlives_the_command_that_began_it(lab: Lab, calm: str):
    """kill -9 of `-s`: the keepers go on; `attach` shows the rest, and ends as `-s` would have."""
    lab.write("orphan", learning=THREE)
    command = lab.start()
    until(lambda: "round 1/3 started" in lab.said(), "the first round")
    kill(command)
    seen = lab.run(program="attach")
    assert seen.returncode == 0, seen.stdout
    assert "finished: all 3 rounds" in seen.stdout
    assert lab.weights_hash("orphan-1") == calm
    every_client_once(lab, "orphan-1")
    again = lab.run("orphan-1", program="attach")
    assert again.returncode == 0
    assert "finished: all 3 rounds" in again.stdout


def test_ctrl_c_stops_and_the_same_command_resumes(lab: Lab, tmp_path: Path, calm: str):
    """Exit code 130, no keeper left running, and a run that goes on from disk as if nothing had been."""
    learning, gate = held(tmp_path)
    lab.write("polite", learning=learning)
    command = lab.start()
    until(lambda: "round 1/3 done" in lab.said(), "the first round")
    assert kill(command, signal.SIGINT) == 130
    gate.touch()
    assert "the same command resumes" in lab.said()
    assert lab.keepers() == {}
    none = lab.run(program="status")
    assert none.returncode == 1
    assert "no keeper of polite runs" in none.stdout
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert "run polite-1 resumes in round" in done.stdout
    assert lab.weights_hash("polite-1") == calm
    every_client_once(lab, "polite-1")


def test_everything_killed_at_once_is_taken_up_from_disk(lab: Lab, tmp_path: Path, calm: str):
    """All keepers and the command, as a power cut would: the same command goes on where it was."""
    learning, gate = held(tmp_path)
    lab.write("dark", learning=learning)
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "the second round")
    kill(command)
    keepers = [psutil.Process(one["pid"]) for one in lab.keepers().values()]
    assert len(keepers) == 3
    for keeper in keepers:
        keeper.kill()
    psutil.wait_procs(keepers, timeout=20)
    gate.touch()
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert "run dark-1 resumes in round" in done.stdout
    assert lab.weights_hash("dark-1") == calm
    every_client_once(lab, "dark-1")


def test_two_runs_go_on_at_once(lab: Lab, calm: str):
    """--detach leaves one; --new begins another, with another number of rounds; Ctrl-C ends neither."""
    lab.write("twins", learning={"stopping": {"rounds_max": 500}})
    first = lab.run("-s", "--detach")
    assert first.returncode == 0, first.stdout
    assert "fedkeeper attach twins-1" in first.stdout
    lab.write("twins", learning=THREE)
    second = lab.start("-s", "--new")
    until(lambda: "round 1/3 started" in lab.said(), "the second run")
    assert kill(second, signal.SIGINT) == 130  # the first run needs the keepers
    assert "run twins-2 goes on without this command" in lab.said()
    seen = lab.run("twins-2", program="attach")
    assert seen.returncode == 0, seen.stdout
    assert lab.weights_hash("twins-2") == calm
    stopped = lab.run("twins-1", program="stop")
    assert stopped.returncode == 0, stopped.stdout
    shown = lab.run("twins-1", program="attach")
    assert shown.returncode == 1
    assert "stopped by a user" in shown.stdout


def test_one_keeper_is_enough(lab: Lab, calm: str):
    """The lightweight way: killed, it is started again, and goes on from its disk."""
    lab.write("single", keepers={"count": 1}, learning=THREE)
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "the second round")
    assert list(lab.keepers()) == ["k1"]
    lab.conductor().kill()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("single-1") == calm
    every_client_once(lab, "single-1")


def test_a_frozen_majority_pauses_the_run(lab: Lab, calm: str):
    """Two of three stand still: the command says so, `status` says who is missing; then all goes on."""
    lab.write("frozen", keepers={"lease_s": 0.5}, learning=THREE)
    command = lab.start()
    until(lambda: "round 1/3 done" in lab.said(), "the first round")
    frozen = [psutil.Process(lab.keepers()[name]["pid"]) for name in ("k1", "k2")]
    for keeper in frozen:
        keeper.suspend()
    try:
        left = lab.keepers()["k3"]["api"]
        until(lambda: (status(left) or {"leader": "?"})["leader"] == "", "k3 to notice")
        seen = lab.run(program="status")
        assert seen.returncode == 1
        assert "no majority" in seen.stdout
        until(lambda: "no majority" in lab.said(), "the command to say so")
    finally:
        for keeper in frozen:
            keeper.resume()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("frozen-1") == calm


def test_a_conductor_that_stands_still_for_longer_than_its_lease_starts_nothing_when_it_wakes(
    lab: Lab, calm: str
):
    """SIGSTOP in mid-round, SIGCONT when another one conducts and its lease is over: all trained once."""
    lease_s = 0.5
    lab.write("asleep", keepers={"lease_s": lease_s}, learning=THREE)
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "the second round")
    sleeper = lab.conductor()
    [name] = [name for name, one in lab.keepers().items() if one["pid"] == sleeper.pid]
    others = [one["api"] for other, one in lab.keepers().items() if other != name]
    sleeper.suspend()
    over = time.monotonic() + 2 * lease_s
    try:
        until(
            lambda: any((status(api) or {}).get("conductor", name) != name for api in others), "another one"
        )
        until(lambda: time.monotonic() > over, "its lease to be over")
    finally:
        sleeper.resume()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("asleep-1") == calm
    every_client_once(lab, "asleep-1")


def test_participants_that_are_lost_with_the_conductor_leave_the_round_to_the_others(
    lab: Lab, tmp_path: Path
):
    """Two of four clients die in round 2 whenever they are asked, and so does the conductor."""
    faults = {f"r2/client_{client}/a{attempt}": "die" for client in (0, 2) for attempt in (0, 1)}
    lab.write(
        "fewer",
        providers={"google": {}},
        learning={
            "clients_info": {"ow_clients_count": 4, "gcf_clients_count": 0},
            "functions": {
                "fl_client": {"openwhisk": {"func_path": str(faulty_client(tmp_path / "f", faults))}}
            },
            "limits": {"attempts_max": 2, "min_updates": 2},
            **THREE,
        },
    )
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "the second round")
    lab.conductor().kill()
    assert command.wait(150) == 0, lab.said()
    rounds = lab.rows("fewer-1", "rounds")
    assert [(row["round"], row["updates"], row["gave_up"]) for row in rounds] == [
        ("1", "4", "0"),
        ("2", "2", "2"),
        ("3", "4", "0"),
    ]


def test_fewer_participants_than_min_updates_end_the_run_with_the_reason(lab: Lab, tmp_path: Path):
    """Three of four are lost, two are needed: the run does not go on with less than it was told to."""
    faults = {f"r1/client_{client}/a0": "die" for client in (0, 1, 2)}
    lab.write(
        "few",
        providers={"google": {}},
        learning={
            "clients_info": {"ow_clients_count": 4, "gcf_clients_count": 0},
            "functions": {
                "fl_client": {"openwhisk": {"func_path": str(faulty_client(tmp_path / "f", faults))}}
            },
            "limits": {"attempts_max": 1, "min_updates": 2},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 1
    assert "1 update" in done.stdout
    assert lab.rows("few-1", "rounds") == []


def test_detached_keepers_end_by_themselves(lab: Lab):
    """When their run has ended, and nobody has asked for anything for `linger_s`."""
    lab.write("alone", embedded={"linger_s": 1}, learning={"stopping": {"rounds_max": 1}})
    done = lab.run("-s", "--detach")
    assert done.returncode == 0, done.stdout
    assert len(lab.keepers()) == 3
    until(lambda: not lab.keepers(), "the keepers to end")
    rows = Path(lab.folder / "logs" / "alone-1" / "rounds.csv")
    assert rows.read_text().count("\n") == 2
    assert time.time() - rows.stat().st_mtime < 120
