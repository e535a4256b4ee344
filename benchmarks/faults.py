"""The fault matrix: each fault, to the keeper that conducts, in each phase of a round, again and again.

    python -m benchmarks.faults --times 20 --markdown docs/faults.md

Faults: `kill` (kill -9, started again once another conducts), `freeze` (SIGSTOP for longer than the lease,
then SIGCONT), `partition` (no packet between it and the other keepers, healed after the lease; store,
functions and API stay in its reach, which is the hardest case for fencing).

A run suffers several faults, one after the other, in an order drawn from the seed; the next one comes when
all keepers are up again. Each run must end as an undisturbed one of the same seed: every round committed
once, every update counted once, no client trained twice, the same weights after each round; and all keepers
must know the same. `majority`: two of three are killed; the one that is left must say so and decide nothing
until they are back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.lab import (
    Json,
    KeeperProcess,
    Lab,
    LabError,
    attempts,
    cut_off,
    heal,
    in_own_network,
    wait_for,
)
from benchmarks.moments import BEGINNING, MOMENTS, await_moment, check, ended, ready, undisturbed

MAJORITY = "majority"
FAULTS = ("kill", "freeze", "partition", MAJORITY)
ROUNDS = 30  # of a run
AHEAD = 8  # cells that are waited for at once: some moments are short
WORK_S = 0.2  # of a function that does not train, so that each phase lasts as long as with training


@dataclass(frozen=True)
class Cell:
    """One fault in one phase."""

    fault: str
    moment: str


@dataclass
class Done:
    """A fault that happened, and how long it took until all went on. Times of the log and of its events."""

    fault: str
    moment: str
    run: str
    round: int
    conductor_ms: float | None = None  # from the fault to the next conductor's first command, committed
    invocation_ms: float | None = None  # from there to the next invocation, where one is due at once


@contextmanager
def harmed(lab: Lab, victim: KeeperProcess, fault: str) -> Iterator[None]:
    """The fault happens on entry; afterwards the keeper is whole again."""
    begun = time.monotonic()
    if fault == "kill":
        victim.signal(signal.SIGKILL)
    elif fault == "freeze":
        victim.signal(signal.SIGSTOP)
    else:
        cut_off(victim.host, [one.host for one in lab.keepers if one is not victim])
    try:
        yield
    finally:
        if fault == "kill":
            victim.start()
        else:
            time.sleep(max(0.0, begun + lab.lease_s * 1.5 - time.monotonic()))
            if fault == "freeze":
                victim.signal(signal.SIGCONT)
            else:
                heal()


class Matrix:
    """Works off the cells that are left to do."""

    def __init__(self, lab: Lab, expected: Sequence[str], cells: Iterable[Cell]) -> None:
        """`cells`: in this order, each as often as it is to be done."""
        self.done: list[Done] = []
        self.missed = 0  # the run was over before the moment came
        self.violations: list[str] = []
        self._lab = lab
        self._expected = expected
        all_of_them = list(cells)
        self._beginning = deque(cell for cell in all_of_them if cell.moment == BEGINNING)
        self._later = deque(cell for cell in all_of_them if cell.moment != BEGINNING)

    @property
    def left(self) -> int:
        """Faults that are still to happen."""
        return len(self._beginning) + len(self._later)

    def one_run(self) -> None:
        """One run, with as many faults as fit into it."""
        lab = self._lab
        wait_for(lambda: ready(lab), "all keepers to be up", every_s=0.05)
        victim = lab.conductor()
        name = lab.submit()
        before = len(self.done)
        if self._beginning:
            self._take(self._beginning, victim, name)
        while self._later:
            wait_for(lambda: ready(lab), "all keepers to be up", every_s=0.05)
            if not self._take(self._later, lab.conductor(), name):
                break
        problems = check(lab, name, ended(lab, name), self._expected)
        faults = ", ".join(f"{one.fault} while {one.moment}" for one in self.done[before:])
        self.violations += [f"{name} ({faults}): {problem}" for problem in problems]
        lab.forget(name)

    def _take(self, cells: deque[Cell], victim: KeeperProcess, name: str) -> bool:
        """The first of the next cells whose moment comes. False: the run was over before."""
        next_ones = list(islice(cells, AHEAD))
        moments = list(dict.fromkeys(cell.moment for cell in next_ones))
        found = await_moment(self._lab, victim, name, moments)
        if found is None:
            self.missed += 1
            return False
        moment, run = found
        cell = next(cell for cell in next_ones if cell.moment == moment)
        done = Done(cell.fault, cell.moment, name, run["round"])
        if cell.fault == MAJORITY:
            self.violations += [f"{name} (majority lost): {problem}" for problem in self._lose(victim, name)]
        elif not self._harm(done, victim):
            self.missed += 1
            return True
        cells.remove(cell)
        self.done.append(done)
        return True

    def _harm(self, done: Done, victim: KeeperProcess) -> bool:
        """False: somebody else conducted already when the fault came."""
        lab = self._lab
        at_ms = time.time() * 1000
        with harmed(lab, victim, done.fault):
            conducts_ms = wait_for(
                lambda: _conducts_since_ms(lab, victim, at_ms), "another conductor", every_s=0.005
            )
            if conducts_ms < at_ms:
                return False
            done.conductor_ms = round(conducts_ms - at_ms, 1)
            if done.moment in ("selecting", "invoking"):
                survivor = next(one for one in lab.keepers if one is not victim)
                sent = wait_for(
                    lambda: _sent_ms(lab, survivor, done, conducts_ms), "its invocations", every_s=0.01
                )
                if sent[0]:
                    done.invocation_ms = round(sent[0] - conducts_ms, 1)
        return True

    def _lose(self, victim: KeeperProcess, name: str) -> list[str]:
        """Two of three die: the cluster pauses, says so, and goes on when they are back."""
        lab = self._lab
        left = next(one for one in lab.keepers if one is not victim)
        dead = [one for one in lab.keepers if one is not left]
        for keeper in dead:
            keeper.signal(signal.SIGKILL)
        status = wait_for(lambda: _with_problem(left), "the one that is left to say that it is alone")
        problems = [] if "majority" in status["problem"] else [f"it says: {status['problem']!r}"]
        before = _progress(lab, left, name)
        time.sleep(2 * lab.lease_s)
        if _progress(lab, left, name) != before:
            problems.append("the run did not pause")
        for keeper in dead:
            keeper.start()
        return problems


def _conducts_since_ms(lab: Lab, victim: KeeperProcess, at_ms: float) -> float:
    """Since when another keeper than `victim` conducts; 0: none does yet."""
    found = [
        since
        for keeper in lab.keepers
        if keeper is not victim
        for event in lab.events(keeper)
        if event["event"] == "conducting"
        and (since := datetime.fromisoformat(event["at"]).timestamp() * 1000) >= at_ms
    ]
    if found:
        return min(found)
    status = lab.status(but=victim.name)
    if status is None or status["conductor"] in ("", victim.name) or status["conductor_since_ms"] > at_ms:
        return 0.0
    return float(status["conductor_since_ms"])


def _sent_ms(lab: Lab, keeper: KeeperProcess, done: Done, after_ms: float) -> tuple[float] | None:
    """When the first of the round's clients was invoked after that, once it is known; (0,): none was."""
    run = lab.run_seen_by(keeper, done.run)
    if run is None:
        return None
    ours = [one for one in (*run["ended"], *attempts(run)) if one["round"] == done.round and one["client"]]
    if any(one["status"] in ("sending", "pending") for one in ours):
        return None
    return (min((one["sent_ms"] for one in ours if one["sent_ms"] >= after_ms), default=0),)


def _progress(lab: Lab, keeper: KeeperProcess, run_name: str) -> tuple[str, int, int]:
    run = lab.run_seen_by(keeper, run_name)
    return ("", 0, 0) if run is None else (run["phase"], run["round"], len(run["updates"]))


def _with_problem(keeper: KeeperProcess) -> Json | None:
    status = keeper.get("status")
    return status if status is not None and status["problem"] else None


# --- the report -----------------------------------------------------------------------------------


def _spread(values: Iterable[float | None]) -> str:
    ordered = sorted(one for one in values if one is not None)
    if not ordered:
        return "-"
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95, 0.99)]
    return " / ".join(f"{one:.0f}" for one in at)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def markdown(done: Sequence[Done], faults: Sequence[str], moments: Sequence[str]) -> list[str]:
    """What was done, and how long it took until all went on."""
    counted = [
        [moment, *(str(sum(one.fault == fault and one.moment == moment for one in done)) for fault in faults)]
        for moment in moments
    ]
    groups = [(fault, [one for one in done if one.fault == fault]) for fault in faults]
    times = [
        [fault, str(len(ones)), _spread(o.conductor_ms for o in ones), _spread(o.invocation_ms for o in ones)]
        for fault, ones in [*groups, ("all", list(done))]
    ]
    return [
        *_table(["faults while", *faults], counted),
        "",
        *_table(["p50 / p95 / p99, ms", "faults", "next command", "next invocation, after that"], times),
    ]


HEAD = """# The fault matrix
`python -m benchmarks.faults --times {times} --seed {seed} --markdown docs/faults.md`, {date}: {what}

**{violations} violation(s).** A violation is a run that does not end as an undisturbed one of the same
seed: each round committed once, each update counted once, no client trained twice, the same weights after
each round, all keepers of one mind.
"""

TAIL = """*next command*: from the fault to the first committed command of the next conductor, its claim.
*next invocation*: from there until a platform has taken the next one, where one is due (selecting, invoking).
Measured on {where}.
"""


class IdleLab(Lab):
    """The lab with functions that sleep instead of training; all else is the product's own code."""

    def _config(self) -> Json:
        config = super()._config()
        scenario = config["scenarios"]["federated_learning"]
        scenario["data_sampling"] = {"model": "benchmark:model", "hidden_size": 20_000}
        scenario["functions"] = {
            name: {"openwhisk": {"func_path": str(self._sleeping(name))}}
            for name in ("fl_client", "fl_server_init", "fl_server_aggregator")
        }
        return config

    def _sleeping(self, name: str) -> Path:
        """A copy of the benchmarks' function that takes WORK_S longer."""
        folder = self.folder / "functions" / name
        shutil.copytree(Path(__file__).parent / "functions" / name, folder, dirs_exist_ok=True)
        handler = folder / "handler.py"
        handler.rename(folder / "quick.py")
        handler.write_text(
            f'"""As quick.py, but not so quick."""\n\nimport time\n\nimport quick\n\n\n'
            f"def run(task, store):\n    time.sleep({WORK_S})\n    return quick.run(task, store)\n"
        )
        return folder


def in_turns(faults: Sequence[str], moments: Sequence[str], times: int, chance: random.Random) -> list[Cell]:
    """Every cell once in any order, then every cell again; the majority is lost once each time."""
    cells = []
    for turn in range(times):
        once = [Cell(fault, moment) for fault in faults if fault != MAJORITY for moment in moments]
        if MAJORITY in faults:
            once.append(Cell(MAJORITY, moments[turn % len(moments)]))
        chance.shuffle(once)
        cells += once
    return cells


def main() -> int:
    """Run it; 1 if there was a violation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1, help="faults per cell")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no further run after so long")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--moments", default=",".join(MOMENTS))
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order")
    parser.add_argument("--train", action="store_true", help="with TensorFlow, not with functions that sleep")
    parser.add_argument("--done", type=Path, nargs="*", default=[], help="files of --json, to be completed")
    parser.add_argument("--folder", type=Path, help="keep everything here [default: a temporary folder]")
    parser.add_argument("--placement", default="raft")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    chosen = parser.parse_args()
    in_own_network()
    faults, moments = chosen.faults.split(","), chosen.moments.split(",")
    before = [Done(**one) for path in chosen.done for one in json.loads(path.read_text())]
    cells = in_turns(faults, moments, chosen.times, random.Random(chosen.seed))  # noqa: S311 - no secret
    for one in before:
        with contextlib.suppress(ValueError):  # of a cell that has more than enough
            cells.remove(Cell(one.fault, one.moment))
    begun, loads = time.monotonic(), [os.getloadavg()[0]]
    with TemporaryDirectory(prefix="faults") as scratch:
        lab = (Lab if chosen.train else IdleLab)(
            chosen.folder or Path(scratch),
            clients=4 if chosen.train else 8,
            rounds=ROUNDS,
            keepers_changes={"placement": chosen.placement},
        )
        with lab.opened():
            expected = undisturbed(lab)
            matrix = Matrix(lab, expected, cells)
            matrix.done += before
            try:
                while matrix.left and time.monotonic() < begun + 60 * chosen.minutes:
                    matrix.one_run()
                    loads.append(os.getloadavg()[0])
                    _tell(matrix, begun)
            except LabError as exc:  # the cluster does not go on: the worst of all
                matrix.violations.append(f"{exc}\n{lab.said()}")
    minutes = (time.monotonic() - begun) / 60
    report = markdown(matrix.done, faults, moments)
    print(*report, *matrix.violations, sep="\n")
    print(f"{len(matrix.done)} faults, {len(matrix.violations)} violation(s)")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(one) for one in matrix.done], indent=1))
    if chosen.markdown:
        load = f"{os.cpu_count()} processors, nice {os.nice(0)}, load {min(loads):.1f} to {max(loads):.1f}"
        what = (
            f"{len(matrix.done)} faults to the conductor of three keepers, or to it and another one, "
            f"in {minutes:.0f} minutes."
        )
        date = time.strftime("%Y-%m-%d")
        head = HEAD.format(
            times=chosen.times, seed=chosen.seed, date=date, what=what, violations=len(matrix.violations)
        )
        chosen.markdown.write_text("\n".join([head, *report, "", TAIL.format(where=load)]))
    return 1 if matrix.violations else 0


def _tell(matrix: Matrix, begun: float) -> None:
    spent_s = time.monotonic() - begun
    print(
        f"{spent_s:6.0f} s  {len(matrix.done)} faults, {matrix.left} left, {matrix.missed} missed, "
        f"{len(matrix.violations)} violation(s), load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
