"""Events: JSON lines with their run, no secret in any spelling, and no run stopped by a full disk."""

from __future__ import annotations

import base64
import json
import logging
import math

import pytest
import structlog
from pydantic import SecretStr

from fedkeeper import logs


@pytest.fixture(autouse=True)
def _fresh_logs():
    yield
    logs.tear_down()


def events(folder):
    """The lines of events.jsonl, decoded."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_events_are_json_lines_with_their_run(tmp_path):
    """A fixed event name, facts as keys, the run bound once for every logger and task."""
    logs.set_up()
    log = structlog.get_logger()
    logs.to_folder(tmp_path, run="m-1")
    log.info("round finished", round=3, accuracy=0.9)

    (event,) = events(tmp_path)
    assert event.pop("at").endswith("Z")
    assert event == {"event": "round finished", "level": "info", "run": "m-1", "round": 3, "accuracy": 0.9}


def test_events_before_the_run_is_known_come_first(tmp_path):
    """They are kept until there is a file for them."""
    logs.set_up()
    structlog.get_logger().info("deployed")
    logs.to_folder(tmp_path, run="m-1")
    structlog.get_logger().info("started")

    assert [event["event"] for event in events(tmp_path)] == ["deployed", "started"]


def test_a_resumed_run_appends(tmp_path):
    """And a line that was cut short by a crash does not swallow the next one."""
    (tmp_path / "events.jsonl").write_text('{"event": "first"}\n{"event": "cut sho')
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    structlog.get_logger().info("next")

    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["event"] == "first"
    assert json.loads(lines[-1])["event"] == "next"
    assert len(lines) == 3


@pytest.mark.parametrize(
    "spelling",
    [
        lambda secret: secret,
        lambda secret: f"mongodb://user:{secret}@host",
        lambda secret: json.dumps({"password": secret}),
        lambda secret: {"nested": [{"deep": secret}]},
        lambda secret: ValueError(f"refused {secret}"),
        lambda secret: base64.b64encode(secret.encode()).decode(),
        lambda secret: (
            secret.replace('"', "%22").replace("/", "%2F").replace("\n", "%0A").replace(" ", "%20")
        ),
    ],
)
def test_a_registered_secret_is_in_no_event(tmp_path, spelling):
    """Plain, in a URL, in JSON, nested, in an error, in Basic auth."""
    secret = 'p"q/quux line\nend'
    logs.register_secret(SecretStr(secret))
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    structlog.get_logger().info("request", value=spelling(secret))

    (event,) = events(tmp_path)
    assert "***" in str(event["value"])
    assert "quux" not in (tmp_path / "events.jsonl").read_text()


def test_a_secret_in_a_traceback_is_hidden(tmp_path):
    """Exceptions are formatted before secrets are looked for."""
    logs.register_secret(SecretStr("hunter2-secret"))
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    try:
        raise RuntimeError("password hunter2-secret")
    except RuntimeError:
        structlog.get_logger().exception("went wrong")

    (event,) = events(tmp_path)
    assert "RuntimeError: password ***" in event["exception"]


def test_short_secrets_do_not_turn_everything_into_stars():
    """A password of one letter cannot be hidden without hiding all else."""
    logs.register_secret(SecretStr("a"))
    logs.register_secret(SecretStr(""))
    assert logs.redact("banana") == "banana"


def test_a_secret_within_a_longer_one_does_not_uncover_it():
    """The longer one is replaced first."""
    logs.register_secret(SecretStr("uuid-part"))
    logs.register_secret(SecretStr("uuid-part:the-key"))
    assert logs.redact("Basic uuid-part:the-key") == "Basic ***"


def test_what_json_has_no_word_for_is_written_as_text(tmp_path):
    """NaN would make the line unreadable for every other program."""
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    structlog.get_logger().info("metrics", loss=math.nan, names={"a"}, obj=SecretStr("xyzzy"))

    (event,) = events(tmp_path)
    assert (event["loss"], event["names"]) == ("nan", ["a"])
    assert "xyzzy" not in event["obj"]


def test_a_full_disk_is_said_once_and_nothing_is_raised(tmp_path, capsys):
    """/dev/full stands for the disk."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    for number in range(5):
        structlog.get_logger().info("event", number=number)

    said = capsys.readouterr().err
    assert said.count("Warning") == 1
    assert "No space left on device" in said


def test_lines_that_could_not_be_written_are_written_later(tmp_path, capsys):
    """The folder cannot be made while a file is in its way; when that is gone nothing is missing."""
    folder = tmp_path / "m-1"
    folder.write_text("in the way")
    logs.set_up()
    logs.to_folder(folder, run="m-1")
    structlog.get_logger().info("one")
    folder.unlink()
    structlog.get_logger().info("two")

    assert [event["event"] for event in events(folder)] == ["one", "two"]
    assert capsys.readouterr().err.count("Warning") == 1


def test_people_see_events_only_on_demand(tmp_path, capsys):
    """Nothing on stderr by default; with -v a readable line each, without secrets."""
    logs.register_secret(SecretStr("hunter2-secret"))
    logs.set_up()
    structlog.get_logger().info("quiet")
    assert capsys.readouterr().err == ""

    logs.set_up(verbose=True)
    structlog.get_logger().debug("loud", password="hunter2-secret", round=3)

    said = capsys.readouterr().err
    assert "loud" in said
    assert "round=3" in said
    assert "hunter2" not in said


def test_the_level_bounds_what_is_written(tmp_path):
    """`logs.level: warning` keeps the file small."""
    logs.set_up(level="warning")
    logs.to_folder(tmp_path, run="m-1")
    structlog.get_logger().info("left out")
    structlog.get_logger().warning("kept")

    assert [event["event"] for event in events(tmp_path)] == ["kept"]


def test_warnings_of_libraries_become_events(tmp_path, capsys):
    """asyncio, pymongo and aiohttp log through the standard library."""
    logs.set_up()
    logs.to_folder(tmp_path, run="m-1")
    logging.getLogger("pymongo").warning("no primary for %s s", 3)
    logging.getLogger("pymongo").debug("chatter")

    (event,) = events(tmp_path)
    assert (event["event"], event["logger"], event["level"]) == ("no primary for 3 s", "pymongo", "warning")
    assert capsys.readouterr().err == ""


def test_a_keeper_keeps_runs_apart(tmp_path):
    """Each run's events in its folder, the keeper's own elsewhere; also with more runs than open files."""
    logs.set_up()
    log = structlog.get_logger()
    log.info("starting")
    logs.to_folders(tmp_path / "logs", own=tmp_path / "k1" / "events.jsonl", keeper="k1")
    names = [f"m-{number}" for number in range(logs.OPEN_RUNS_MAX + 2)]
    for _ in range(2):
        for name in names:
            log.info("round finished", run=name)
    log.info("ready")

    for name in names:
        assert [event["event"] for event in events(tmp_path / "logs" / name)] == ["round finished"] * 2
    own = events(tmp_path / "k1")
    assert [event["event"] for event in own] == ["starting", "ready"]
    assert own[1]["keeper"] == "k1"


@pytest.mark.parametrize("run", ["../elsewhere", "a/b", ".hidden", "", 7])
def test_what_is_no_name_of_a_run_makes_no_folder(tmp_path, run):
    """Such an event is the keeper's own."""
    logs.set_up()
    logs.to_folders(tmp_path / "logs", own=tmp_path / "k1" / "events.jsonl", keeper="k1")
    structlog.get_logger().info("odd", run=run)

    assert [event["event"] for event in events(tmp_path / "k1")] == ["odd"]
    assert not (tmp_path / "logs").exists()
