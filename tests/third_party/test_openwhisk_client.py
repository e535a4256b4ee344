"""OpenWhisk's own JavaScript client against the fabric: everything that it offers but its API gateway."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import zipfile

import pytest

from tests.third_party.conftest import ClientError

pytestmark = pytest.mark.timeout(900)  # the first test waits for npm

GREET = """
def main(args):
    print("greeting", args.get("name"))
    return {"greeting": "Hello " + args.get("name", "stranger")}
"""
FAILS = "def main(args):\n    return {'error': 'enough'}\n"
NODE = "function main (args) { console.log('node', args.name); return { node: args.name } }"
PYTHON = "python:default"


@pytest.fixture
async def client(javascript):
    """The client for `guest`; its calls are made in a thread, one at a time."""
    calls = await asyncio.to_thread(javascript)

    async def call(resource, method, options=None):
        return await asyncio.to_thread(calls, resource, method, options)

    return call


async def stored(client, activation_id):
    """The activation's record, waited for 30 s at most."""
    limit = time.monotonic() + 30
    while True:
        try:
            return await client("activations", "get", {"name": activation_id})
        except ClientError as exc:
            if exc.status != 404 or time.monotonic() > limit:
                raise
            await asyncio.sleep(0.02)


async def test_actions_are_deployed_invoked_both_ways_listed_and_deleted(client):
    """Create, update, get, list, blocking and not, with parameters, limits and annotations."""
    made = await client(
        "actions", "create",
        {"name": "greet", "action": GREET, "kind": PYTHON, "params": {"name": "nobody"},
         "annotations": {"about": "greetings"}, "limits": {"timeout": 30000, "memory": 256}},
    )  # fmt: skip
    assert made["version"] == "0.0.1"
    assert {"key": "about", "value": "greetings"} in made["annotations"]
    with pytest.raises(ClientError) as refused:
        await client("actions", "create", {"name": "greet", "action": GREET, "kind": PYTHON})
    assert refused.value.status == 409
    assert 'Returned HTTP 409 (Conflict) --> "resource already exists"' in str(refused.value)
    record = await client("actions", "invoke", {"name": "greet", "blocking": True, "params": {"name": "you"}})
    assert record["response"]["result"] == {"greeting": "Hello you"}
    result = await client("actions", "invoke", {"name": "greet", "blocking": True, "result": True})
    assert result == {"greeting": "Hello nobody"}
    later = await client("actions", "invoke", {"name": "greet", "params": {"name": "later"}})
    assert list(later) == ["activationId"]
    assert (await stored(client, later["activationId"]))["response"]["result"] == {"greeting": "Hello later"}
    updated = await client(
        "actions", "update", {"name": "greet", "action": GREET, "kind": PYTHON, "params": {}}
    )
    assert (updated["version"], updated["parameters"]) == ("0.0.2", [])
    got = await client("actions", "get", "greet")
    assert got["exec"]["code"] == GREET
    assert "code" not in (await client("actions", "get", {"name": "greet", "code": False}))["exec"]
    assert [item["name"] for item in await client("actions", "list", {"limit": 5})] == ["greet"]
    assert await client("actions", "list", {"count": True}) == {"actions": 1}
    assert (await client("actions", "delete", {"name": "greet"}))["name"] == "greet"
    with pytest.raises(ClientError) as gone:
        await client("actions", "get", "greet")
    assert (gone.value.status, gone.value.body["error"]) == (404, "The requested resource does not exist.")


async def test_a_failed_activation_is_thrown_with_its_record(client):
    """502 to a blocking call; the client finds the error in it, and the record as the error's body."""
    await client("actions", "create", {"name": "fails", "action": FAILS, "kind": PYTHON})
    with pytest.raises(ClientError) as failed:
        await client("actions", "invoke", {"name": "fails", "blocking": True})
    assert failed.value.status == 502
    assert failed.value.body["response"]["result"] == {"error": "enough"}
    assert "enough" in str(failed.value)


async def test_a_zip_and_the_clients_own_kind_run(client):
    """A zip of Python; and code for node, which the client takes everything for unless it is told."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        bundle.writestr("__main__.py", "from helper import main\n")
        bundle.writestr("helper.py", GREET)
    zipped = base64.b64encode(content.getvalue()).decode()
    await client("actions", "create", {"name": "zip", "zip": zipped, "kind": PYTHON})
    call = {"blocking": True, "result": True, "params": {"name": "you"}}
    assert await client("actions", "invoke", {"name": "zip", **call}) == {"greeting": "Hello you"}
    made = await client("actions", "create", {"name": "node", "action": NODE})
    assert made["exec"]["kind"].startswith("nodejs:")
    assert await client("actions", "invoke", {"name": "node", **call}) == {"node": "you"}


async def test_activations_are_listed_and_read_in_parts(client):
    """Record, result and logs; lists by name, with documents or counts."""
    await client("actions", "create", {"name": "greet", "action": GREET, "kind": PYTHON})
    record = await client("actions", "invoke", {"name": "greet", "blocking": True, "params": {"name": "me"}})
    activation_id = record["activationId"]
    assert (await stored(client, activation_id))["name"] == "greet"
    logs = await client("activations", "logs", {"name": activation_id})
    assert [line.partition("stdout: ")[2] for line in logs["logs"]] == ["greeting me"]
    result = await client("activations", "result", activation_id)
    assert (result["success"], result["result"]) == (True, {"greeting": "Hello me"})
    listed = await client("activations", "list", {"name": "greet", "limit": 1, "since": record["start"]})
    assert [item["activationId"] for item in listed] == [activation_id]
    assert "response" not in listed[0]
    full = await client("activations", "list", {"docs": True})
    assert full[0]["response"]["result"] == {"greeting": "Hello me"}
    assert await client("activations", "list", {"count": True}) == {"activations": 1}
    assert await client("activations", "list", {"upto": record["start"] - 1}) == []


async def test_packages_bindings_sequences_and_feeds(client, javascript):
    """What is in a package is reached through it, and by another namespace through a binding."""
    await client(
        "packages",
        "create",
        {"name": "tools", "package": {"publish": True, "parameters": [{"key": "name", "value": "tools"}]}},
    )
    await client("actions", "create", {"name": "tools/greet", "action": GREET, "kind": PYTHON})
    got = await client("packages", "get", "tools")
    assert [item["name"] for item in got["actions"]] == ["greet"]
    call = {"blocking": True, "result": True}
    assert await client("actions", "invoke", {"name": "tools/greet", **call}) == {"greeting": "Hello tools"}
    assert [item["name"] for item in await client("packages", "list")] == ["tools"]
    other = await asyncio.to_thread(javascript, "other")
    bind = {"name": "mine", "package": {"binding": {"namespace": "guest", "name": "tools"}}}
    assert (await asyncio.to_thread(other, "packages", "create", bind))["binding"]["name"] == "tools"
    bound = {"name": "mine/greet", **call, "params": {"name": "both"}}
    assert await asyncio.to_thread(other, "actions", "invoke", bound) == {"greeting": "Hello both"}
    await client("actions", "create", {"name": "twice", "sequence": ["/_/tools/greet", "/guest/tools/greet"]})
    record = await client("actions", "invoke", {"name": "twice", "blocking": True})
    assert record["response"]["result"] == {"greeting": "Hello tools"}
    assert len(record["logs"]) == 2
    feed = "def main(args):\n    return {'event': args['lifecycleEvent'], 'of': args['triggerName']}\n"
    await client(
        "actions",
        "create",
        {"name": "tools/feed", "action": feed, "kind": PYTHON, "annotations": {"feed": True}},
    )
    made = await client("feeds", "create", {"name": "tools/feed", "trigger": "news"})
    assert made["response"]["result"] == {"event": "CREATE", "of": "/_/news"}
    with pytest.raises(ClientError, match="Package not empty"):
        await client("packages", "delete", {"name": "tools"})
    for name in ("tools/feed", "tools/greet", "twice"):
        await client("actions", "delete", name)
    assert (await client("packages", "delete", "tools"))["name"] == "tools"


async def test_triggers_and_rules(client):
    """Created, fired, switched off and on, deleted."""
    await client("actions", "create", {"name": "greet", "action": GREET, "kind": PYTHON})
    await client(
        "triggers",
        "create",
        {"name": "news", "trigger": {"parameters": [{"key": "name", "value": "reader"}]}},
    )
    rule = await client("rules", "create", {"name": "reader", "action": "greet", "trigger": "news"})
    assert (rule["status"], rule["action"]["name"], rule["trigger"]["path"]) == ("active", "greet", "guest")
    fired = await client("triggers", "invoke", {"name": "news", "params": {"x": 1}})
    (line,) = map(json.loads, (await stored(client, fired["activationId"]))["logs"])
    assert line["success"] is True
    inner = await stored(client, line["activationId"])
    assert inner["response"]["result"] == {"greeting": "Hello reader"}
    await client("rules", "disable", {"name": "reader"})
    assert (await client("rules", "get", "reader"))["status"] == "inactive"
    assert not await client("triggers", "invoke", {"name": "news"})
    await client("rules", "enable", {"name": "reader"})
    assert "activationId" in await client("triggers", "invoke", {"name": "news"})
    assert [item["name"] for item in await client("rules", "list")] == ["reader"]
    assert [item["name"] for item in await client("triggers", "list")] == ["news"]
    updated = await client("triggers", "update", {"name": "news", "trigger": {"publish": True}})
    assert updated["version"] == "0.0.2"
    assert (await client("rules", "delete", {"name": "reader"}))["status"] == "inactive"
    assert (await client("triggers", "delete", "news"))["name"] == "news"


async def test_namespaces_and_refusals(client, javascript):
    """The client's own namespace is listed; another's is closed to it."""
    assert await client("namespaces", "list") == ["guest"]
    other = await asyncio.to_thread(javascript, "other")
    with pytest.raises(ClientError, match="not authorized to access 'guest'") as refused:
        await asyncio.to_thread(other, "actions", "list", {"namespace": "guest"})
    assert refused.value.status == 403
