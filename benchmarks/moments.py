"""The moments of a run at which something is done to a keeper, and what must be true of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from benchmarks.lab import Json, KeeperProcess, Lab, LabError, attempts, wait_for

ENDED = ("finished", "failed", "stopped")
BEGINNING = "deploying"  # the only moment that comes once in a run

Moment = Callable[[Lab, Json], bool]


def _statuses(run: Json) -> set[str]:
    return {one["status"] for one in attempts(run)}


def _training(run: Json) -> bool:
    return bool(run["phase"] == "training")


MOMENTS: dict[str, Moment] = {
    BEGINNING: lambda _, run: run["phase"] == "deploying",
    "selecting": lambda _, run: _training(run) and _statuses(run) == {"sending"} and not run["updates"],
    "invoking": lambda _, run: _training(run) and {"sending", "running"} <= _statuses(run),
    "waiting": lambda _, run: _training(run) and _statuses(run) == {"running"} and not run["updates"],
    "updates arriving": lambda _, run: _training(run) and bool(run["updates"]) and bool(attempts(run)),
    "aggregating": lambda _, run: run["phase"] == "aggregating",
    "committing": lambda lab, run: (
        run["phase"] == "aggregating" and any(lab.has_outcome(one["key"]) for one in attempts(run))
    ),
}


def await_moment(
    lab: Lab, keeper: KeeperProcess, run_name: str, moments: Sequence[str]
) -> tuple[str, Json] | None:
    """The first of `moments` that comes, and the run as `keeper` has it; None: the run was over before."""

    def seen() -> tuple[str, Json] | str:
        run = lab.run_seen_by(keeper, run_name)
        if run is None:
            return ""
        for moment in moments:
            if MOMENTS[moment](lab, run):
                return moment, run
        over = run["phase"] in ENDED or (moments == [BEGINNING] and run["phase"] != BEGINNING)
        return "over" if over else ""

    found = wait_for(seen, f"{run_name}: {', '.join(moments)}", every_s=0.0005)
    return found if isinstance(found, tuple) else None


def ended(lab: Lab, run_name: str) -> Json:
    """The run, once it has ended."""

    def seen() -> Json | None:
        for keeper in lab.keepers:
            run = lab.run_seen_by(keeper, run_name) if keeper.alive else None
            if run is not None and run["phase"] in ENDED:
                return run
        return None

    run = wait_for(seen, f"{run_name} to end", limit_s=180, every_s=0.02)
    assert isinstance(run, dict)
    return run


def ready(lab: Lab) -> bool:
    """Whether every keeper is up, has what was committed, and knows the leader."""
    said = [keeper.get("status", timeout_s=0.5) if keeper.alive else None for keeper in lab.keepers]
    known = [one for one in said if one is not None and one["ready"]]
    return len(known) == len(said) and len({one["leader"] for one in known} - {""}) == 1


def undisturbed(lab: Lab) -> list[str]:
    """The weights' hashes after every round of a run to which nothing happens."""
    run_name = lab.submit()
    run = ended(lab, run_name)
    if problems := check(lab, run_name, run, ()):
        raise LabError(f"the undisturbed run: {'; '.join(problems)}")
    lab.forget(run_name)
    return [record["weights"]["sha256"] for record in run["history"]]


def check(lab: Lab, run_name: str, run: Json, expected: Sequence[str]) -> list[str]:
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
    hashes = [record["weights"]["sha256"] for record in run["history"]]
    if expected and hashes != list(expected):
        problems.append("other weights than the undisturbed run's")
    claims = lab.claims(run_name)
    if again := [key for key in claims if not key.endswith("/a0")]:
        problems.append(f"worked on again: {', '.join(again)}")
    if len(claims) != 1 + lab.rounds * (lab.clients + 1):  # init; clients and aggregator
        problems.append(f"{len(claims)} tasks were begun")
    wait_for(lambda: ready(lab), "all keepers to be up again", limit_s=60, every_s=0.05)
    try:
        wait_for(
            lambda: len({_known(lab, one, run_name) for one in lab.keepers}) == 1, "agreement", limit_s=30
        )
    except LabError:
        problems.append("the keepers do not know the same")
    return problems


def _known(lab: Lab, keeper: KeeperProcess, run_name: str) -> str:
    return json.dumps(lab.run_seen_by(keeper, run_name), sort_keys=True)
