"""What a round costs beside the training: real keepers, fabric, mongod and functions; nobody trains.

    python -m benchmarks.rounds
    python -m benchmarks.rounds --cases 10x10KB,100x10KB,1000x10KB,10x6.65MB --json rounds.json
    python -m benchmarks.rounds --cases 100x6.65MB,10x100MB

Clients read the weights, move them a little, check and store them; the aggregator is the product's own.
Figures are medians over the rounds after the first. The floor is measured in the same run, in one process:
the same bytes read and written by pymongo's GridFS, and averaged by numpy as they come.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gridfs
import numpy as np
import psutil

from benchmarks.lab import Json, Lab, in_own_network
from fedkeeper import service
from fedkeeper.weights.embedded import SERVICE_NAME

FUNCTIONS = Path(__file__).parent / "functions"
ENDED = ("finished", "failed", "stopped")
UNITS = {"KB": 10**3, "MB": 10**6}


@dataclass(frozen=True)
class Case:
    """So many clients with so large a model."""

    clients: int
    nbytes: int
    label: str

    @classmethod
    def read(cls, text: str) -> Case:
        """From "100x6.65MB"."""
        clients, size = text.split("x")
        return cls(clients=int(clients), nbytes=int(float(size[:-2]) * UNITS[size[-2:]]), label=text)


class RoundsLab(Lab):
    """The lab with functions that do not train, and a synthetic model."""

    case: Case
    memory_mb: int

    def _config(self) -> Json:
        config = super()._config()
        scenario = config["scenarios"]["federated_learning"]
        scenario["data_sampling"] = {"model": "benchmark:model", "hidden_size": self.case.nbytes // 4}
        scenario["limits"] |= {
            "keep_rounds": 1,
            "model_bytes_max": f"{max(1, self.case.nbytes // 10**6 * 2)}MB",
        }
        scenario["functions"] = {
            name: {"openwhisk": {"func_path": str(FUNCTIONS / name), "memory": self.memory_mb}}
            for name in ("fl_client", "fl_server_init", "fl_server_aggregator")
        }
        return config


class Meter:
    """CPU and memory of the lab's processes and of everything below them."""

    def __init__(self, lab: Lab) -> None:
        self._roots = {one.name: psutil.Process(one.process.pid) for one in lab.keepers if one.process}
        embedded = lab.folder / "embedded"
        for part, name in (("fabric", "fabric"), ("mongo", SERVICE_NAME)):
            if (pid := service.pid_of(embedded / part, name)) is not None:
                self._roots[part] = psutil.Process(pid)
        self.peak_mb: dict[str, float] = {}

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, those of ended children included."""
        return {name: _cpu(root) for name, root in self._roots.items()}

    def look(self) -> None:
        """Remember the largest process of each part (USS, MB)."""
        for name, root in self._roots.items():
            for one in _tree(root):
                try:
                    memory = one.memory_full_info().uss / 2**20
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), memory)


def _cpu(root: psutil.Process) -> float:
    while True:
        try:
            return sum(sum(one.cpu_times()[:4]) for one in _tree(root))
        except psutil.NoSuchProcess:  # ended meanwhile: its parent has its seconds now
            continue


def _tree(root: psutil.Process) -> Iterator[psutil.Process]:
    yield root
    try:
        yield from root.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def measure(case: Case, rounds: int, keepers: int) -> Json:
    """One case."""
    with TemporaryDirectory(prefix="rounds") as scratch:
        lab = RoundsLab(Path(scratch), keepers_count=keepers, clients=case.clients, rounds=rounds)
        lab.case = case
        lab.memory_mb = max(128, 4 * case.nbytes // 10**6)
        with lab.opened():
            meter = Meter(lab)
            run = lab.submit()
            begun, looked = None, 0
            while True:
                seen = next(filter(None, (lab.run_seen_by(one, run) for one in lab.keepers)), None)
                if seen is not None:
                    if begun is None and seen["history"]:
                        begun = meter.cpu(), len(seen["history"])
                    if seen["phase"] in ENDED:
                        break
                if (looked := looked + 1) % 10 == 0:  # it costs what it measures
                    meter.look()
                time.sleep(0.2)
            meter.look()
            after = meter.cpu()
            if seen["phase"] != "finished":
                raise SystemExit(f"{case.label}: the run {seen['phase']}: {seen['reason']}")
            assert begun is not None
            before, done = begun
            counted = max(1, len(seen["history"]) - done)
            walls = [
                (one["aggregated_ms"] - one["started_ms"]) / 1000
                for one in seen["history"][1:] or seen["history"]
            ]
            parts = {name: round((after[name] - before[name]) / counted, 3) for name in after}
            floor_s = floor(lab, case)
    last = seen["history"][-1]
    return {
        "case": case.label,
        "wall s": round(statistics.median(walls), 3),
        "first s": round((seen["history"][0]["aggregated_ms"] - seen["history"][0]["started_ms"]) / 1000, 2),
        "floor s": round(floor_s, 3),
        "wall / floor": round(statistics.median(walls) / floor_s, 1),
        "cpu s": round(sum(parts.values()), 2),
        "cpu s by part": parts,
        "largest MB": {name: round(value) for name, value in meter.peak_mb.items()},
        "last round s": {
            "invoke": (last["invoked_ms"] - last["started_ms"]) / 1000,
            "updates": (last["trained_ms"] - last["started_ms"]) / 1000,
            "aggregate": last["aggregate_s"],
        },
        "load": round(psutil.getloadavg()[0], 1),
    }


def floor(lab: Lab, case: Case) -> float:
    """Seconds for the same bytes in one process: each update written, read and averaged, one by one."""
    store = gridfs.GridFSBucket(lab.mongo["lab"], "floor", chunk_size_bytes=8 * 2**20)
    update = np.ones(case.nbytes // 4, np.float32)
    total = np.zeros(len(update), np.float64)
    begun = time.monotonic()
    for _ in range(case.clients):
        name = store.upload_from_stream("update", update.tobytes())
        with store.open_download_stream(name) as stream:
            total += np.frombuffer(stream.read(), np.float32)
    took_s = time.monotonic() - begun
    for part in ("files", "chunks"):
        lab.mongo["lab"][f"floor.{part}"].drop()
    return took_s


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="10x10KB,100x10KB,10x6.65MB")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--keepers", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    rows: list[dict[str, Any]] = []
    for case in map(Case.read, chosen.cases.split(",")):
        rows.append(measure(case, chosen.rounds, chosen.keepers))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
