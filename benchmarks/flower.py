"""The same clients, bytes and rounds with Flower: a SuperLink, SuperNodes and an app that does not train.

    python -m benchmarks.flower --cases 10x10KB,10x6.65MB --rounds 4 --flower-python flower/bin/python
    python -m benchmarks.rounds --flower --flower-python flower/bin/python       # beside our own

Needs a Python that has flwr: this one (the extra `flower`), or that of an environment of its own, since flwr
asks for an older protobuf, rich and packaging than requirements.lock has.
The app is benchmarks/flower_app: clients move the weights a little, FedAvg averages them, nobody evaluates.
Columns are as in benchmarks.rounds. `--flower-clients light` has all clients in one process, which starts
nothing for a message; `auto` does so when SuperNodes would need more than half of the memory that is free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from benchmarks.cases import Case, Json
from benchmarks.figures import median_of
from benchmarks.lab import LabError, in_own_network, wait_for
from benchmarks.processes import Meter
from benchmarks.reference import piece_us

APP: Final = Path(__file__).parent / "flower_app"
LINK: Final = "127.0.0.1:8000"
NODE_PORT: Final = 18_001  # of the first SuperNode, towards its own apps
NODE_MB: Final = 300  # memory of a SuperNode with its SuperExec and ClientApp, shared libraries aside
WAY_OUT: Final = (
    "make an environment that has it, `python -m venv flower && flower/bin/pip install 'flwr>=1.42,<2'`, "
    "and name it with --flower-python flower/bin/python"
)
START_S_MAX: Final = 300.0
ROUND_S_MAX: Final = 300.0


@dataclass(frozen=True)
class Environment:
    """A Python that has flwr."""

    python: Path
    version: str

    @classmethod
    def of(cls, python: Path | None) -> Environment:
        """That of `python`, or of this process. LabError if there is no flwr in it."""
        chosen = Path(sys.executable) if python is None else python.absolute()
        asked = "import importlib.metadata as m; print(m.version('flwr'))"
        try:
            done = subprocess.run(
                [chosen, "-c", asked], capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise LabError(f"{chosen} is no Python that starts ({type(exc).__name__}); {WAY_OUT}") from None
        if done.returncode:
            raise LabError(f"flwr is not installed: {chosen} has none; {WAY_OUT}")
        return cls(chosen, done.stdout.strip())

    def variables(self, folder: Path) -> dict[str, str]:
        """Its programs first in PATH, its home in `folder`, nothing reported to anybody."""
        return {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }


def chosen_clients(wanted: str, count: int, free_mb: float) -> str:
    """`nodes` or `light`: what was wanted, or what fits into half of the free memory."""
    if wanted != "auto":
        return wanted
    return "nodes" if count * NODE_MB <= free_mb / 2 else "light"


@dataclass
class Deployment:
    """A SuperLink and its clients; use `opened`."""

    environment: Environment
    folder: Path
    case: Case
    clients: str  # nodes, light

    @property
    def journal(self) -> Path:
        """A line for each round."""
        return self.folder / "rounds.jsonl"

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, int]]:
        """Process ids of the parts."""
        home = self.folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{LINK}"\ninsecure = true\n'
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends as well
        with contextlib.ExitStack() as stack:
            try:
                yield self._started(stack)
            except LabError as exc:
                for name in ("server", "clients"):
                    with contextlib.suppress(FileNotFoundError):
                        exc.add_note(f"{name}: {(self.folder / f'{name}.out').read_text()[-3000:]}")
                raise

    def _started(self, stack: contextlib.ExitStack) -> dict[str, int]:
        link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
        server = self._start(stack, "server", link)
        host, port = LINK.split(":")
        wait_for(lambda: _listens(host, int(port)), "a SuperLink that listens", limit_s=START_S_MAX)
        if self.clients == "light":
            python = ["env", f"PYTHONPATH={APP}", str(self.environment.python), "-B", "-m", "movement.light"]
            light = [*python, "--superlink", LINK, "--clients", str(self.case.clients)]
            return {"server": server, "clients": self._start(stack, "clients", light)}
        node = f"flower-supernode --insecure --superlink {LINK} --port"
        last = NODE_PORT + self.case.clients - 1
        all_nodes = f"for port in $(seq {NODE_PORT} {last}); do {node} $port & done; wait"
        return {"server": server, "clients": self._start(stack, "clients", ["sh", "-c", all_nodes])}

    def _start(self, stack: contextlib.ExitStack, name: str, command: list[str]) -> int:
        with (self.folder / f"{name}.out").open("w") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment.variables(self.folder),
                cwd=self.folder,
            )
        stack.callback(_end, process)
        return process.pid

    def submit(self, rounds: int) -> None:
        """Start the app."""
        settings = f"clients={self.case.clients} numbers={self.case.nbytes // 4} rounds={rounds}"
        done = subprocess.run(
            ["flwr", "run", str(APP), "lab", "--run-config", f"{settings} journal='{self.journal}'"],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment.variables(self.folder),
            cwd=self.folder,
            timeout=START_S_MAX,
        )
        if done.returncode:
            raise LabError(f"flwr run: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def rounds(self) -> list[Json]:
        """Those that have been aggregated: round, updates, Unix seconds."""
        if not self.journal.exists():
            return []
        text = self.journal.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _listens(host: str, port: int) -> bool:
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr == (host, port)
        for one in psutil.net_connections("tcp4")
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, and all that descends from it: a SuperExec makes itself a session of its own."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    _, alive = psutil.wait_procs(started, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.wait(30)


def several(case: Case, environment: Environment, chosen: argparse.Namespace, *, rounds: int) -> Json:
    """The medians of `chosen.runs` runs of one case."""
    free_mb = psutil.virtual_memory().available / 2**20
    clients = chosen_clients(chosen.flower_clients, case.clients, free_mb)
    return median_of([measure(case, rounds, environment, clients) for _ in range(chosen.runs)])


def measure(case: Case, rounds: int, environment: Environment, clients: str) -> Json:
    """One case, once. `clients`: nodes, light."""
    with TemporaryDirectory(prefix="flower") as scratch:
        deployment = Deployment(environment, Path(scratch), case, clients)
        with deployment.opened() as parts:
            meter = Meter(parts)
            deployment.submit(rounds)
            wait_for(deployment.rounds, "a first round", limit_s=START_S_MAX + ROUND_S_MAX, every_s=0.1)
            before, done = meter.cpu(), len(deployment.rounds())
            while len(seen := deployment.rounds()) < rounds:
                meter.look()
                after_s = time.time() - seen[-1]["aggregated"]
                if after_s > ROUND_S_MAX:
                    raise LabError(f"{case.label}: round {len(seen) + 1} has lasted {after_s:.0f} s")
                time.sleep(1)
            after, load = meter.cpu(), psutil.getloadavg()[0]
    if any(one["updates"] != case.clients for one in seen):
        raise LabError(f"{case.label}: updates by round: {[one['updates'] for one in seen]}")
    counted = max(1, len(seen) - done)
    spent = {name: round((after[name] - before[name]) / counted, 3) for name in parts}
    system = f"Flower {environment.version}, {'SuperNodes' if clients == 'nodes' else 'light clients'}"
    return row(case, system, seen, spent, meter.peak_mb) | {
        "piece us": round(piece_us(), 1),
        "load": round(load, 1),
    }


def row(case: Case, system: str, seen: list[Json], cpu_s: Json, peak_mb: dict[str, float]) -> Json:
    """As benchmarks.rounds has it. `seen`: the journal; `cpu_s`: a round's, by part."""
    walls = [one["aggregated"] - one["started"] for one in seen]
    last = seen[-1]
    return {
        "case": case.label,
        "system": system,
        "clients": case.clients,
        "bytes": case.nbytes,
        "keepers": 0,
        "wall s": round(statistics.median(walls[1:] or walls), 3),
        "first s": round(walls[0], 2),
        "cpu s": round(sum(cpu_s.values()), 3),
        "cpu s by part": cpu_s,
        "largest MB": {name: round(value) for name, value in peak_mb.items()},
        "last round s": {
            "updates": round(last["trained"] - last["started"], 3),
            "aggregate": round(last["aggregated"] - last["trained"], 3),
        },
    }


def beside(ours: Json, flowers: Json) -> Json:
    """Flower's row with its ratios to ours, of the same case."""
    return flowers | {
        f"{name} / ours": round(flowers[f"{name} s"] / ours[f"{name} s"], 1) for name in ("wall", "cpu")
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What benchmarks.rounds and benchmarks.suite have as well."""
    parser.add_argument(
        "--flower-python", type=Path, help="python of an environment with flwr; this one, if not given"
    )
    parser.add_argument("--flower-clients", choices=("auto", "nodes", "light"), default="auto")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="10x10KB,10x6.65MB", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    add_arguments(parser)
    chosen = parser.parse_args()
    try:
        cases = [Case.read(text) for text in chosen.cases]
        environment = Environment.of(chosen.flower_python)
    except (LabError, ValueError) as exc:
        raise SystemExit(str(exc)) from None
    in_own_network()
    rows: list[Json] = []
    for case in cases:
        rows.append(several(case, environment, chosen, rounds=chosen.rounds))
        print(json.dumps(rows[-1], indent=1), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
