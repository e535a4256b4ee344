"""Invoking over the OpenWhisk API, and what is remembered of it."""

import asyncio
import contextlib
import sqlite3

import pytest

from fedkeeper.fabric.front import FrontSettings
from tests.fabric.api.conftest import HELLO, zipped

FAILS = "def main(args):\n    raise ValueError('broken')\n"


async def test_a_blocking_invocation_answers_with_the_record_and_no_logs(fabric):
    """200, the whole record, `logs` empty there and full in the activation."""
    await fabric.put("a", parameters=[{"key": "name", "value": "default"}, {"key": "x", "value": 1}])
    answer = await fabric.call("POST", "actions/a?blocking=true", {"name": "me"})
    assert answer.status == 200
    record = answer.body
    assert record["response"]["result"] == {"hello": "me", "args": {"name": "me", "x": 1}}
    assert record["response"]["status"] == "success"
    assert record["response"]["success"] is True
    assert record["logs"] == []
    assert record["activationId"] == answer.headers["x-openwhisk-activation-id"]
    assert len(record["activationId"]) == 32
    notes = {item["key"]: item["value"] for item in record["annotations"]}
    assert notes["path"] == "guest/a"
    assert notes["initTime"] == 3
    assert notes["timeout"] is False
    assert notes["limits"] == {"timeout": 60000, "memory": 256, "logs": 10, "concurrency": 1}
    assert "statusCode" not in record
    kept = await fabric.call("GET", f"activations/{record['activationId']}")
    assert kept.body == {**record, "logs": ["2026-11-21T21:28:00.463142Z    stdout: hi"]}
    again = await fabric.call("POST", "actions/a?blocking=true", {})
    assert "initTime" not in {item["key"] for item in again.body["annotations"]}


async def test_result_gives_the_bare_result(fabric):
    """With result=true; an array is bare in any case."""
    await fabric.put("a")
    await fabric.put("list", "def main(args):\n    return [1, 2]\n")
    assert (await fabric.call("POST", "actions/a?blocking=yes&result=1", {})).body["hello"] == "nobody"
    assert (await fabric.call("POST", "actions/list?blocking=true", {})).body == [1, 2]


async def test_a_nonblocking_invocation_is_accepted_and_polled_for(fabric):
    """202 with the ID; the record is 404 until it ended."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    answer = await fabric.call("POST", "actions/a?result=true", {"name": "x"})
    assert answer.status == 202
    assert set(answer.body) == {"activationId"}
    activation = answer.body["activationId"]
    assert (await fabric.call("GET", f"activations/{activation}")).status == 404
    assert fabric.front.busy()
    fabric.workers.gate.set()
    record = await fabric.ended(activation)
    assert record["response"]["result"]["hello"] == "x"
    assert (await fabric.call("GET", f"activations/{activation}/logs")).body == {"logs": record["logs"]}
    assert (await fabric.call("GET", f"activations/{activation}/result")).body == record["response"]
    other = fabric.credentials.openwhisk["other"]
    assert (await fabric.call("GET", f"activations/{activation}", auth=other)).status == 404


async def test_a_blocking_wait_that_is_over_is_202_and_the_action_runs_on(fabric):
    """Never a failure, never a second run."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    answer = await fabric.call("POST", "actions/a?blocking=true&timeout=1", {})
    assert answer.status == 202
    fabric.workers.gate.set()
    assert (await fabric.ended(answer.body["activationId"]))["response"]["success"]
    assert len(fabric.workers.contexts) == 1
    refused = await fabric.call("POST", "actions/a?blocking=true&timeout=60001", {})
    assert (refused.status, refused.body["error"]) == (
        400,
        "The query parameter 'timeout' was malformed:\nTimeout must be number of milliseconds up to 60000.",
    )


def begun(fabric):
    """The activations that would have a record if the fabric were killed now."""
    with contextlib.closing(sqlite3.connect(fabric.folder / "fabric.sqlite")) as store:
        return {row[0] for row in store.execute("SELECT id FROM activations WHERE ended = 0")}


@pytest.mark.parametrize("query", ["", "?blocking=true&timeout=1"])
async def test_an_id_that_was_told_survives_a_kill_of_the_fabric(fabric, query):
    """It is on disk before the answer says it."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    answer = await fabric.call("POST", f"actions/a{query}", {})
    assert begun(fabric) == {answer.body["activationId"]}
    fabric.workers.gate.set()
    await fabric.ended(answer.body["activationId"])
    assert begun(fabric) == set()


async def test_an_activation_that_lasts_is_on_disk_though_nobody_was_told_of_it(fabric):
    """The caller of a blocking invocation learns the ID at its end."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    running = asyncio.create_task(fabric.call("POST", "actions/a?blocking=true", {}))
    for _ in range(500):
        if found := begun(fabric):
            break
        await asyncio.sleep(0.01)
    fabric.workers.gate.set()
    assert {(await running).body["activationId"]} == found


async def test_a_client_that_goes_away_cancels_nothing(fabric):
    """The activation runs to its end and leaves its record."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    leaving = asyncio.create_task(fabric.call("POST", "actions/a?blocking=true", {}))
    for _ in range(500):
        if fabric.workers.contexts:
            break
        await asyncio.sleep(0.01)
    leaving.cancel()  # closes the connection
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await fabric.call("GET", "activations")).body == []
    fabric.workers.gate.set()
    record = await fabric.ended(fabric.workers.contexts[0]["activation_id"])
    assert record["response"]["success"]


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        (FAILS, 502, "application error", "broken"),
        ("def main(args):\n    return {'error': 'mine', 'more': 1}\n", 502, "application error", "mine"),
        (
            "def main(args):\n    return {'x': float('nan')}\n",
            502,
            "action developer error",
            "dictionary or array",
        ),
        ("def main(args):\n    return 'text'\n", 502, "action developer error", "dictionary or array"),
        (
            "def main(args):\n    return {'x': 'y' * 2**20}\n",
            502,
            "application error",
            "exceeded the allowed length",
        ),
        ("abcd", 502, "action developer error", "failed to generate or locate a binary"),
    ],
)
async def test_failures_have_their_status_and_only_an_error(fabric, code, status, kind, words):
    """The result of what failed is only {"error": ..}; the fabric serves on."""
    await fabric.put("bad", code)
    answer = await fabric.call("POST", "actions/bad?blocking=true", {})
    assert answer.status == status
    assert answer.body["response"]["status"] == kind
    assert answer.body["response"]["success"] is False
    assert list(answer.body["response"]["result"]) == ["error"]
    assert words in answer.body["response"]["result"]["error"]
    bare = await fabric.call("POST", "actions/bad?blocking=true&result=true", {})
    assert (bare.status, list(bare.body)) == (502, ["error"])


async def test_final_parameters_cannot_be_overridden(fabric):
    """`final` makes them immutable; init parameters are environment, not arguments."""
    await fabric.put(
        "a", parameters=[{"key": "fixed", "value": 1}, {"key": "SECRET", "value": {"a": 1}, "init": True}],
        annotations=[{"key": "final", "value": True}],
    )  # fmt: skip
    refused = await fabric.call("POST", "actions/a?blocking=true", {"fixed": 2})
    assert refused.status == 400
    answer = await fabric.call("POST", "actions/a?blocking=true&result=true", {"free": 2})
    assert answer.body["args"] == {"fixed": 1, "free": 2}
    assert fabric.workers.revisions[-1].environment == {"SECRET": '{"a":1}'}


async def test_the_context_is_all_strings_and_the_key_only_for_those_who_ask(fabric):
    """A number would kill the real launcher; the API key goes to actions annotated for it."""
    await fabric.put("a")
    await fabric.put("b", annotations=[{"key": "provide-api-key", "value": True}])
    for name in ("a", "b"):
        await fabric.call("POST", f"actions/{name}?blocking=true", {}, X_Request_ID="my-id-1")
    without, with_key = fabric.workers.contexts
    assert all(isinstance(value, str) for value in with_key.values())
    assert without["action_name"] == "/guest/a"
    assert without["api_host"] == fabric.url
    assert without["transaction_id"] == "my-id-1"
    assert "api_key" not in without
    assert with_key["api_key"] == fabric.credentials.openwhisk["guest"]


async def test_a_zip_runs_its_main_and_an_update_makes_a_new_revision(fabric):
    """The old revision is retired and its folder deleted; the new one runs."""
    await fabric.put("z", zipped(init__py="def run(args):\n    return {'v': 1}\n"))
    body = {"exec": {"kind": "python:3", "code": "def run(args):\n    return {'v': 2}\n", "main": "run"}}
    await fabric.call("PUT", "actions/z?overwrite=true", body)
    answer = await fabric.call("POST", "actions/z?blocking=true&result=true", {})
    assert answer.body == {"v": 2}
    assert len(set(fabric.workers.retired)) == 1
    for _ in range(200):
        if len(list((fabric.folder / "revisions").iterdir())) == 1:
            break
        await asyncio.sleep(0.01)
    assert [path.name for path in (fabric.folder / "revisions").iterdir()] == [
        fabric.workers.revisions[-1].id
    ]


async def test_the_files_of_a_deleted_action_stay_until_its_activation_has_ended(fabric):
    """Deleting while it runs disturbs nobody."""
    await fabric.put("a")
    fabric.workers.gate.clear()
    activation = (await fabric.call("POST", "actions/a", {})).body["activationId"]
    assert (await fabric.call("DELETE", "actions/a")).status == 200
    assert len(list((fabric.folder / "revisions").iterdir())) == 1
    fabric.workers.gate.set()
    assert (await fabric.ended(activation))["response"]["success"]


async def test_activations_are_listed_newest_first_by_name_and_time(fabric):
    """Summaries have statusCode and no response; docs=true are full records; count counts."""
    await fabric.put("a")
    await fabric.put("bad", FAILS)
    starts = []
    for name in ("a", "bad", "a"):
        starts.append((await fabric.call("POST", f"actions/{name}?blocking=true", {})).body["start"])
        await asyncio.sleep(0.002)  # starts have milliseconds
    listed = (await fabric.call("GET", "activations")).body
    assert [item["name"] for item in listed] == ["a", "bad", "a"]
    assert [item["statusCode"] for item in listed] == [0, 1, 0]
    assert "response" not in listed[0]
    assert "logs" not in listed[0]
    full = (await fabric.call("GET", "activations?docs=true&limit=1")).body
    assert full[0]["response"]["success"]
    assert "statusCode" not in full[0]
    assert (await fabric.call("GET", "activations?count=true&name=a")).body == {"activations": 2}
    since = (await fabric.call("GET", f"activations?since={starts[1]}&upto={starts[1]}")).body
    assert [item["start"] for item in since] == [starts[1]]
    assert (await fabric.call("GET", "activations?docs=true&count=true")).status == 400
    assert (await fabric.call("GET", "activations/abc")).body[
        "error"
    ] == "Activation id length is 3 but must be 32."
    assert (await fabric.call("GET", "activations/" + "X" * 32)).body[
        "error"
    ] == "The activation id is not valid."


async def test_over_the_bound_is_429_and_starts_nothing(open_fabric):
    """The platform's words, so that clients back off briefly."""
    async with open_fabric(FrontSettings(in_flight_max=2)) as fabric:
        await fabric.put("a")
        fabric.workers.gate.clear()
        first = [(await fabric.call("POST", "actions/a", {})) for _ in range(2)]
        refused = await fabric.call("POST", "actions/a", {})
        assert refused.status == 429
        assert refused.body["error"] == "Too many concurrent requests in flight (count: 2, allowed: 2)."
        fabric.workers.gate.set()
        for answer in first:
            await fabric.ended(answer.body["activationId"])
        assert len(fabric.workers.contexts) == 2
        assert (await fabric.call("POST", "actions/a?blocking=true", {})).status == 200


async def test_a_restart_keeps_functions_and_ends_what_was_running(open_fabric):
    """Actions are there again with their code; a running activation becomes an internal error."""
    async with open_fabric() as fabric:
        await fabric.put("a")
        fabric.workers.gate.clear()
        activation = (await fabric.call("POST", "actions/a", {})).body["activationId"]
    async with open_fabric() as fabric:
        record = await fabric.ended(activation)
        assert record["response"]["status"] == "whisk internal error"
        assert "stopped" in record["response"]["result"]["error"]
        assert (await fabric.call("GET", "actions/a")).body["exec"]["code"] == HELLO
        assert (await fabric.call("POST", "actions/a?blocking=true", {})).status == 200


async def test_an_activation_of_a_fabric_that_was_killed_gets_a_record(open_fabric):
    """kill -9 leaves a row that never ended; the next start ends it."""
    from fedkeeper.fabric.store import Store

    async with open_fabric() as fabric:
        await fabric.put("a")
        folder = fabric.folder
    store = await Store.open(folder)
    told = {
        "namespace": "guest",
        "name": "a",
        "version": "0.0.1",
        "kind": "python:3",
        "start": 5,
        "limits": {},
    }
    await store.begin("0" * 32, "guest", "a", 5, told)
    await store.close()
    async with open_fabric() as fabric:
        record = await fabric.ended("0" * 32)
        assert record["response"]["status"] == "whisk internal error"
        assert record["start"] == 5
