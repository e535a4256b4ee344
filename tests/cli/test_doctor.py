"""`fedkeeper doctor` as a real process: what it says, and its exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wiring.doctoring import config

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 170.0
KEY = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:geheim-geheim-geheim"
TOPICS = {
    "Python",
    "packages",
    "processors",
    "memory",
    "disk",
    "open files",
    "cgroup",
    "namespaces",
    "mongod",
}


@pytest.fixture
def doctor(tmp_path):
    """Run it in an empty folder; its status, stdout and stderr."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "fedkeeper", "doctor", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def rows(out):
    """Findings by topic, of --json."""
    return {one["topic"]: one for one in json.loads(out)["findings"]}


def test_the_sample_can_be_run_here(doctor, tmp_path):
    """Exit 0, a verdict for each part, and no service was started, no file left."""
    path = config(tmp_path)
    code, out, err = doctor("-c", str(path), "--json")
    found = rows(out)
    assert (code, err) == (0, "")
    assert json.loads(out)["runs"] is True
    assert {*TOPICS, "TensorFlow", "Node.js", "ports", "functions", "memory budget"} == found.keys()
    assert not [one for one in found.values() if one["verdict"] == "missing"]
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


def test_all_that_is_missing_is_said_at_once_with_the_way_out(doctor, tmp_path):
    """A taken port, too small a budget, a platform and a MongoDB that are away, a function without code."""

    def spoil(tree):
        tree["embedded"] |= {"fabric_port": taken.getsockname()[1], "memory_mb": 512}
        learning = tree["scenarios"]["federated_learning"]
        learning["functions"]["fl_client"]["openwhisk"]["memory"] = 1024
        learning["mongo_config"] = {"url": f"127.0.0.1:{nobody}", "username": "u", "password": "geheim-auch"}
        auth = {"ow_api_host": f"http://127.0.0.1:{nobody}", "ow_auth": "${OW_AUTH}"}
        tree["providers"]["openwhisk"]["ow_away"] = {"auth": auth}
        (tmp_path / "hollow").mkdir()
        tree["scenarios"]["test"]["functions"]["hollow"] = {"openwhisk": {"func_path": "hollow"}}

    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()[1]
        gone.close()
        path = config(tmp_path, spoil)
        code, out, err = doctor("-c", str(path), "--timeout", "20", "--json", OW_AUTH=KEY)
    found = rows(out)
    lacking = {topic: one for topic, one in found.items() if one["verdict"] == "missing"}
    assert code == 1
    assert lacking.keys() == {
        "embedded.fabric_port",
        "memory budget",
        "cluster ow_away",
        "MongoDB",
        "function hollow",
    }
    assert all(one["way_out"] for one in lacking.values())
    assert "embedded.memory_mb to 1024" in lacking["memory budget"]["way_out"]
    assert "to a free port" in lacking["embedded.fabric_port"]["way_out"]
    assert "5 missing" in err
    assert "geheim" not in out + err


def test_a_table_for_people(doctor):
    """Without a config: what the machine offers, a line each, and exit 0."""
    code, out, _ = doctor("--timeout", "100")
    assert code == 0
    for topic in TOPICS:
        assert f"\n| {topic} " in out


def test_a_config_with_faults_is_exit_2(doctor, tmp_path):
    """Its faults come after what could be said of the machine."""
    path = config(tmp_path, lambda tree: tree.update(nmae="x"))
    code, out, err = doctor("-c", str(path))
    assert code == 2
    assert "nmae" in err
    assert "| memory " in out


def test_what_tensorflow_says_when_it_cannot_be_imported_is_said(doctor, tmp_path):
    """In the way of a config that trains here; only a note where there is none."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tensorflow.py").write_text("raise ImportError('no AVX in this processor')")
    path = config(tmp_path)
    code, out, _ = doctor("-c", str(path), "--json", PYTHONPATH=f"{broken}{os.pathsep}{ROOT}")
    assert code == 1
    assert rows(out)["TensorFlow"]["verdict"] == "missing"
    assert "no AVX in this processor" in rows(out)["TensorFlow"]["found"]
    assert "pip install" in rows(out)["TensorFlow"]["way_out"]
    code, out, _ = doctor("--json", PYTHONPATH=f"{broken}{os.pathsep}{ROOT}")
    assert (code, rows(out)["TensorFlow"]["verdict"]) == (0, "note")


def test_too_few_open_files_are_in_the_way(tmp_path):
    """The soft limit counts: nothing raises it for the services."""
    path = config(tmp_path)
    done = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -n 128; exec "$0" -m fedkeeper doctor --json -c "$1"',
            sys.executable,
            str(path),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    finding = rows(done.stdout)["open files"]
    assert finding["verdict"] == "missing"
    assert "ulimit -n" in finding["way_out"]
