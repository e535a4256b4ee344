"""What a keeper writes of a run: whole from what is replicated, whoever wrote before it."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fedkeeper import logs
from fedkeeper.core.model import Attempt, AttemptStatus, Kind, ObjectRef, Phase, RoundRecord, Run
from fedkeeper.keeper.ports import Record
from fedkeeper.wiring.reporting import RunReports
from fedkeeper.wiring.submitting import submission
from tests.wiring.test_submitting import experiment

WEIGHTS = ObjectRef(name="small-1/w1", sha256="0" * 64, nbytes=8)


def committed(round_no: int) -> RoundRecord:
    """A round that is done."""
    return RoundRecord(
        round=round_no,
        weights=WEIGHTS,
        loss=1.0,
        accuracy=0.5,
        clients=("client_0",),
        updates=(f"small-1/r{round_no}/client_0/a0",),
        samples=10,
        failures=0,
        gave_up=0,
        update_bytes=8,
        train_loss=1.0,
        started_ms=1000,
        invoked_ms=1100,
        trained_ms=1200,
        aggregated_ms=1300,
        aggregate_s=0.1,
        evaluate_s=0.1,
    )


def ended(key: str) -> Record:
    """An attempt of a client of Google's, which its forwarder on OpenWhisk carried out."""
    attempt = Attempt(
        key=key,
        kind=Kind.TRAIN,
        run="small-1",
        round=1,
        client="client_3",
        number=0,
        cluster="gcf",
        status=AttemptStatus.OK,
        not_before_ms=0,
        issued_ms=1000,
        deadline_ms=9000,
        sent_ms=1100,
        ended_ms=1200,
        activation_id="a" * 32,
    )
    return Record(attempt=attempt, cluster="ow", platform="openwhisk", function="client_3", activation=None)


class Gcf:
    """The part of a provider that is looked at."""

    platform = "google"


async def test_the_next_conductor_completes_what_the_last_one_left(tmp_path: Path):
    """Rounds come from the history, attempts by key: none is missing and none is there twice."""
    config = experiment(tmp_path, {"logs.folder": str(tmp_path / "logs")})
    made = submission(config, "small-1")
    run = Run(spec=made.spec, phase=Phase.TRAINING, round=2, weights=WEIGHTS, history=(committed(1),))
    first, second = (RunReports(experiment=config, providers={"gcf": Gcf()}) for _ in range(2))  # type: ignore[dict-item]
    await first.begin(run)
    first.record([ended("small-1/r1/client_3/a0")])
    await second.begin(run)
    second.record([ended("small-1/r1/client_3/a0")])
    second.record([ended("small-1/r1/client_3/a1")])
    await second.changed(replace(run, round=3, history=(committed(1), committed(2))))

    folder = tmp_path / "logs" / "small-1"
    with (folder / "rounds.csv").open() as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2"]
    with (folder / "activations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["small-1/r1/client_3/a0", "small-1/r1/client_3/a1"]
    assert (rows[0]["platform"], rows[0]["cluster"], rows[0]["invoked_on"]) == ("google", "gcf", "ow")
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "small"


async def test_a_keeper_that_conducts_again_believes_the_files(tmp_path: Path):
    """What another one wrote meanwhile is neither written twice nor said twice."""
    config = experiment(tmp_path, {"logs.folder": str(tmp_path / "logs")})
    spec = submission(config, "small-1").spec
    run = Run(spec=spec, phase=Phase.TRAINING, round=2, weights=WEIGHTS, history=(committed(1),))
    further = replace(run, round=3, history=(committed(1), committed(2)))
    one, other = (RunReports(experiment=config, providers={"gcf": Gcf()}) for _ in range(2))  # type: ignore[dict-item]
    keys = [f"small-1/r{round_no}/client_3/a0" for round_no in (1, 2, 3)]
    logs.set_up()
    try:
        logs.to_folders(config.logs.folder, own=tmp_path / "own.jsonl", keeper="k1")
        for reports, seen, so_far in ((one, run, 1), (other, further, 2), (one, further, 3)):
            reports.take_over()
            for key in keys[:so_far]:  # as a new conductor does, also before it begins the run
                reports.record([ended(key)])
            await reports.begin(seen)
    finally:
        logs.tear_down()
    with (config.logs.folder / "small-1" / "activations.csv").open() as file:
        assert [row["key"] for row in csv.DictReader(file)] == keys
    found = events_of(config.logs.folder)
    assert [event["round"] for event in found if event["event"] == "round finished"] == [1, 2]


async def test_inputs_are_written_again_once_it_is_known_where_clients_are_invoked(tmp_path: Path):
    """Their addresses are only known when they are deployed."""
    config = experiment(tmp_path)
    made = submission(config, "small-1")
    run = Run(spec=made.spec, phase=Phase.DEPLOYING, round=0, weights=None)
    reports = RunReports(experiment=config, providers={})
    await reports.begin(run)
    path = config.params_path("fl_client", "google") / "client3.json"
    assert json.loads(path.read_text())["url"] == ""
    await reports.changed(replace(run, urls={"client_3": "http://there"}, history=(committed(1),)))
    assert json.loads(path.read_text())["url"] == "http://there"


async def test_a_run_of_a_newer_program_is_still_reported(tmp_path: Path):
    """Its rounds need no book."""
    config = experiment(tmp_path, {"logs.folder": str(tmp_path / "logs")})
    spec = replace(submission(config, "small-1").spec, book="not ours")
    run = Run(spec=spec, phase=Phase.TRAINING, round=2, weights=WEIGHTS, history=(committed(1),))
    await RunReports(experiment=config, providers={}).begin(run)
    assert (tmp_path / "logs" / "small-1" / "rounds.csv").exists()


def events_of(folder: Path) -> list[dict[str, Any]]:
    """What is in the run's events.jsonl."""
    path = folder / "small-1" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_rounds_and_failures_are_events_whoever_looks(tmp_path: Path):
    """Written by who conducts, once each, though the next conductor goes through the last rounds again."""
    config = experiment(tmp_path, {"logs.folder": str(tmp_path / "logs")})
    spec = submission(config, "small-1").spec
    run = Run(spec=spec, phase=Phase.TRAINING, round=3, weights=WEIGHTS, history=(committed(1), committed(2)))
    refused = ended("small-1/r2/client_3/a0")
    refused = replace(
        refused, attempt=replace(refused.attempt, status=AttemptStatus.FAILED, reason="bad rows")
    )
    logs.set_up()
    try:
        logs.to_folders(config.logs.folder, own=tmp_path / "own.jsonl", keeper="k1")
        for _ in range(2):  # two conductors, one after the other
            reports = RunReports(experiment=config, providers={"gcf": Gcf()})  # type: ignore[dict-item]
            await reports.begin(run)
            reports.record([ended("small-1/r1/client_3/a0")])
            reports.record([refused])
        await reports.changed(replace(run, history=(committed(1), committed(2), committed(3))))
    finally:
        logs.tear_down()
    found = events_of(config.logs.folder)
    assert [one["round"] for one in found if one["event"] == "round finished"] == [1, 2, 3]
    [failed] = [one for one in found if one["event"] == "attempt failed"]
    assert (failed["key"], failed["reason"], failed["keeper"]) == ("small-1/r2/client_3/a0", "bad rows", "k1")


async def test_the_end_of_a_run_is_said_once(tmp_path: Path):
    """The next conductor reports a run that has just ended once more: its model is there."""
    config = experiment(tmp_path, {"logs.folder": str(tmp_path / "logs")})
    spec = submission(config, "small-1").spec
    run = Run(spec=spec, phase=Phase.FAILED, round=1, weights=None, history=(committed(1),), reason="too few")
    logs.set_up()
    try:
        logs.to_folders(config.logs.folder, own=tmp_path / "own.jsonl", keeper="k1")
        await RunReports(experiment=config, providers={}).ended(run)
        (config.logs.folder / "small-1" / "model.safetensors").touch()
        await RunReports(experiment=config, providers={}).ended(run)
    finally:
        logs.tear_down()
    [ended_] = [one for one in events_of(config.logs.folder) if one["event"] == "run ended"]
    assert (ended_["phase"], ended_["rounds"], ended_["reason"]) == ("failed", 1, "too few")
