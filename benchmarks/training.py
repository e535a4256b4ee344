"""What a round with training takes, beside the bare fits: real keepers, fabric, mongod, TensorFlow functions.

    python -m benchmarks.training
    python -m benchmarks.training --clients 10 --samples 500 --rounds 5 --share on,off --json training.json

The floor: the clients' fits one after another in one warm process (`benchmarks.fits`), before and after the
rounds; its wall is divided by the processors. `beside` is the same work by as many such processes at once as
there are processors: on a machine that others use, it has their share of it and no more. CPU seconds of a
round are those of all our processes, from its start to the next one's.
docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.figures import table
from benchmarks.lab import REPOSITORY, Json, Lab, in_own_network
from benchmarks.processes import Meter
from benchmarks.rounds import ENDED, meter_of
from fedkeeper.fabric.inside.zygote import NICE

LOOK_S = 0.2
LEASE_S = 6.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained in a round."""

    clients: int
    samples: int  # rows of each client
    batch: int
    model: str = "cnn"
    optimizer: str = "adam"


class TrainingLab(Lab):
    """The lab with the product's functions and the paper's CNN."""

    work: Work
    share: bool

    def _write_data(self) -> None:
        rows = self.work.clients * self.work.samples
        with np.load(REPOSITORY / "data" / "mnist-12k.npz") as sample:
            if rows > len(sample["y_train"]):
                raise SystemExit(f"{rows} rows are asked for, the sample has {len(sample['y_train'])}")
            np.savez(
                self.folder / "small.npz",
                x_train=sample["x_train"][:rows],
                y_train=sample["y_train"][:rows],
                x_test=sample["x_test"][:1000],
                y_test=sample["y_test"][:1000],
            )

    def _config(self) -> Json:
        config = super()._config()
        config["embedded"]["share_workers"] = self.share
        scenario = config["scenarios"]["federated_learning"]
        scenario["data_sampling"] = {
            "model": self.work.model,
            "input_shape_x": 28,
            "input_shape_y": 28,
            "batch_size": self.work.batch,
        }
        scenario["model_params"] = {"lr": 1e-3, "optim": self.work.optimizer, "local_epochs": 1}
        scenario["partition"] = {"scheme": "iid"}
        scenario["functions"] = {
            name: {"openwhisk": {"func_path": str(REPOSITORY / "functions" / name), "memory": 512}}
            for name in ("fl_client", "fl_server_init", "fl_server_aggregator")
        }
        return config


class Fits:
    """Processes of `benchmarks.fits`, warm and waiting."""

    def __init__(self, work: Work, data: Path, count: int) -> None:
        self._clients = work.clients
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        shares = [work.clients // count + (number < work.clients % count) for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.fits"),
                    json.dumps({**asdict(work), "clients": share, "data": str(data), "nice": NICE}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for share in shares
        ]
        for one in self._processes:
            self._read(one)

    def run(self) -> Json:
        """Train every client once: wall seconds until the last is done, CPU seconds of all."""
        begun = time.monotonic()
        for one in self._processes:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        with ThreadPoolExecutor(len(self._processes)) as threads:
            taken = list(threads.map(self._read, self._processes))
        return {"wall_s": time.monotonic() - begun, "cpu_s": sum(one["cpu_s"] for one in taken)}

    def _read(self, process: subprocess.Popen[str]) -> Json:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of the floor ended with {process.wait()}")
        read: Json = json.loads(line)
        return read

    def close(self) -> None:
        """End them."""
        for one in self._processes:
            assert one.stdin is not None
            one.stdin.close()
        for one in self._processes:
            one.wait(20)


class Floors:
    """Both floors, measured whenever asked."""

    def __init__(self, work: Work, data: Path) -> None:
        self.cores = len(os.sched_getaffinity(0))
        self._alone, self._beside = Fits(work, data, 1), Fits(work, data, self.cores)
        self._seen: list[tuple[Json, Json]] = []

    def look(self, times: int = 1) -> None:
        """Measure both."""
        self._seen += [(self._alone.run(), self._beside.run()) for _ in range(times)]

    def medians(self) -> Json:
        """Seconds: wall of the fits by the processors, wall of them side by side, CPU."""
        alone = [one for one, _ in self._seen]
        return {
            "wall_s": statistics.median(one["wall_s"] for one in alone) / self.cores,
            "beside_s": statistics.median(one["wall_s"] for _, one in self._seen),
            "cpu_s": statistics.median(one["cpu_s"] for one in alone),
        }

    def close(self) -> None:
        """End the processes."""
        self._alone.close()
        self._beside.close()


def watch(lab: Lab, meter: Meter) -> tuple[Json, list[dict[str, float]]]:
    """Run to the end: the run, and the CPU seconds of all parts when the first round began and after each."""
    run = lab.submit()
    marks: list[dict[str, float]] = []
    looked = 0
    while True:
        seen = next(filter(None, (lab.run_seen_by(one, run) for one in lab.keepers)), None)
        if seen is not None:
            reached = len(seen["history"]) + (seen["round"] > 0)
            if reached > len(marks):
                marks += [meter.cpu()] * (reached - len(marks))
            if seen["phase"] in ENDED:
                break
        if (looked := looked + 1) % 20 == 0:  # it costs what it measures
            meter.look()
        time.sleep(LOOK_S)
    if seen["phase"] != "finished":
        raise SystemExit(f"the run {seen['phase']}: {seen['reason']}")
    return seen, marks


def measure(work: Work, rounds: int, keepers: int, *, share: bool) -> list[Json]:
    """Two rows: the first round, and the median of the later ones."""
    with TemporaryDirectory(prefix="training") as scratch:
        lab = TrainingLab(
            Path(scratch),
            keepers_count=keepers,
            clients=work.clients,
            rounds=rounds,
            lease_s=LEASE_S,
            keepers_changes={"timing": "patient"},  # functions that train leave a keeper little processor
        )
        lab.work, lab.share = work, share
        with lab.opened():
            floors = Floors(work, lab.folder / "small.npz")
            try:
                floors.look()
                meter = meter_of(lab)
                seen, marks = watch(lab, meter)
                floors.look()
            finally:
                floors.close()
    floor = floors.medians()
    walls = [(one["aggregated_ms"] - one["started_ms"]) / 1000 for one in seen["history"]]
    spent = [{part: after[part] - before[part] for part in after} for before, after in pairwise(marks)]
    rows = []
    for name, numbers in (("first", [0]), ("later", list(range(1, len(walls))))):
        figures = figures_of(numbers, walls, spent, floor)
        last = seen["history"][numbers[-1]]
        rows.append(
            {
                "round": name,
                "clients": work.clients,
                "samples": work.samples,
                "batch": work.batch,
                "share_workers": share,
                **figures,
                "largest MB": {part: round(value) for part, value in meter.peak_mb.items()},
                "a round s": {
                    "updates": (last["trained_ms"] - last["started_ms"]) / 1000,
                    "aggregate": round(last["aggregate_s"], 3),
                    "evaluate": round(last["evaluate_s"], 3),
                },
                "until it ended s": round((last["aggregated_ms"] - seen["submitted_ms"]) / 1000, 1),
                "accuracy": last["accuracy"],
                "load": round(psutil.getloadavg()[0], 1),
            }
        )
    return rows


def figures_of(numbers: list[int], walls: list[float], spent: list[dict[str, float]], floor: Json) -> Json:
    """Medians over the rounds `numbers`, and their ratios to the floor."""
    parts = {part: statistics.median(spent[number][part] for number in numbers) for part in spent[0]}
    wall_s = statistics.median(walls[number] for number in numbers)
    cpu_s = statistics.median(sum(spent[number].values()) for number in numbers)
    return {
        "rounds": len(numbers),
        "wall s": round(wall_s, 2),
        "cpu s": round(cpu_s, 2),
        "floor s": round(floor["wall_s"], 2),
        "floor beside s": round(floor["beside_s"], 2),
        "floor cpu s": round(floor["cpu_s"], 2),
        "wall / floor": round(wall_s / floor["wall_s"], 2),
        "wall / beside": round(wall_s / floor["beside_s"], 2),
        "cpu / floor": round(cpu_s / floor["cpu_s"], 2),
        "cpu s by part": {name: round(value, 2) for name, value in parts.items()},
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="two or more")
    parser.add_argument("--keepers", type=int, default=3)
    parser.add_argument("--share", default="on,off", help="share_workers")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    work = Work(clients=chosen.clients, samples=chosen.samples, batch=chosen.batch)
    rows: list[Json] = []
    for share in chosen.share.split(","):
        rows += measure(work, chosen.rounds, chosen.keepers, share=share == "on")
        print(table(rows[-2:]), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
