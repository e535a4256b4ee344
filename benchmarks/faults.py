"""The fault matrix: each fault, to the keeper that conducts, in each phase of a round, again and again.

    python -m benchmarks.faults --times 20 --markdown docs/faults.md

Faults: `kill` (kill -9, started again once another conducts), `freeze` (SIGSTOP for longer than the lease,
then SIGCONT), `partition` (no packet between it and the other keepers, healed after the lease; store,
functions and API stay in its reach, which is the hardest case for fencing).

After each fault the run must end as an undisturbed one of the same seed: every round committed once, every
update counted once, no client trained twice, the same weights; and all keepers must know the same.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

ROUND = 2  # in which the fault happens; the functions are warm by then
TRIES_MAX = 5  # for one count of a cell, if its moment was missed
ENDED = ("finished", "failed", "stopped")

Moment = Callable[[Lab, Json], bool]


def _in_round(run: Json) -> bool:
    return bool(run["phase"] == "training" and run["round"] == ROUND)


def _statuses(run: Json) -> set[str]:
    return {one["status"] for one in attempts(run)}


MOMENTS: dict[str, Moment] = {
    "deploying": lambda _, run: run["phase"] == "deploying",
    "selecting": lambda _, run: _in_round(run) and _statuses(run) == {"sending"} and not run["updates"],
    "invoking": lambda _, run: _in_round(run) and "sending" in _statuses(run) and "running" in _statuses(run),
    "waiting": lambda _, run: _in_round(run) and _statuses(run) == {"running"} and not run["updates"],
    "updates arriving": lambda _, run: _in_round(run) and bool(run["updates"]) and bool(attempts(run)),
    "aggregating": lambda _, run: run["phase"] == "aggregating" and run["round"] == ROUND,
    "committing": lambda lab, run: (
        run["phase"] == "aggregating"
        and run["round"] == ROUND
        and any(lab.has_outcome(one["key"]) for one in attempts(run))
    ),
}


@dataclass
class Cell:
    """What became of one fault in one phase."""

    fault: str
    moment: str
    done: int = 0
    missed: int = 0  # the phase was over before the fault came
    conductor_ms: list[float] = field(default_factory=list)  # until another keeper conducts
    invocation_ms: list[float] = field(default_factory=list)  # until a platform takes the next invocation
    violations: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        """For a table."""
        return [
            self.fault,
            self.moment,
            str(self.done),
            str(len(self.violations)),
            _spread(self.conductor_ms),
            _spread(self.invocation_ms),
        ]


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return (
        f"{statistics.median(ordered):.0f} / {ordered[min(len(ordered) - 1, int(len(ordered) * 0.98))]:.0f}"
    )


@contextmanager
def harmed(lab: Lab, victim: KeeperProcess, fault: str) -> Iterator[None]:
    """The fault happens on entry; afterwards the keeper is whole again."""
    if fault == "kill":
        victim.signal(signal.SIGKILL)
    elif fault == "freeze":
        victim.signal(signal.SIGSTOP)
    else:
        cut_off(victim.host, [one.host for one in lab.keepers if one is not victim])
    begun = time.monotonic()
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


def once(lab: Lab, cell: Cell, expected: str) -> bool:
    """One fault. False: its moment was missed (the run is still checked)."""
    wait_for(lambda: ready(lab), "all keepers to be up", limit_s=60)
    before = lab.status()
    assert before is not None
    victim = lab.conductor()
    run_name = lab.submit()
    seen = wait_for(
        lambda: _now_or_never(lab, victim, run_name, cell.moment),
        f"{run_name}: {cell.moment}",
        every_s=0.0005,
    )
    hit = seen == "now"
    if hit:
        at_ms, begun = time.time_ns() // 1_000_000, time.monotonic()
        with harmed(lab, victim, cell.fault):
            status = wait_for(lambda: _another(lab, victim), "another conductor", every_s=0.001)
            cell.conductor_ms.append((time.monotonic() - begun) * 1000)
            del status
        run = _ended(lab, run_name)
        sent = [one["sent_ms"] for one in run["ended"] if one["sent_ms"] > at_ms]
        if sent and cell.moment in ("deploying", "selecting", "invoking"):
            cell.invocation_ms.append(min(sent) - at_ms)
    else:
        run = _ended(lab, run_name)
    cell.violations += [f"{run_name}: {problem}" for problem in check(lab, run_name, run, expected)]
    lab.forget(run_name)
    return hit


def _now_or_never(lab: Lab, victim: KeeperProcess, run_name: str, moment: str) -> str:
    run = lab.run_seen_by(victim, run_name)
    if run is None:
        return ""
    if MOMENTS[moment](lab, run):
        return "now"
    over = (
        run["phase"] in ENDED
        or run["round"] > ROUND
        or (moment == "deploying" and run["phase"] != "deploying")
    )
    return "never" if over else ""


def _another(lab: Lab, victim: KeeperProcess) -> Json | None:
    status = lab.status(but=victim.name)
    return status if status is not None and status["conductor"] not in ("", victim.name) else None


def _ended(lab: Lab, run_name: str) -> Json:
    def ended() -> Json | None:
        for keeper in lab.keepers:
            run = lab.run_seen_by(keeper, run_name) if keeper.alive else None
            if run is not None and run["phase"] in ENDED:
                return run
        return None

    run = wait_for(ended, f"{run_name} to end", limit_s=120, every_s=0.02)
    assert isinstance(run, dict)
    return run


def ready(lab: Lab) -> bool:
    """Whether every keeper is up and knows the leader."""
    return all(keeper.alive for keeper in lab.keepers) and lab.leader() is not None


def check(lab: Lab, run_name: str, run: Json, expected: str) -> list[str]:
    """What is wrong with a run that has ended; nothing, if all is as it must be."""
    problems = []
    if run["phase"] != "finished":
        problems.append(f"{run['phase']}: {run['reason']}")
    rounds = [record["round"] for record in run["history"]]
    if rounds != list(range(1, lab.rounds + 1)):
        problems.append(f"committed rounds {rounds}")
    counted = [key for record in run["history"] for key in record["updates"]]
    if len(counted) != len(set(counted)) or len(counted) != lab.rounds * lab.clients:
        problems.append(f"{len(counted)} updates counted, {len(set(counted))} of them different")
    if expected and (run["weights"] or {}).get("sha256") != expected:
        problems.append("other weights than the undisturbed run's")
    again = [key for key in lab.claims(run_name) if not key.endswith("/a0")]
    if again:
        problems.append(f"worked on again: {', '.join(again)}")
    wait_for(lambda: ready(lab), "all keepers to be up again", limit_s=60)
    try:
        wait_for(
            lambda: len({_known(lab, one, run_name) for one in lab.keepers}) == 1, "agreement", limit_s=30
        )
    except LabError:
        problems.append("the keepers do not know the same")
    return problems


def _known(lab: Lab, keeper: KeeperProcess, run_name: str) -> str:
    return json.dumps(lab.run_seen_by(keeper, run_name), sort_keys=True)


def undisturbed(lab: Lab) -> str:
    """The hash of the weights that a run ends with when nothing happens."""
    run_name = lab.submit()
    run = _ended(lab, run_name)
    problems = check(lab, run_name, run, "")
    if problems:
        raise LabError(f"the undisturbed run: {'; '.join(problems)}")
    lab.forget(run_name)
    return str(run["weights"]["sha256"])


def majority_lost(lab: Lab, expected: str) -> list[str]:
    """Two of three die in mid-round: the cluster pauses, says so, and goes on when one is back."""
    victim = lab.conductor()
    run_name = lab.submit()
    wait_for(
        lambda: (
            _now_or_never(lab, victim, run_name, "waiting")
            or _now_or_never(lab, victim, run_name, "invoking")
        ),
        "the second round",
        every_s=0.001,
    )
    left = next(one for one in lab.keepers if one is not victim)
    dead = [one for one in lab.keepers if one is not left]
    for keeper in dead:
        keeper.signal(signal.SIGKILL)
    status = wait_for(lambda: _with_problem(left), "the one that is left to say that there is no majority")
    problems = [] if "majority" in status["problem"] else [f"it says: {status['problem']!r}"]
    time.sleep(2)
    run = lab.run_seen_by(left, run_name)
    if run is None or run["phase"] in ENDED:
        problems.append("the run did not pause")
    for keeper in dead:
        keeper.start()
    return problems + check(lab, run_name, _ended(lab, run_name), expected)


def _with_problem(keeper: KeeperProcess) -> Json | None:
    status = keeper.get("status")
    return status if status is not None and status["problem"] else None


HEADER = [
    "fault",
    "phase",
    "times",
    "violations",
    "next conductor, ms (p50 / p98)",
    "next invocation, ms (p50 / p98)",
]


def markdown(cells: list[Cell], notes: list[str]) -> str:
    """The table for docs/faults.md."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cell.row()) + " |" for cell in cells]
    return "\n".join([*lines, "", *notes, ""])


def main() -> int:
    """Run it; 1 if there was a violation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1, help="faults per cell")
    parser.add_argument("--faults", default="kill,freeze,partition")
    parser.add_argument("--moments", default=",".join(MOMENTS))
    parser.add_argument("--folder", type=Path, help="keep everything here [default: a temporary folder]")
    parser.add_argument("--placement", default="raft")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    chosen = parser.parse_args()
    in_own_network()
    with TemporaryDirectory(prefix="faults") as scratch:
        lab = Lab(chosen.folder or Path(scratch), keepers_changes={"placement": chosen.placement})
        cells = [
            Cell(fault, moment) for fault in chosen.faults.split(",") for moment in chosen.moments.split(",")
        ]
        with lab.opened():
            expected = undisturbed(lab)
            print(f"undisturbed: {expected[:16]}…", flush=True)
            for cell in cells:
                _fill(lab, cell, chosen.times, expected)
                print("  ".join(cell.row()), f"({cell.missed} missed)", flush=True)
                for violation in cell.violations:
                    print(f"  VIOLATION {violation}", flush=True)
            paused = majority_lost(lab, expected)
            print(f"majority lost: {len(paused)} violation(s) {paused}", flush=True)
    total = sum(len(cell.violations) for cell in cells) + len(paused)
    if chosen.json:
        chosen.json.write_text(json.dumps([vars(cell) for cell in cells], indent=1))
    if chosen.markdown:
        chosen.markdown.write_text(
            markdown(cells, [f"Two of three keepers dead in mid-round: {len(paused)} violation(s)."])
        )
    print(f"{sum(cell.done for cell in cells)} faults, {total} violation(s)")
    return 1 if total else 0


def _fill(lab: Lab, cell: Cell, times: int, expected: str) -> None:
    for _ in range(times):
        for _ in range(TRIES_MAX):
            if once(lab, cell, expected):
                cell.done += 1
                break
            cell.missed += 1


if __name__ == "__main__":
    sys.exit(main())
