"""What a round costs beside the training: real keepers, fabric, mongod and functions; nobody trains.

    python -m benchmarks.rounds
    python -m benchmarks.rounds --cases 10x10KB,100x10KB,1000x10KB,10x6.65MB --runs 3 --json rounds.json
    python -m benchmarks.rounds --cases 100x10KB --keepers 1,3,5
    python -m benchmarks.rounds --flower --flower-python flower/bin/python

Clients read the weights, move them a little, check and store them; the aggregator is the product's own.
Figures of a run are medians over its rounds after the first (CPU: their mean); with several runs, medians
over these. Two floors are measured in each run, in one process: the same bytes read and written by bare
pymongo (a document up to 1 MB, GridFS above), and the same bytes averaged by numpy as they come.
With --flower each case is run with Flower as well (benchmarks.flower), with its ratios to ours.
docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gridfs
import numpy as np
import psutil

from benchmarks import flower
from benchmarks.cases import Case, Json
from benchmarks.figures import median_of
from benchmarks.lab import Lab, LabError, in_own_network
from benchmarks.processes import Meter
from benchmarks.reference import piece_us
from fedkeeper import service
from fedkeeper.runtime.mongo import CHUNK_BYTES, INLINE_BYTES_MAX
from fedkeeper.weights.embedded import SERVICE_NAME

FUNCTIONS = Path(__file__).parent / "functions"
ENDED = ("finished", "failed", "stopped")


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


def meter_of(lab: Lab) -> Meter:
    """Of the keepers, the fabric and mongod, each with what is below it."""
    roots = {one.name: one.process.pid for one in lab.keepers if one.process}
    embedded = lab.folder / "embedded"
    for part, name in (("fabric", "fabric"), ("mongo", SERVICE_NAME)):
        if (pid := service.pid_of(embedded / part, name)) is not None:
            roots[part] = pid
    return Meter(roots)


def measure(case: Case, rounds: int, keepers: int) -> Json:
    """One case."""
    with TemporaryDirectory(prefix="rounds") as scratch:
        lab = RoundsLab(Path(scratch), keepers_count=keepers, clients=case.clients, rounds=rounds)
        lab.case = case
        lab.memory_mb = max(128, 4 * case.nbytes // 10**6)
        with lab.opened():
            meter = meter_of(lab)
            run = lab.submit()
            begun, looked = None, 0
            while True:
                seen = next(filter(None, (lab.run_seen_by(one, run) for one in lab.keepers)), None)
                if seen is not None:
                    if begun is None and seen["history"]:
                        begun = meter.cpu(), len(seen["history"])
                    if seen["phase"] in ENDED:
                        break
                if (looked := looked + 1) % 4 == 0:  # it costs what it measures
                    meter.look()
                time.sleep(0.5)
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
            store, average = store_floor(lab, case), average_floor(case)
    last, wall_s, cpu_s = seen["history"][-1], statistics.median(walls), sum(parts.values())
    return {
        "case": case.label,
        "system": "FedKeeper",
        "clients": case.clients,
        "bytes": case.nbytes,
        "keepers": keepers,
        "wall s": round(wall_s, 3),
        "first s": round((seen["history"][0]["aggregated_ms"] - seen["history"][0]["started_ms"]) / 1000, 2),
        "cpu s": round(cpu_s, 3),
        "store floor s": round(store.wall_s, 4),
        "store floor cpu s": round(store.cpu_s, 4),
        "average floor s": round(average.wall_s, 5),
        "wall / store": round(wall_s / store.wall_s, 1),
        "cpu / store": round(cpu_s / store.cpu_s, 1),
        "wall / average": round(wall_s / average.wall_s, 1),
        "cpu s by part": parts,
        "largest MB": {name: round(value) for name, value in meter.peak_mb.items()},
        "last round s": {
            "invoke": (last["invoked_ms"] - last["started_ms"]) / 1000,
            "updates": (last["trained_ms"] - last["started_ms"]) / 1000,
            "aggregate": last["aggregate_s"],
        },
        "piece us": round(piece_us(), 1),
        "load": round(psutil.getloadavg()[0], 1),
    }


@dataclass(frozen=True)
class Floor:
    """What the least that could do it takes: one process, all processors' time (ours and mongod's)."""

    wall_s: float
    cpu_s: float


def store_floor(lab: Lab, case: Case) -> Floor:
    """By bare pymongo: per client, the weights read, its update written, and read again for the average."""
    files = gridfs.GridFSBucket(lab.mongo["lab"], "floor", chunk_size_bytes=CHUNK_BYTES)
    documents = lab.mongo["lab"]["floor"]
    data = np.ones(case.nbytes // 4, np.float32).tobytes()

    def write(name: str) -> None:
        if len(data) <= INLINE_BYTES_MAX:
            documents.insert_one({"_id": name, "data": data})
        else:
            files.upload_from_stream_with_id(name, name, data)

    def read(name: str) -> None:
        if len(data) <= INLINE_BYTES_MAX:
            assert documents.find_one({"_id": name}) is not None
        else:
            with files.open_download_stream(name) as stream:
                stream.read()

    write("weights")
    mongod = Meter({"mongo": meter_of(lab).pid_of("mongo")})
    begun, cpu, theirs = time.monotonic(), time.process_time(), mongod.cpu()["mongo"]
    for number in range(case.clients):
        read("weights")
        write(f"update {number}")
        read(f"update {number}")
    wall_s = time.monotonic() - begun
    cpu_s = time.process_time() - cpu + mongod.cpu()["mongo"] - theirs
    for name in ("floor", "floor.files", "floor.chunks"):
        lab.mongo["lab"][name].drop()
    return Floor(wall_s, max(cpu_s, 0.001))


def average_floor(case: Case) -> Floor:
    """By numpy, from memory: every update added to a float64 sum, then divided."""
    update = np.ones(case.nbytes // 4, np.float32)
    total = np.zeros(len(update), np.float64)
    begun, cpu = time.monotonic(), time.process_time()
    for _ in range(case.clients):
        total += update
    (total / case.clients).astype(np.float32)
    return Floor(time.monotonic() - begun, time.process_time() - cpu)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="10x10KB,100x10KB,10x6.65MB", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--keepers", default="3", type=lambda text: [int(one) for one in text.split(",")], help="as 1,3,5"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flower", action="store_true", help="run Flower beside it")
    parser.add_argument(
        "--flower-cases", type=lambda text: text.split(","), help="those of --cases, if not given"
    )
    parser.add_argument("--flower-rounds", type=int, default=4)
    flower.add_arguments(parser)
    chosen = parser.parse_args()
    try:
        cases = [Case.read(text) for text in chosen.cases]
        other = flower.Environment.of(chosen.flower_python) if chosen.flower else None
    except (LabError, ValueError) as exc:
        raise SystemExit(str(exc)) from None
    in_own_network()
    rows: list[Json] = []

    def say(row: Json) -> None:
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
        if chosen.json:  # what there is, should a later case fail
            chosen.json.write_text(json.dumps(rows, indent=1))

    for keepers in chosen.keepers:
        for case in cases:
            say(median_of([measure(case, chosen.rounds, keepers) for _ in range(chosen.runs)]))
    if other is not None:
        ours = {row["case"]: row for row in rows}
        for case in cases:
            if chosen.flower_cases is None or case.label in chosen.flower_cases:
                theirs = flower.several(case, other, chosen, rounds=chosen.flower_rounds)
                say(flower.beside(ours[case.label], theirs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
