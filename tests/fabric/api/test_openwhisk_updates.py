"""What updates of actions, packages and bindings keep, replace and merge; what deletions take along."""

import asyncio
import random

import pytest

from fedkeeper.fabric.openwhisk_entities import FullName
from fedkeeper.fabric.openwhisk_puts import put_package
from fedkeeper.fabric.store import Document, Store
from tests.fabric.api.conftest import HELLO

PYTHON = {"kind": "python:3", "code": HELLO}


def pairs(**values):
    """Parameters or annotations."""
    return [{"key": key, "value": value} for key, value in values.items()]


def shown(entity, field="annotations"):
    """The same as a dictionary."""
    return {item["key"]: item["value"] for item in entity[field]}


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({}, "version", "0.0.2"),
        ({"version": "2.1.9"}, "version", "2.1.9"),
        ({}, "publish", False),
        ({"publish": True}, "publish", True),
        ({}, "parameters", pairs(a=1)),
        ({"parameters": pairs(b=2)}, "parameters", pairs(b=2)),
        ({"parameters": []}, "parameters", []),
        ({}, "exec", {**PYTHON, "binary": False, "main": "main"}),
        ({"exec": {**PYTHON, "code": "other"}}, "exec", {**PYTHON, "code": "other", "binary": False}),
        (
            {"limits": {"timeout": 500, "unknown": 1}},
            "limits",
            {"timeout": 500, "memory": 512, "logs": 10, "concurrency": 1},
        ),
        (
            {"limits": {"instances": 3}},
            "limits",
            {"timeout": 60000, "memory": 512, "logs": 10, "concurrency": 1, "instances": 3},
        ),
    ],
    ids=str,
)
async def test_an_update_of_an_action(fabric, change, field, expected):
    """It keeps what it does not mention; the version counts on unless it is named."""
    first = {"exec": {**PYTHON, "main": "main"}, "parameters": pairs(a=1), "limits": {"memory": 512}}
    assert (await fabric.call("PUT", "actions/a", first)).body["version"] == "0.0.1"
    updated = await fabric.call("PUT", "actions/a?overwrite=true", change)
    assert updated.body[field] == expected
    assert (await fabric.call("GET", "actions/a")).body == updated.body


async def test_annotations_of_an_action_are_merged_and_can_be_dropped(fabric):
    """By key; `exec` is always the platform's, `provide-api-key: false` only a new action's default."""
    await fabric.put("a", annotations=pairs(x=1, y=1, exec="mine"))
    change = {"annotations": pairs(y=2, z=3), "delAnnotations": ["x", "provide-api-key", "none"]}
    updated = await fabric.call("PUT", "actions/a?overwrite=true", change)
    assert shown(updated.body) == {"y": 2, "z": 3, "exec": "python:3"}
    bad = await fabric.call("PUT", "actions/a?overwrite=true", {"delAnnotations": "y"})
    assert bad.status == 400


async def test_a_sequence_leaves_no_parameters_to_what_replaces_it(fabric):
    """A sequence's parameters are its components, whatever the body says; they do not leak to code."""
    await fabric.put("a", parameters=pairs(own=1))
    chain = {"exec": {"kind": "sequence", "components": ["/_/a"]}, "parameters": pairs(lost=1)}
    assert shown((await fabric.call("PUT", "actions/s", chain)).body, "parameters") == {
        "_actions": ["/guest/a"]
    }
    kept = await fabric.call("PUT", "actions/s?overwrite=true", {"parameters": pairs(lost=1)})
    assert shown(kept.body, "parameters") == {"_actions": ["/guest/a"]}
    replaced = await fabric.call("PUT", "actions/s?overwrite=true", {"exec": PYTHON})
    assert replaced.body["parameters"] == []
    assert replaced.body["version"] == "0.0.3"
    assert (await fabric.call("POST", "actions/s?blocking=true&result=true", {})).body["hello"] == "nobody"


async def test_an_update_of_a_package(fabric):
    """Parameters and annotations are replaced if they are named; the rest stays."""
    await fabric.call("PUT", "packages/p", {"parameters": pairs(a=1), "annotations": pairs(x=1)})
    updated = await fabric.call(
        "PUT", "packages/p?overwrite=true", {"parameters": pairs(b=2), "publish": True}
    )
    assert updated.body["version"] == "0.0.2"
    assert (updated.body["parameters"], updated.body["annotations"]) == (pairs(b=2), pairs(x=1))
    assert updated.body["publish"] is True
    listed = (await fabric.call("GET", "packages")).body
    assert [(item["name"], item["binding"]) for item in listed] == [("p", False)]


async def test_parameters_come_from_package_binding_action_and_payload(fabric):
    """Each stands in for those of the one before: provider, binding, action, call."""
    other = fabric.credentials.openwhisk["other"]
    package = {"publish": True, "parameters": pairs(a="package", b="package", c="package", d="package")}
    await fabric.call("PUT", "packages/p", package, auth=other)
    action = {"exec": PYTHON, "parameters": pairs(c="action", d="action")}
    await fabric.call("PUT", "actions/p/f", action, auth=other)
    binding = {"binding": {"namespace": "other", "name": "p"}, "parameters": pairs(b="binding", c="binding")}
    made = await fabric.call("PUT", "packages/mine", binding)
    assert shown(made.body) == {"binding": {"namespace": "other", "name": "p"}}
    answer = await fabric.call("POST", "actions/mine/f?blocking=true", {"d": "call"})
    assert answer.body["response"]["result"]["args"] == {
        "a": "package",
        "b": "binding",
        "c": "action",
        "d": "call",
    }
    record = answer.body
    assert (record["namespace"], record["name"]) == ("guest", "f")
    assert shown(record)["path"] == "other/p/f"
    assert shown(record)["binding"] == "guest/mine"
    assert fabric.workers.contexts[-1]["namespace"] == "guest"
    assert fabric.workers.contexts[-1]["action_name"] == "/other/p/f"
    listed = (await fabric.call("GET", "activations?name=mine/f")).body
    assert [item["activationId"] for item in listed] == [record["activationId"]]
    assert (await fabric.call("GET", "activations?name=f")).body == []


async def test_a_package_that_is_shared_no_more_is_closed_to_its_bindings(fabric):
    """403 for who bound it, and for who names it; the owner goes on."""
    other = fabric.credentials.openwhisk["other"]
    await fabric.call("PUT", "packages/p", {"publish": True}, auth=other)
    await fabric.call("PUT", "actions/p/f", {"exec": PYTHON}, auth=other)
    await fabric.call("PUT", "packages/mine", {"binding": {"namespace": "other", "name": "p"}})
    assert (await fabric.call("POST", "actions/mine/f", {})).status == 202
    await fabric.call("PUT", "packages/p?overwrite=true", {"publish": False}, auth=other)
    for path in ("actions/mine/f", "/api/v1/namespaces/other/actions/p/f"):
        assert (await fabric.call("POST", path, {})).status == 403
        assert (await fabric.call("GET", path)).status == 403
    assert (await fabric.call("POST", "actions/p/f", {}, auth=other)).status == 202


def to(name):
    """The body of a binding to a package of one's own."""
    return {"binding": {"namespace": "_", "name": name}}


async def test_no_step_towards_a_circle_of_bindings_is_taken(fabric):
    """A package never becomes a binding, and a binding never refers to one: each refusal in its own words."""
    await fabric.call("PUT", "packages/a", {})
    await fabric.call("PUT", "packages/p", {})
    await fabric.call("PUT", "packages/b", to("a"))
    await fabric.call("PUT", "packages/c", to("p"))
    becomes = (409, "Resource is a package and cannot be converted into a binding.")
    refers = (400, "Cannot bind to another package binding.")
    missing = (400, "Binding references a package that does not exist.")

    async def refusal(name, target):
        answer = await fabric.call("PUT", f"packages/{name}?overwrite=true", to(target))
        return answer.status, answer.body["error"]

    assert await refusal("a", "a") == becomes
    assert await refusal("a", "p") == becomes
    assert await refusal("c", "b") == refers
    assert await refusal("c", "c") == refers
    assert await refusal("new", "new") == missing
    await fabric.call("DELETE", "packages/a")  # what b refers to is gone, and its name is free
    assert await refusal("a", "b") == missing
    assert await refusal("a", "c") == refers
    assert await refusal("a", "a") == missing
    assert (await fabric.call("GET", "packages/b")).status == 404


async def test_bindings_made_all_at_once_form_no_circle(fabric):
    """Whatever is made, changed and deleted in whatever order: every binding that is there ends somewhere."""
    chance = random.Random(7)  # noqa: S311 - not for secrets
    names = ("a", "b", "c")

    async def step():
        name = chance.choice(names)
        match chance.randrange(4):
            case 0:
                return await fabric.call("DELETE", f"packages/{name}")
            case 1:
                return await fabric.call("PUT", f"packages/{name}?overwrite=true", {})
            case _:
                target = chance.choice(names)
                return await fabric.call("PUT", f"packages/{name}?overwrite=true", to(target))

    seen = set()
    for _ in range(60):
        seen |= {answer.status for answer in await asyncio.gather(*(step() for _ in range(6)))}
        for name in names:
            assert (await fabric.call("GET", f"packages/{name}")).status in {200, 404}
    assert seen == {200, 400, 404, 409}


async def test_a_circle_that_is_in_the_store_ends_in_an_error(open_fabric, tmp_path):
    """422 in the platform's words for whoever reads, invokes or binds; the fabric serves on."""
    store = await Store.open(tmp_path / "fabric")
    for name, target in (("a", "b"), ("b", "a")):
        entity = put_package(FullName("guest", "", name), to(target), None, now_ms=1)
        entity["binding"]["namespace"] = "guest"
        await store.put(Document(kind="package", scope="guest", name=name, updated_ms=1, body=entity))
    await store.close()
    words = "Package binding 'guest/a' contains a circular reference."
    async with open_fabric() as fabric:
        for method, path, sent in (
            ("GET", "packages/a", None),
            ("GET", "actions/a/f", None),
            ("POST", "actions/a/f?blocking=true", {}),
            ("PUT", "packages/c", to("a")),
        ):
            answer = await fabric.call(method, path, sent)
            assert (answer.status, answer.body["error"]) == (422, words)
        assert (await fabric.call("DELETE", "packages/a")).status == 200
        assert (await fabric.call("PUT", "packages/a", {})).status == 200
        assert (await fabric.call("GET", "packages/b")).status == 200


async def test_a_package_is_deleted_empty_or_by_force(fabric):
    """Force takes its actions along, with their files; a binding goes without its provider."""
    await fabric.call("PUT", "packages/p", {})
    await fabric.put("p/a")
    await fabric.call("PUT", "packages/b", {"binding": {"namespace": "_", "name": "p"}})
    refused = await fabric.call("DELETE", "packages/p")
    words = "Package not empty (contains 1 entity). Set force param or delete package contents."
    assert (refused.status, refused.body["error"]) == (409, words)
    assert (await fabric.call("DELETE", "packages/b")).body["name"] == "b"
    deleted = await fabric.call("DELETE", "packages/p?force=true")
    assert deleted.body["name"] == "p"
    assert (await fabric.call("GET", "actions")).body == []
    assert len(set(fabric.workers.retired)) == 1
    assert (await fabric.call("PUT", "packages/p", {})).status == 200
    assert (await fabric.call("GET", "packages/p")).body["actions"] == []


async def test_init_parameters_are_environment_and_never_shared_between_packages(fabric):
    """As text, payload over parameters; another binding's environment has workers of its own."""
    secret = {"key": "S", "value": {"a": 1}, "init": True}
    await fabric.call("PUT", "packages/p", {"parameters": [secret], "publish": True})
    await fabric.put(
        "p/f",
        parameters=[{"key": "N", "value": None, "init": True}, {"key": "B", "value": True, "init": True}],
    )
    bound = {
        "binding": {"namespace": "_", "name": "p"},
        "parameters": [{"key": "S", "value": "b", "init": True}],
    }
    await fabric.call("PUT", "packages/b", bound)
    for path in ("p/f", "b/f"):
        answer = await fabric.call("POST", f"actions/{path}?blocking=true&result=true", {"x": 1, "B": False})
        assert answer.body["args"] == {"x": 1}
    first, second = fabric.workers.revisions
    assert first.environment == {"S": '{"a":1}', "N": "", "B": "false"}
    assert second.environment == {"S": "b", "N": "", "B": "false"}
    assert first.id != second.id
    assert first.folder == second.folder
    other = fabric.credentials.openwhisk["other"]
    await fabric.call("POST", "/api/v1/namespaces/guest/actions/p/f?blocking=true", {}, auth=other)
    assert len({revision.id for revision in fabric.workers.revisions}) == 3
    await fabric.call("DELETE", "actions/p/f")
    assert set(fabric.workers.retired) >= {revision.id for revision in fabric.workers.revisions}
