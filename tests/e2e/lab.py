"""A small experiment on disk, and the commands run on it as a user would: as processes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import yaml
from safetensors import safe_open

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 120
_CONSOLE = "from fedkeeper.cli import fedkeeper; fedkeeper()"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def small_data(path: Path) -> None:
    """800 training and 200 test images of the sample."""
    with np.load(REPOSITORY / "data" / "mnist-12k.npz") as sample:
        np.savez(
            path,
            x_train=sample["x_train"][:800],
            y_train=sample["y_train"][:800],
            x_test=sample["x_test"][:200],
            y_test=sample["y_test"][:200],
        )


@dataclass
class Lab:
    """One experiment in `folder`; services and functions are shared by all labs of `shared`."""

    folder: Path
    shared: Path
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, **changes: Any) -> Path:
        """Write config.yaml: a small dense network, four clients on two platforms, two rounds."""
        learning = {
            "server_config": {"server_cluster_name": "ow"},
            "clients_info": {
                "total_num_clients": 4,
                "num_clients_per_round": 4,
                "ow_clients_count": 2,
                "gcf_clients_count": 2,
            },
            "data_sampling": {"model": "mnistnn", "hidden_size": 16, "batch_size": 20},
            "mongo_config": {"embedded": True, "db": "e2e", "collection": "w"},
            "training_test_data": {
                f"{part}_{kind}_url": str(self.shared / "small.npz")
                for part in ("train", "test")
                for kind in ("images", "labels")
            },
            "stopping": {"rounds_max": 2},
            "limits": {"retry_backoff_s": 0.1, "poll_interval_max_s": 0.2},
            "functions": {},
        }
        base = {
            "version": 1,
            "name": name,
            "embedded": {"data_dir": str(self.shared / "embedded"), "linger_s": 30},
            "providers": {"openwhisk": {"ow": {"embedded": True}}, "google": {"gcf": {"embedded": True}}},
            "scenarios": {"federated_learning": learning},
        }
        learning_changes = changes.pop("learning", {})
        self.config = merged(base, {**changes, "scenarios": {"federated_learning": learning_changes}})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        return path

    def command(self, *arguments: str, program: str = "main.py") -> list[str]:
        """The command line."""
        if program.endswith(".py"):
            start = [str(REPOSITORY / program)]
        else:  # a sub-command of the console script
            start = ["-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {_CONSOLE}", program]
        return [sys.executable, *start, *arguments, "-c", str(self.folder / "config.yaml")]

    def run(self, *arguments: str, program: str = "main.py") -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout and stderr together in `stdout`."""
        return subprocess.run(
            self.command(*arguments, program=program),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
            check=False,
        )

    def start(self, *arguments: str, into: str = "started") -> subprocess.Popen[str]:
        """Begin `-s` (or what is given) in the background, its output in <into>.log."""
        with (self.folder / f"{into}.log").open("a") as log:
            return subprocess.Popen(
                self.command(*(arguments or ("-s",))),
                cwd=self.folder,
                text=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self, into: str = "started") -> str:
        """What `start` has printed so far."""
        path = self.folder / f"{into}.log"
        return path.read_text() if path.exists() else ""

    # --- embedded keepers -------------------------------------------------------------------------

    @property
    def keepers_folder(self) -> Path:
        """Of this experiment."""
        return self.shared / "embedded" / "keepers" / str(self.config["name"])

    def keepers(self) -> dict[str, dict[str, Any]]:
        """`pid`, and the API's address as `api`, of each keeper that runs, by its name."""
        found = {}
        for path in self.keepers_folder.glob("keeper-*.json"):
            if path.stem.count("."):
                continue
            told = json.loads(path.read_text())
            if psutil.pid_exists(told["pid"]):
                name = path.stem.removeprefix("keeper-")
                found[name] = {"pid": told["pid"], "api": told["info"]["api"]}
        return found

    def conductor(self) -> psutil.Process:
        """The process of the keeper that conducts, by what a majority says of it."""

        def found() -> str:
            said = [status(keeper["api"]) for keeper in self.keepers().values()]
            names = [one["conductor"] for one in said if one is not None and one["leader"]]
            return max(names, key=names.count, default="")

        until(lambda: found() in self.keepers(), "a conductor")
        return psutil.Process(self.keepers()[found()]["pid"])

    def rows(self, run: str, name: str) -> list[dict[str, str]]:
        """The rows of logs/<run>/<name>.csv."""
        with (self.folder / "logs" / run / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))

    def weights_hash(self, run: str) -> str:
        """sha256 of the trained weights, as the store knows them."""
        with safe_open(self.folder / "logs" / run / "model.safetensors", framework="numpy") as model:
            return str(model.metadata()["sha256"])


def status(api: str) -> dict[str, Any] | None:
    """What the keeper at `api` says of the cluster; None if it does not answer."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.get(f"{api}/v1/status", timeout=3)
        except requests.RequestException:
            return None
        told: dict[str, Any] | None = answer.json() if answer.ok else None
        return told


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, at most LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"not in {LIMIT_S} s: {what}"
        time.sleep(0.02)


def kill(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal and wait for the end."""
    process.send_signal(how)
    return process.wait(LIMIT_S)


def faulty(function: str, folder: Path, faults: Mapping[str, str]) -> Path:
    """A copy of one of our functions that misbehaves on OpenWhisk for keys that end in one of `faults`."""
    shutil.copytree(REPOSITORY / "functions" / function, folder)
    adapter = folder / "openwhisk" / "__main__.py"
    adapter.rename(folder / "real_function.py")
    adapter.write_text(_FAULTY.format(faults=dict(faults)))
    return folder


def faulty_client(folder: Path, faults: Mapping[str, str]) -> Path:
    """That of fl_client; on Google it dies once."""
    faulty("fl_client", folder, faults)
    adapter = folder / "google" / "main.py"
    adapter.rename(folder / "real_cloud_client.py")
    adapter.write_text(_CRASHES_ONCE.format(marker=str(folder / "has-crashed")))
    return folder


_CRASHES_ONCE = '''"""fl_client whose first request, of whichever client, ends with the process."""
import os

import real_cloud_client


def main(request):
    try:
        os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return real_cloud_client.main(request)
    os._exit(3)
'''

_FAULTY = '''"""A function with faults, for tests."""
import os
import signal
import time

import real_function

from fedkeeper.errors import ObjectMissing
from fedkeeper.runtime.environment import store_address
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.wire import Outcome, TrainResult, TrainTask, decode, encode

FAULTS = {faults!r}


def main(arguments):
    fault = next((f for end, f in FAULTS.items() if arguments["key"].endswith(end)), "")
    print("fault:", fault or "none")
    if fault == "raise":
        raise RuntimeError("the disk of this hospital is on fire")
    if fault == "hang":
        time.sleep(600)
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "nan":
        return nan(arguments)
    if fault.startswith("until "):
        wait_for_file(fault.removeprefix("until "))
    if fault.startswith("after "):
        wait_for(arguments["run"] + "/" + fault.removeprefix("after "))
    return real_function.main(arguments)


def wait_for_file(path):
    """A minute at most."""
    for _ in range(600):
        if os.path.exists(path):
            return
        time.sleep(0.1)


def wait_for(name):
    """Until there is such an object in the store, for a minute at most."""
    store = open_store(store_address())
    for _ in range(600):
        try:
            return store.open(name)
        except ObjectMissing:
            time.sleep(0.1)


def nan(arguments):
    """Claims to have trained, and stores weights that are not numbers."""
    task = decode(TrainTask, dict(arguments))
    store, activation_id = open_store(store_address()), os.environ["__OW_ACTIVATION_ID"]
    store.claim(task.key, run=task.run, activation_id=activation_id)
    bad = {{name: tensor * float("nan") for name, tensor in store.get(task.weights.name).items()}}
    ref = store.put(task.key, bad, run=task.run, round_no=task.round)
    result = encode(TrainResult(update=ref, samples=10, loss=0.1, accuracy=1.0, seconds={{}}))
    store.publish(
        Outcome(key=task.key, run=task.run, ok=True, result=result, reason="",
                activation_id=activation_id, at_ms=1)
    )
    return result
'''
