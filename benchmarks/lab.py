"""A cluster of real keepers, fabric, mongod and functions in a network of their own, to do things to.

Everything runs in one network namespace made by `in_own_network`: the keepers' Raft ports are on loopback
addresses of their own (127.0.1.1, 127.0.1.2, …), so that a rule of the routing policy can cut one off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
import yaml
from pymongo import MongoClient

from benchmarks.starter import Forked, Starter
from fedkeeper.core.model import Run
from fedkeeper.fabric.launch import open_fabric
from fedkeeper.runtime import mongo
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.embedded import open_embedded_mongo

REPOSITORY = Path(__file__).parents[1]
_MARK = "FEDKEEPER_OWN_NETWORK"
RAFT_PORT = 17_001  # below those that the system gives to callers
API_PORT = 17_101
Json = dict[str, Any]


class LabError(Exception):
    """The laboratory itself does not work."""


def in_own_network() -> None:
    """Go on in a new network namespace with loopback only. LabError says what that needs."""
    if os.environ.get(_MARK):
        return
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise LabError(f"partitions need root, and {' and '.join(missing) or 'a kernel'} with namespaces")
    setup = (
        'ip link set lo up && ip rule add pref 100 lookup local && ip rule del pref 0 && exec "$0" -m "$@"'
    )
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "run it as python -m benchmarks.NAME"
    os.environ[_MARK] = "1"
    os.execvp(  # noqa: S606 - no shell wanted but the one named
        "unshare", ["unshare", "-n", "sh", "-c", setup, sys.executable, spec.name, *sys.argv[1:]]
    )


def cut_off(host: str, others: list[str], *, directions: str = "both") -> None:
    """No packet passes between `host` and `others`, without any notice to them.

    `directions`: both; or only those `from` the host, or `to` it.
    """
    ways = [(host, other) for other in others if directions != "to"]
    ways += [(other, host) for other in others if directions != "from"]
    known = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout
    for one, two in ways:
        if f"from {one} to {two} blackhole" not in known:  # it may be cut off from there already
            _ip("rule", "add", "pref", "10", "from", one, "to", two, "blackhole")


def heal() -> None:
    """Undo every `cut_off`."""
    while (
        subprocess.run(["ip", "rule", "del", "pref", "10"], capture_output=True, check=False).returncode == 0
    ):
        pass


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def wait_for(
    condition: Callable[[], Any], what: str, *, limit_s: float = 60.0, every_s: float = 0.002
) -> Any:
    """What `condition` returns once that is true; LabError after `limit_s`."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise LabError(f"not in {limit_s:g} s: {what}")
        time.sleep(every_s)
    return found


@dataclass
class KeeperProcess:
    """One keeper, as a process of its own."""

    name: str
    number: int
    lab: Lab
    process: Forked | None = None

    @property
    def host(self) -> str:
        """Where its Raft port is."""
        return f"127.0.1.{self.number}"

    @property
    def api(self) -> str:
        """Base URL of its API, which no partition touches."""
        return f"http://127.0.0.1:{API_PORT + self.number}"

    @property
    def alive(self) -> bool:
        """Whether the process runs (a stopped one does)."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Run `main.py -k`; its output goes to <folder>/<name>.out."""
        self.process = self.lab.starter.start(
            ["-c", str(self.lab.config_path), "-k", self.name],
            folder=self.lab.folder,
            output=self.lab.folder / f"{self.name}.out",
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; after SIGKILL wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(30)

    def get(self, path: str, *, timeout_s: float = 2.0) -> Json | None:
        """The answer to GET /v1/<path>; None if there is none, or it is an error."""
        try:
            answer = self.lab.http.get(f"{self.api}/v1/{path}", timeout=timeout_s)
        except requests.RequestException:
            return None
        return answer.json() if answer.ok else None


@dataclass
class Lab:
    """Keepers k1..kn of one experiment; use as a context manager."""

    folder: Path
    keepers_count: int = 3
    clients: int = 4
    rounds: int = 3
    lease_s: float = 0.6
    functions_mb: int = 8192  # sum of the memory limits of the functions' instances
    keepers_changes: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http = requests.Session()
        self.http.trust_env = False
        self.keepers = [
            KeeperProcess(name=f"k{number}", number=number, lab=self)
            for number in range(1, self.keepers_count + 1)
        ]
        self.config_path = self.folder / "config.yaml"
        self._submitted = 0
        self._events_read: dict[str, int] = {}  # bytes
        self._store: StoreAddress | None = None

    @contextmanager
    def opened(self) -> Iterator[Lab]:
        """Data, config, fabric, mongod and all keepers; ended in order afterwards."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends as well
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_data()
        self.config_path.write_text(yaml.safe_dump(self._config(), sort_keys=False))
        with asyncio.Runner() as runner:
            stack = AsyncExitStack()
            self.starter = Starter()
            stack.callback(self.starter.close)
            try:
                runner.run(self._open_services(stack))
                for keeper in self.keepers:
                    keeper.start()
                wait_for(self.leader, "a leader of all keepers", limit_s=90)
                yield self
            except LabError as exc:
                exc.add_note(self.said())
                raise
            finally:
                for keeper in self.keepers:
                    if keeper.alive:
                        keeper.signal(signal.SIGCONT)
                        keeper.signal(signal.SIGTERM)
                for keeper in self.keepers:
                    if keeper.process is not None:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            keeper.process.wait(20)
                        keeper.process.kill()
                runner.run(stack.aclose())

    async def _open_services(self, stack: AsyncExitStack) -> None:
        embedded = self.folder / "embedded"
        store = await open_embedded_mongo(embedded / "mongo", database="lab", collection="w", linger_s=10)
        stack.push_async_callback(store.close)
        fabric = await open_fabric(
            embedded / "fabric", namespaces=["ow"], projects=[], memory_mb=self.functions_mb, linger_s=10
        )
        stack.push_async_callback(fabric.close)
        self._store = store.address
        self.mongo: MongoClient[Json] = MongoClient(**mongo.client_options(store.address))
        stack.callback(self.mongo.close)

    def said(self) -> str:
        """The last lines of every keeper."""
        outs = [(keeper.name, self.folder / f"{keeper.name}.out") for keeper in self.keepers]
        return "\n".join(f"{name}: {path.read_text()[-3000:]}" for name, path in outs if path.exists())

    # --- what can be seen -------------------------------------------------------------------------

    def leader(self) -> str | None:
        """The leader that all living keepers agree on."""
        said = [keeper.get("status") for keeper in self.keepers if keeper.alive]
        names = {one["leader"] if one is not None else "" for one in said}
        return next(iter(names)) if len(names) == 1 and "" not in names else None

    def status(self, *, but: str = "") -> Json | None:
        """What a living keeper says of the cluster: the one that has applied most."""
        said = [
            keeper.get("status", timeout_s=0.3)
            for keeper in self.keepers
            if keeper.alive and keeper.name != but
        ]
        return max(
            (one for one in said if one is not None), key=lambda one: int(one["applied_index"]), default=None
        )

    def conductor(self) -> KeeperProcess:
        """The keeper that conducts, as soon as one does and lives."""

        def found() -> KeeperProcess | None:
            status = self.status()
            name = status["conductor"] if status is not None else ""
            return next((keeper for keeper in self.keepers if keeper.name == name and keeper.alive), None)

        keeper = wait_for(found, "a conductor")
        assert isinstance(keeper, KeeperProcess)
        return keeper

    def claims(self, run: str) -> list[str]:
        """Every key of `run` that a function has claimed: one per training that was begun."""
        assert self._store is not None
        names = mongo.Names(self._store.collection)
        found = self.mongo[self._store.database][names.claims].find({"run": run}, {"_id": True})
        return sorted(document["_id"] for document in found)

    def has_outcome(self, key: str) -> bool:
        """Whether the function that holds `key` has published what came of it."""
        assert self._store is not None
        names = mongo.Names(self._store.collection)
        return self.mongo[self._store.database][names.outcomes].find_one({"_id": key}) is not None

    def events(self, keeper: KeeperProcess) -> list[Json]:
        """What a keeper has written to its own events.jsonl since the last call."""
        path = self.folder / "embedded" / "keepers" / "lab" / keeper.name / "events.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._events_read.get(keeper.name, 0))
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._events_read[keeper.name] = self._events_read.get(keeper.name, 0) + len(whole)
        return [json.loads(line) for line in whole.splitlines() if line]

    # --- what can be done -------------------------------------------------------------------------

    def submit(self) -> str:
        """Start the next run of the experiment; its name."""
        from fedkeeper.config import load  # noqa: PLC0415 - heavy, and only needed here
        from fedkeeper.wiring.keeper import submission  # noqa: PLC0415

        self._submitted += 1
        name = f"lab-{self._submitted}"
        experiment = load(self.config_path)
        body = submission(experiment, name)

        def sent() -> bool:
            for keeper in self.keepers:
                with contextlib.suppress(requests.RequestException):
                    answer = self.http.post(
                        f"{keeper.api}/v1/runs",
                        data=body.encoded(),
                        headers={"Content-Type": "application/json"},
                        timeout=5,
                    )
                    if answer.status_code in (201, 409):
                        return True
                    last.append(f"{answer.status_code} {answer.text[:300]}")
            return False

        last: list[str] = []
        try:
            wait_for(sent, "a keeper that takes the run", limit_s=30, every_s=0.05)
        except LabError as exc:
            raise LabError(f"{exc}: {last[-1:]}") from None
        return name

    def run_seen_by(self, keeper: KeeperProcess, run: str) -> Json | None:
        """The run as one keeper knows it."""
        return keeper.get(f"runs/{run}", timeout_s=1.0)

    def forget(self, run: str) -> None:
        """Drop an ended run, so that many runs do not slow the last ones down."""
        for keeper in self.keepers:
            with contextlib.suppress(requests.RequestException):
                if self.http.delete(f"{keeper.api}/v1/runs/{run}", timeout=10).ok:
                    return

    # --- how --------------------------------------------------------------------------------------

    def _write_data(self) -> None:
        with np.load(REPOSITORY / "data" / "mnist-12k.npz") as sample:
            np.savez(
                self.folder / "small.npz",
                x_train=sample["x_train"][: 40 * self.clients],
                y_train=sample["y_train"][: 40 * self.clients],
                x_test=sample["x_test"][:100],
                y_test=sample["y_test"][:100],
            )

    def _config(self) -> Json:
        data = str(self.folder / "small.npz")
        secret = self.folder / "secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_urlsafe(32))
        return {
            "version": 1,
            "name": "lab",
            "embedded": {
                "data_dir": str(self.folder / "embedded"),
                "memory_mb": self.functions_mb,
                "linger_s": 10,
            },
            "logs": {"folder": str(self.folder / "logs")},
            "keepers": {
                "embedded": False,
                "members": {
                    keeper.name: {"raft": f"{keeper.host}:{RAFT_PORT}", "api": keeper.api}
                    for keeper in self.keepers
                },
                "secret_file": str(secret),
                "lease_s": self.lease_s,
                "timing": "fast",
                **self.keepers_changes,
            },
            "providers": {"openwhisk": {"ow": {"embedded": True}}},
            "scenarios": {
                "federated_learning": {
                    "server_config": {"server_cluster_name": "ow"},
                    "clients_info": {
                        "total_num_clients": self.clients,
                        "num_clients_per_round": self.clients,
                        "ow_clients_count": self.clients,
                    },
                    "data_sampling": {"model": "mnistnn", "hidden_size": 16, "batch_size": 20},
                    "mongo_config": {"embedded": True, "db": "lab", "collection": "w"},
                    "training_test_data": {
                        f"{part}_{kind}_url": data
                        for part in ("train", "test")
                        for kind in ("images", "labels")
                    },
                    "stopping": {"rounds_max": self.rounds},
                    "limits": {"retry_backoff_s": 0.1, "keep_rounds": 50},
                }
            },
        }


def attempts(run: Json) -> list[Json]:
    """The attempts of a run that have no answer yet."""
    return list(run["outbox"].values())


__all__ = [
    "KeeperProcess",
    "Lab",
    "LabError",
    "Run",
    "attempts",
    "cut_off",
    "heal",
    "in_own_network",
    "wait_for",
]
