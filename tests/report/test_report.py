"""The files of a run: complete after a resume, complete again after a full disk, without secrets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from fedkeeper import logs
from fedkeeper.core.model import (
    Attempt,
    AttemptStatus,
    Kind,
    ObjectRef,
    Phase,
    RoundRecord,
    Run,
    RunSpec,
)
from fedkeeper.providers.base import Activation
from fedkeeper.report import (
    ACTIVATION_COLUMNS,
    ROUND_COLUMNS,
    Report,
    activation_row,
    file_name,
    write_params,
)

START_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z
REF = ObjectRef(name="m-1/w1", sha256="0" * 64, nbytes=8)
SPEC = RunSpec(
    run="m-1",
    digest="d",
    seed=1,
    clients=(),
    server_cluster="ow",
    clients_per_round=2,
    rounds_max=10,
    target_accuracy=None,
    min_updates=1,
    attempts_max=3,
    client_timeout_ms=1000,
    server_timeout_ms=1000,
    round_timeout_ms=0,
    retry_backoff_ms=0,
)


@pytest.fixture(autouse=True)
def _fresh_logs():
    yield
    logs.tear_down()


def record(number: int, **changes: object) -> RoundRecord:
    """A round of 5 s: 0.5 invoking, 3 training, 1 aggregating, 0.25 evaluating."""
    at = START_MS + number * 10_000
    values = {
        "round": number,
        "weights": REF,
        "loss": 0.5,
        "accuracy": 0.9,
        "clients": ("client_0", "client_1"),
        "updates": ("m-1/r1/client_0/a0",),
        "samples": 100,
        "failures": 1,
        "gave_up": 1,
        "update_bytes": 4096,
        "train_loss": 0.25,
        "started_ms": at,
        "invoked_ms": at + 500,
        "trained_ms": at + 3_500,
        "aggregated_ms": at + 5_000,
        "aggregate_s": 1.0,
        "evaluate_s": 0.25,
    }
    return RoundRecord(**(values | changes))


def run_with(*history: RoundRecord) -> Run:
    """A run that has committed those rounds."""
    return Run(spec=SPEC, phase=Phase.TRAINING, round=len(history) + 1, weights=REF, history=history)


def attempt(key: str = "m-1/r1/client_0/a0", **changes: object) -> Attempt:
    """An attempt of client_0 in round 1 that went well."""
    values = {
        "key": key,
        "kind": Kind.TRAIN,
        "run": "m-1",
        "round": 1,
        "client": "client_0",
        "number": 0,
        "cluster": "ow",
        "status": AttemptStatus.OK,
        "not_before_ms": 0,
        "issued_ms": START_MS,
        "deadline_ms": START_MS + 1000,
        "sent_ms": START_MS + 10,
        "ended_ms": START_MS + 900,
        "activation_id": "a" * 32,
    }
    return Attempt(**(values | changes))


def activation(**changes: object) -> Activation:
    """What the platform says of it."""
    values = {
        "activation_id": "a" * 32,
        "function": "client_0",
        "ok": True,
        "status": "success",
        "reason": "",
        "result": {},
        "start_ms": START_MS + 20,
        "end_ms": START_MS + 820,
        "billed_ms": 800,
        "memory_mb": 512,
        "cold": True,
        "logs": ("2026-09-21T14:13:20.1Z stdout: hello",),
    }
    return Activation(**(values | changes))


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file as dictionaries."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def attempts(report, ended, *, activations=None):
    """Hand `ended` attempts to the report, with what is known of their activations."""
    known = activations or {}
    report.activations(
        activation_row(one, platform="openwhisk", activation=known.get(one.activation_id)) for one in ended
    )


def test_rounds_csv_has_a_row_per_committed_round_with_the_time_of_each_part(tmp_path):
    """Columns as documented; seconds by part; what is not known is an empty cell."""
    Report(tmp_path).rounds(run_with(record(1), record(2, loss=None)))

    first, second = rows(tmp_path / "rounds.csv")
    assert tuple(first) == ROUND_COLUMNS
    assert first == {
        "round": "1",
        "loss": "0.5",
        "accuracy": "0.9",
        "train_loss": "0.25",
        "invoke_s": "0.5",
        "train_s": "3.0",
        "aggregate_s": "1.0",
        "evaluate_s": "0.25",
        "total_s": "5.0",
        "bytes": "4096",
        "updates": "1",
        "failures": "1",
        "gave_up": "1",
        "samples": "100",
    }
    assert second["loss"] == ""


def test_a_resumed_run_neither_doubles_nor_loses_rounds(tmp_path):
    """The file is made from the replicated history: a second keeper writes the same and more."""
    Report(tmp_path).rounds(run_with(record(1)))
    Report(tmp_path).rounds(run_with(record(1), record(2)))

    assert [row["round"] for row in rows(tmp_path / "rounds.csv")] == ["1", "2"]


def test_an_invocation_confirmed_after_its_update_makes_no_negative_time(tmp_path):
    """The store may be quicker than the platform's answer."""
    late = record(1, invoked_ms=START_MS + 10_000 + 4_000)
    Report(tmp_path).rounds(run_with(late))

    (row,) = rows(tmp_path / "rounds.csv")
    assert (row["invoke_s"], row["train_s"]) == ("3.5", "0.0")


def test_an_activation_row_tells_of_attempt_and_platform(tmp_path):
    """Cold or warm, billed time, memory, ISO times in UTC by the platform's clock."""
    attempts(Report(tmp_path), [attempt()], activations={"a" * 32: activation()})

    (row,) = rows(tmp_path / "activations.csv")
    assert tuple(row) == ACTIVATION_COLUMNS
    assert row == {
        "run": "m-1",
        "round": "1",
        "client": "client_0",
        "platform": "openwhisk",
        "cluster": "ow",
        "function": "client_0",
        "invoked_on": "ow",
        "attempt": "0",
        "key": "m-1/r1/client_0/a0",
        "activation_id": "a" * 32,
        "cold": "cold",
        "status": "ok",
        "start": "2026-09-21T14:13:20.020Z",
        "end": "2026-09-21T14:13:20.820Z",
        "duration_ms": "800",
        "billed_ms": "800",
        "memory_mb": "512",
        "reason": "",
    }


def test_it_says_what_of_an_attempt_is_not_written_yet(tmp_path):
    """No line, another status, or nothing of what the platform knows: of lines that others wrote, too."""
    assert Report(tmp_path).lacks(attempt())
    attempts(Report(tmp_path), [attempt()])
    assert Report(tmp_path).lacks(attempt()), "the platform's record is not there"
    assert not Report(tmp_path).lacks(attempt(activation_id="")), "there is none"
    attempts(Report(tmp_path), [attempt()], activations={"a" * 32: activation(billed_ms=0)})
    assert not Report(tmp_path).lacks(attempt())
    assert Report(tmp_path).lacks(attempt(status=AttemptStatus.FAILED))
    assert Report(tmp_path).lacks(attempt("m-1/r1/client_1/a0"))


def test_activations_are_merged_by_key_also_after_a_resume(tmp_path):
    """What a later keeper knows is added; what the first one knew is not erased."""
    attempts(Report(tmp_path), [attempt()], activations={"a" * 32: activation()})
    second = Report(tmp_path)
    attempts(second, [attempt()])
    attempts(second, [attempt("m-1/r1/client_1/a0", client="client_1")])

    first, other = rows(tmp_path / "activations.csv")
    assert (first["billed_ms"], first["start"]) == ("800", "2026-09-21T14:13:20.020Z")
    assert other["client"] == "client_1"


def test_lines_of_rounds_that_are_over_stay_where_they_are(tmp_path):
    """They are not in memory any more when the file is written whole again, by this keeper or the next."""
    report = Report(tmp_path)
    for number in (1, 2, 3):
        attempts(report, [attempt(f"m-1/r{number}/client_0/a0", round=number)])
        report.forget(number)
    later = attempt("m-1/r3/client_1/a0", round=3, status=AttemptStatus.RUNNING)
    attempts(report, [later])
    attempts(report, [attempt(later.key, round=3)])  # another status: the file is written whole
    assert [row["round"] for row in rows(tmp_path / "activations.csv")] == ["1", "2", "3", "3"]

    second = Report(tmp_path)
    second.forget(3)
    assert not second.lacks(attempt(later.key, round=3, activation_id=""))
    attempts(second, [attempt("m-1/r3/client_2/a0", round=3)])
    found = rows(tmp_path / "activations.csv")
    assert [(row["round"], row["status"]) for row in found] == [(n, "ok") for n in "12333"]


def test_rows_of_past_rounds_that_the_disk_refused_are_written_when_it_takes_them(tmp_path):
    """Rounds are forgotten only once their rows are on disk; a file that cannot be read is not replaced."""
    report, path = Report(tmp_path), tmp_path / "activations.csv"
    attempts(report, [attempt("m-1/r1/client_0/a0", round=1)])
    path.unlink()
    path.mkdir()  # neither read nor written
    for number in (2, 3, 4):
        attempts(report, [attempt(f"m-1/r{number}/client_0/a0", round=number)])
        report.forget(number)
    path.rmdir()
    attempts(report, [attempt("m-1/r5/client_0/a0", round=5)])
    assert [row["round"] for row in rows(path)] == ["1", "2", "3", "4", "5"]


def test_a_row_is_filled_in_when_its_activation_becomes_known(tmp_path):
    """Running first, then ended, in one row."""
    report = Report(tmp_path)
    running = attempt(status=AttemptStatus.RUNNING, ended_ms=0)
    attempts(report, [running])
    assert rows(tmp_path / "activations.csv")[0]["end"] == ""

    attempts(report, [attempt()], activations={"a" * 32: activation(cold=False)})

    (row,) = rows(tmp_path / "activations.csv")
    assert (row["status"], row["cold"], row["duration_ms"]) == ("ok", "warm", "800")


def test_a_line_cut_short_by_a_crash_is_dropped_and_its_file_made_whole(tmp_path):
    """kill -9 in the middle of a write costs that row at most, and no other."""
    report = Report(tmp_path)
    attempts(report, [attempt()])
    path = tmp_path / "activations.csv"
    path.write_text(path.read_text() + "m-1,1,client_9,open")

    attempts(Report(tmp_path), [attempt("m-1/r1/client_1/a0", client="client_1")])

    assert [row["client"] for row in rows(path)] == ["client_0", "client_1"]


def test_a_full_disk_is_said_once_and_the_next_write_is_complete(tmp_path, capsys):
    """/dev/full stands for the disk: nothing is raised, one warning, and later no row is missing."""
    report = Report(tmp_path)
    attempts(report, [attempt()])
    path = tmp_path / "activations.csv"
    path.unlink()
    path.symlink_to("/dev/full")
    attempts(report, [attempt("m-1/r1/client_1/a0", client="client_1")])
    path.unlink()

    attempts(report, [attempt("m-1/r1/client_2/a0", client="client_2")])

    assert [row["client"] for row in rows(path)] == ["client_0", "client_1", "client_2"]
    said = capsys.readouterr().err
    assert said.count("Warning") == 1
    assert "No space left on device" in said


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, capsys):
    """A file is in the way: all writers go on, and write once it is gone."""
    folder = tmp_path / "m-1"
    folder.write_text("in the way")
    report = Report(folder)
    for _ in range(3):
        report.rounds(run_with(record(1)))
        attempts(report, [attempt()])
        report.config({"name": "m"})
    assert capsys.readouterr().err.count("Warning") == 1

    folder.unlink()
    report.rounds(run_with(record(1)))
    attempts(report, [])
    report.config({"name": "m"})

    assert len(rows(folder / "rounds.csv")) == len(rows(folder / "activations.csv")) == 1
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"name": "m"}


def test_reasons_with_line_ends_and_quotes_stay_one_line(tmp_path):
    """A traceback as a reason must not tear the table."""
    failed = attempt(status=AttemptStatus.FAILED, reason='Traceback:\n  File "x", line 1\nValueError: a, b')
    attempts(Report(tmp_path), [failed])

    assert len((tmp_path / "activations.csv").read_text().splitlines()) == 2
    (row,) = rows(tmp_path / "activations.csv")
    assert row["reason"] == 'Traceback: File "x", line 1 ValueError: a, b'


def test_function_logs_are_one_file_per_activation(tmp_path):
    """Named by the key, with the activation's ID on top."""
    Report(tmp_path).function_log("m-1/r1/client_0/a0", activation())

    text = (tmp_path / "functions" / "m-1--r1--client_0--a0.log").read_text()
    assert "a" * 32 in text.splitlines()[0]
    assert text.splitlines()[-1].endswith("stdout: hello")


@pytest.mark.parametrize("key", ["../../etc/passwd", "a/b", "x" * 400, "sp ace\n", "..", ""])
def test_no_key_leaves_its_folder(key):
    """Whatever a key holds, its file's name is one plain part of a path."""
    name = file_name(key) + ".log"
    assert Path(name).name == name
    assert len(name) < 255
    assert "/" not in name


def test_long_keys_that_begin_alike_have_different_files():
    """A shortened name carries a hash of the whole."""
    assert file_name("x" * 400 + "1") != file_name("x" * 400 + "2")


def test_registered_secrets_are_in_no_file(tmp_path):
    """Neither in what functions wrote nor in the config nor in a reason."""
    logs.register_secret(SecretStr("hunter2-secret"))
    report = Report(tmp_path)
    report.config({"password": "hunter2-secret"})
    report.function_log("k", activation(logs=("my password is hunter2-secret",)))
    failed = attempt(status=AttemptStatus.FAILED, reason="refused hunter2-secret")
    attempts(report, [failed])
    attempts(report, [attempt("k2", reason="also hunter2-secret")])

    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any("hunter2" in text for text in written)
    assert all("***" in text for text in written)


def test_params_are_written_whole(tmp_path):
    """And inputs of clients that are no longer there are gone; other files are not touched."""
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "client7.json").write_text("{}")
    (tmp_path / "README.md").write_text("keep me")

    write_params(
        init=(tmp_path / "fl_server_init.json", {"run": "m-1"}),
        usage=(tmp_path / "usage_num_clients.json", {"clients": ["client_0"]}),
        folder=tmp_path / "clients",
        clients={"client_0": {"client": "client_0"}},
    )

    assert json.loads((tmp_path / "fl_server_init.json").read_text()) == {"run": "m-1"}
    assert json.loads((tmp_path / "usage_num_clients.json").read_text()) == {"clients": ["client_0"]}
    assert [path.name for path in (tmp_path / "clients").iterdir()] == ["client0.json"]
    assert (tmp_path / "README.md").exists()


def test_inputs_that_are_there_already_are_not_written_again(tmp_path):
    """The next conductor finds those of the last one: thousands of files are left as they are."""

    def write(client_1: str) -> dict[str, int]:
        write_params(
            init=(tmp_path / "fl_server_init.json", {"run": "m-1"}),
            usage=(tmp_path / "usage_num_clients.json", {}),
            folder=tmp_path / "clients",
            clients={"client_0": {"url": "there"}, "client_1": {"url": client_1}},
        )
        return {path.name: path.stat().st_ino for path in (tmp_path / "clients").iterdir()}

    first, same, other = write("here"), write("here"), write("elsewhere")
    assert same == first
    assert other["client0.json"] == first["client0.json"]
    assert other["client1.json"] != first["client1.json"]
    assert json.loads((tmp_path / "clients" / "client1.json").read_text()) == {"url": "elsewhere"}
