"""The main job: from one command to trained weights, and again after whatever stopped it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.e2e.lab import Lab, faulty, faulty_client, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def secrets_of(shared: Path) -> list[str]:
    """Every generated secret of the embedded services."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, str) and len(value) >= 16:
            found.extend(line for line in value.splitlines() if len(line) >= 16 and "://" not in line)

    for path in (shared / "embedded").glob("*/credentials.json"):
        walk(json.loads(path.read_text()))
    found.extend(path.read_text() for path in (shared / "embedded" / "keepers").glob("*/secret"))
    return [one for one in found if not one.startswith("-----") and "@" not in one]


def test_two_rounds_train_over_both_platforms(lab: Lab, shared: Path):
    """One command deploys, trains, aggregates and evaluates; its records are whole and hold no secret."""
    lab.write("small")
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout

    assert [row["round"] for row in lab.rows("small-1", "rounds")] == ["1", "2"]
    assert all(
        int(row["updates"]) == 4 and int(row["failures"]) == 0 for row in lab.rows("small-1", "rounds")
    )
    attempts = lab.rows("small-1", "activations")
    assert Counter(row["platform"] for row in attempts if row["client"]) == {"openwhisk": 4, "google": 4}
    assert all(row["status"] == "ok" and row["activation_id"] and row["start"] for row in attempts)
    model = load_file(lab.folder / "logs" / "small-1" / "model.safetensors")
    assert sorted(tensor.shape for tensor in model.values()) == [(10,), (16,), (16, 10), (784, 16)]
    assert all(np.isfinite(tensor).all() for tensor in model.values())

    exported = lab.run("small-1", "--output", str(lab.folder / "again.safetensors"), program="export")
    assert exported.returncode == 0, exported.stdout
    assert load_file(lab.folder / "again.safetensors").keys() == model.keys()

    written = [
        path for folder in ("logs", "params") for path in (lab.folder / folder).rglob("*") if path.is_file()
    ]
    assert len(written) > 10
    secrets = secrets_of(shared)
    assert len(secrets) >= 4
    for path in written:
        text = path.read_bytes().decode(errors="replace")
        assert not [one for one in secrets if one in text], path
    assert not [one for one in secrets if one in done.stdout]


def test_clients_that_raise_hang_die_or_lie_are_invoked_again(lab: Lab, tmp_path: Path):
    """Each fault costs its client one attempt with a reason to read; the round has everybody's update."""
    faults = {f"r1/client_{n}/a0": fault for n, fault in enumerate(("raise", "hang", "die", "nan"))}
    source = faulty_client(tmp_path / "faulty", faults)
    lab.write(
        "faulty",
        providers={"google": {}},
        learning={
            "clients_info": {"ow_clients_count": 4, "gcf_clients_count": 0},
            "functions": {"fl_client": {"openwhisk": {"func_path": str(source)}}},
            "limits": {"client_timeout_s": 8},
            "stopping": {"rounds_max": 1},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    [row] = lab.rows("faulty-1", "rounds")
    assert (row["updates"], row["failures"], row["gave_up"]) == ("4", "4", "0")
    attempts = {row["key"]: row for row in lab.rows("faulty-1", "activations")}
    reasons = [attempts[f"faulty-1/r1/client_{n}/a0"] for n in range(4)]
    assert [one["status"] for one in reasons] == ["failed", "silent", "failed", "failed"]
    assert "hospital is on fire" in reasons[0]["reason"]
    assert "no answer in 8 s" in reasons[1]["reason"]
    assert reasons[2]["reason"]
    assert "finite" in reasons[3]["reason"] or "NaN" in reasons[3]["reason"]
    assert all(attempts[f"faulty-1/r1/client_{n}/a1"]["status"] == "ok" for n in range(4))
    log = lab.folder / "logs" / "faulty-1" / "functions" / "faulty-1--r1--client_0--a0.log"
    assert "fault: raise" in log.read_text()


def test_a_cloud_client_that_dies_is_invoked_again(lab: Lab, tmp_path: Path):
    """The forwarding function says what became of its request; the client's next attempt gives the update."""
    source = faulty_client(tmp_path / "faulty", {})
    lab.write(
        "clouded",
        learning={
            "clients_info": {"ow_clients_count": 0, "gcf_clients_count": 4},
            "functions": {"fl_client": {"google": {"func_path": str(source)}}},
            "stopping": {"rounds_max": 1},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    [row] = lab.rows("clouded-1", "rounds")
    assert (row["updates"], row["failures"], row["gave_up"]) == ("4", "1", "0")
    [failed] = [one for one in lab.rows("clouded-1", "activations") if one["status"] == "failed"]
    assert failed["function"] == "fl_invoker_weights_update"
    assert (failed["platform"], failed["cluster"], failed["invoked_on"]) == ("google", "gcf", "ow")
    assert "HTTP 500" in failed["reason"]


def test_shards_make_the_same_weights_though_an_aggregator_dies(lab: Lab, tmp_path: Path, calm: str):
    """Three aggregators a round; one is killed, and one that joins: made again alone, to the same bits."""
    faults = {"r1/aggregate/s1/a0": "die", "r2/aggregate/join/a0": "die"}
    source = faulty("fl_server_aggregator", tmp_path / "faulty", faults)
    lab.write(
        "sharded",
        learning={
            "aggregation": {"shards": 3},
            "functions": {"fl_server_aggregator": {"openwhisk": {"func_path": str(source)}}},
            "stopping": {"rounds_max": 3},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert lab.weights_hash("sharded-1") == calm
    attempts = {row["key"]: row["status"] for row in lab.rows("sharded-1", "activations")}
    found = {key.removeprefix("sharded-1/"): status for key, status in attempts.items() if "aggregate" in key}
    wanted = {f"r{r}/aggregate/{part}/a0": "ok" for r in (1, 2, 3) for part in ("s0", "s1", "s2", "join")}
    died = dict.fromkeys(faults, "failed")
    again = dict.fromkeys((f"{key[:-1]}1" for key in faults), "ok")
    assert found == wanted | died | again
    assert [row["failures"] for row in lab.rows("sharded-1", "rounds")] == ["1", "1", "0"]


def test_what_is_added_up_early_makes_the_same_weights(lab: Lab, tmp_path: Path, calm: str):
    """client_1 trains only when client_0's update is in the sums of both shards: the bits are the same."""
    source = faulty("fl_client", tmp_path / "faulty", {"r1/client_1/a0": "after r1/aggregate/s1/fold/a0"})
    lab.write(
        "early",
        learning={
            "aggregation": {"shards": 2, "early_updates_min": 1, "early_bytes_min": 0},
            "functions": {"fl_client": {"openwhisk": {"func_path": str(source)}}},
            "stopping": {"rounds_max": 3},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert lab.weights_hash("early-1") == calm
    statuses = {
        row["key"].removeprefix("early-1/"): row["status"] for row in lab.rows("early-1", "activations")
    }
    assert statuses["r1/aggregate/s0/fold/a0"] == statuses["r1/aggregate/s1/fold/a0"] == "ok"
    assert set(statuses.values()) == {"ok"}


def test_a_fabric_that_dies_in_mid_round_comes_back(lab: Lab, shared: Path, calm: str):
    """Its functions are still there; what ran in it is invoked again, and the weights are the same."""
    lab.write("shocked", learning={"stopping": {"rounds_max": 3}})
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "round 2")
    the_process(str(shared / "embedded" / "fabric"), "fedkeeper.fabric.serve").kill()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("shocked-1") == calm
    assert all(row["updates"] == "4" for row in lab.rows("shocked-1", "rounds"))


def the_process(*words: str) -> psutil.Process:
    """The one process with all of `words` in its command line."""
    [found] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(any(word in part for part in process.info["cmdline"] or ()) for word in words)
    ]
    return found


def test_a_mongod_that_dies_in_mid_round_loses_nothing(lab: Lab, shared: Path, calm: str):
    """It is started again where it was; functions and keeper wait for it, the weights are the same."""
    lab.write("shaken", learning={"stopping": {"rounds_max": 3}})
    command = lab.start()
    until(lambda: "round 2/3 started" in lab.said(), "round 2")
    the_process(str(shared / "embedded" / "mongo"), "--dbpath").kill()
    assert command.wait(120) == 0, lab.said()
    assert lab.weights_hash("shaken-1") == calm
    assert len(lab.rows("shaken-1", "rounds")) == 3
