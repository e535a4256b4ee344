"""What rounds of many clients cost the keepers: more than a machine could train, on a stub of a cluster.

    python -m benchmarks.scale --clients 100,1000,10000

Keepers, Raft and the store are real; the cluster (benchmarks.stub) invents what functions do: latencies,
failures, silence. Per round: wall time, CPU of conductor and follower, the memory of the largest keeper,
bytes of one keeper's log, and requests to the platform.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import requests
from pymongo import MongoClient

from benchmarks.lab import Json, Lab, in_own_network, wait_for
from benchmarks.reference import piece_us
from benchmarks.rounds import ENDED
from benchmarks.stub import Settings, running
from fedkeeper.runtime import mongo
from fedkeeper.weights.embedded import open_embedded_mongo

AUTH = "00000000-0000-0000-0000-000000000000:stub"  # of nothing
LIMIT_S = 1800.0


class ScaleLab(Lab):
    """A lab whose functions run nowhere."""

    settings: Settings
    port = 0

    async def _open_services(self, stack: AsyncExitStack) -> None:
        store = await open_embedded_mongo(
            self.folder / "embedded" / "mongo", database="lab", collection="w", linger_s=10
        )
        stack.push_async_callback(store.close)
        self._store = store.address
        self.mongo: MongoClient[Json] = MongoClient(**mongo.client_options(store.address))
        stack.callback(self.mongo.close)
        self.settings = Settings(store=asdict(store.address), auth=AUTH, seed=0)
        _, self.port = stack.enter_context(running(self.settings))
        self.config_path.write_text(json.dumps(self._config()))

    def _config(self) -> Json:
        config = super()._config()
        # The commit of a large round takes time in proportion to its clients, in which no heartbeat is sent.
        config["keepers"] |= {"timing": "patient", "lease_s": 6.0}
        address = f"http://127.0.0.1:{self.port or 1}"
        config["providers"] = {"openwhisk": {"ow": {"auth": {"ow_api_host": address, "ow_auth": AUTH}}}}
        config["scenarios"]["federated_learning"]["aggregation"] = {"shards": 1}  # the stub knows no other
        config["scenarios"]["federated_learning"]["limits"] |= {"keep_rounds": 1, "client_timeout_s": 120}
        return config

    def requests(self) -> int:
        """Requests to the platform so far."""
        counted: dict[str, int] = requests.get(f"http://127.0.0.1:{self.port}/requests", timeout=10).json()
        return sum(counted.values()) - counted.get("GET /requests", 0)

    def log_bytes(self) -> int:
        """Bytes of all keepers' journals and snapshots."""
        folder = self.folder / "embedded" / "keepers"
        return sum(path.stat().st_size for path in folder.rglob("*") if path.name in ("journal", "snapshot"))


def _seen(lab: ScaleLab, run: str) -> Json | None:
    for one in lab.keepers:
        found = one.get(f"runs/{run}?history_from=0", timeout_s=20.0)
        if found is not None:
            return found
    return None


def measure(clients: int, rounds: int, keepers: int) -> Json:
    """One number of clients."""
    with TemporaryDirectory(prefix="scale") as scratch:
        lab = ScaleLab(Path(scratch), keepers_count=keepers, clients=clients, rounds=rounds)
        with lab.opened():
            processes = {one.name: psutil.Process(one.process.pid) for one in lab.keepers if one.process}
            begun = time.monotonic()
            run = lab.submit()
            deployed = wait_for(
                lambda: (status := lab.status()) and _round_of(status, run) >= 1 and time.monotonic(),
                "the first round",
                limit_s=LIMIT_S,
                every_s=0.5,
            )
            before = {name: sum(one.cpu_times()[:2]) for name, one in processes.items()}
            counted = lab.requests(), lab.log_bytes()
            epoch = wait_for(lab.status, "a status")["epoch"]
            started = time.monotonic()
            peak: dict[str, float] = {}
            while True:
                for name, one in processes.items():
                    peak[name] = max(peak.get(name, 0.0), one.memory_info().rss / 2**20)
                status = wait_for(lab.status, "a status", limit_s=60)
                if _phase_of(status, run) in ENDED or time.monotonic() - started > LIMIT_S:
                    break
                time.sleep(0.5)
            took_s = time.monotonic() - started
            cpu = {name: sum(one.cpu_times()[:2]) - before[name] for name, one in processes.items()}
            requests_s = (lab.requests() - counted[0]) / took_s
            log_bytes = lab.log_bytes() - counted[1]
            seen = wait_for(lambda: _seen(lab, run), "the run", limit_s=60)
            if seen["phase"] != "finished":
                raise SystemExit(f"{clients} clients: the run {seen['phase']}: {seen['reason']}")
            conductor = status["conductor"]
    others = [value for name, value in cpu.items() if name != conductor]
    walls = [(one["aggregated_ms"] - one["started_ms"]) / 1000 for one in seen["history"]]
    invoked = [(one["invoked_ms"] - one["started_ms"]) / 1000 for one in seen["history"]]
    return {
        "clients": clients,
        "deploy s": round(deployed - begun, 1),
        "round s": round(statistics.median(walls), 1),
        "invoke s": round(statistics.median(invoked), 1),
        "failed / round": round(statistics.mean(one["failures"] for one in seen["history"]), 1),
        "conductor CPU s": round(cpu[conductor] / rounds, 2),
        "ms / client": round(cpu[conductor] / rounds / clients * 1000, 2),
        "takeovers": status["epoch"] - epoch,
        "follower CPU s": round(statistics.mean(others) / rounds, 2) if others else 0.0,
        "keeper MB": round(max(peak.values())),
        "log KB / round": round(log_bytes / 1000 / rounds / keepers, 1),
        "requests / s": round(requests_s, 1),
        "requests / client": round(requests_s * took_s / rounds / clients, 2),
        "piece us": round(piece_us(), 1),
        "load": round(psutil.getloadavg()[0], 1),
    }


def _of(status: Json, run: str) -> Json:
    return next((one for one in status["runs"] if one["run"] == run), {})


def _round_of(status: Json, run: str) -> int:
    return int(_of(status, run).get("round", 0))


def _phase_of(status: Json, run: str) -> str:
    return str(_of(status, run).get("phase", ""))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", default="100,1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keepers", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    rows: list[dict[str, Any]] = []
    for clients in map(int, chosen.clients.split(",")):
        rows.append(measure(clients, chosen.rounds, chosen.keepers))
        print(rows[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
