"""Triggers and rules: events that invoke actions."""

import json

from fedkeeper.fabric.front import FrontSettings
from fedkeeper.fabric.openwhisk_entities import Bounds
from tests.fabric.api.conftest import HELLO


async def rule(fabric, name="r", trigger="t", action="a", **query):
    """Deploy a rule."""
    body = {"trigger": f"/_/{trigger}", "action": f"/_/{action}"}
    asked = "&".join(f"{key}={value}" for key, value in query.items())
    return await fabric.call("PUT", f"rules/{name}?{asked}", body)


async def fired(fabric, trigger="t", payload=None):
    """Fire, and return the lines of the trigger's activation."""
    answer = await fabric.call("POST", f"triggers/{trigger}", payload or {})
    assert answer.status == 202, answer.body
    record = await fabric.ended(answer.body["activationId"])
    return [json.loads(line) for line in record["logs"]]


async def test_a_fired_trigger_invokes_the_actions_of_its_active_rules(fabric):
    """With parameters, payload and the request's headers; never with the key of who fired it."""
    await fabric.put("a")
    await fabric.call(
        "PUT", "triggers/t", {"parameters": [{"key": "p", "value": 1}, {"key": "q", "value": 1}]}
    )
    assert (await rule(fabric)).body["status"] == "active"
    answer = await fabric.call("POST", "triggers/t", {"q": 2}, X_Mine="yes")
    assert (answer.status, list(answer.body)) == (202, ["activationId"])
    assert answer.headers["x-openwhisk-activation-id"] == answer.body["activationId"]
    record = await fabric.ended(answer.body["activationId"])
    (line,) = map(json.loads, record["logs"])
    inner = await fabric.ended(line.pop("activationId"))
    assert line == {"rule": "guest/r", "action": "guest/a", "statusCode": 0, "success": True}
    arguments = inner["response"]["result"]["args"]
    assert (arguments["p"], arguments["q"]) == (1, 2)
    assert arguments["__ow_headers"]["x-mine"] == "yes"
    assert "authorization" not in arguments["__ow_headers"]
    assert "cause" not in inner


async def test_a_triggers_activation_has_no_end(fabric):
    """Its result is the payload; lists show neither end, duration nor status."""
    await fabric.put("a")
    await fabric.call("PUT", "triggers/t", {})
    await rule(fabric)
    answer = await fabric.call("POST", "triggers/t", {"x": 1})
    record = await fabric.ended(answer.body["activationId"])
    assert record["response"] == {"result": {"x": 1}, "success": True, "status": "success"}
    assert (record["name"], record["namespace"], record["version"]) == ("t", "guest", "0.0.1")
    assert record["annotations"] == []
    assert not {"end", "duration"} & record.keys()
    (listed,) = (await fabric.call("GET", "activations?name=t")).body
    assert not {"end", "duration", "statusCode", "response", "logs"} & listed.keys()


async def test_a_rule_is_switched_off_and_on(fabric):
    """With no active rule a trigger answers 204 and leaves no activation; inactive ones are told of."""
    await fabric.put("a")
    await fabric.call("PUT", "triggers/t", {})
    await rule(fabric)
    await rule(fabric, "other")
    assert (await fabric.call("POST", "rules/r", {"status": "inactive"})).body == "OK"
    assert (await fabric.call("GET", "rules/r")).body["status"] == "inactive"
    told = {line["rule"]: line for line in await fired(fabric)}
    assert told["guest/other"]["success"] is True
    assert told["guest/r"] == {
        "rule": "guest/r",
        "action": "guest/a",
        "statusCode": 1,
        "success": False,
        "error": "Rule 'guest/r' is inactive, action 'guest/a' was not activated.",
    }
    await fabric.call("POST", "rules/other", {"status": "inactive"})
    before = (await fabric.call("GET", "activations?count=true")).body
    assert (await fabric.call("POST", "triggers/t", {})).status == 204
    assert (await fabric.call("GET", "activations?count=true")).body == before
    await fabric.call("POST", "rules/r", {"status": "active"})
    assert len(await fired(fabric)) == 2


async def test_a_rule_is_updated_and_keeps_its_status(fabric):
    """Version and status as with other entities; its trigger tells of it under its name."""
    await fabric.put("a")
    await fabric.put("b")
    for name in ("t", "u"):
        await fabric.call("PUT", f"triggers/{name}", {})
    await rule(fabric)
    await fabric.call("POST", "rules/r", {"status": "inactive"})
    updated = await rule(fabric, trigger="u", action="b", overwrite="true")
    assert updated.body["version"] == "0.0.2"
    assert updated.body["status"] == "inactive"
    assert "rules" not in (await fabric.call("GET", "triggers/t")).body
    assert (await fabric.call("GET", "triggers/u")).body["rules"] == {
        "guest/r": {"action": {"name": "b", "path": "guest"}, "status": "inactive"}
    }
    (listed,) = (await fabric.call("GET", "rules")).body
    assert "status" not in listed
    assert listed["action"] == {"name": "b", "path": "guest"}
    assert (await fabric.call("DELETE", "rules/r")).body["status"] == "inactive"
    assert (await fabric.call("GET", "rules/r")).status == 404


async def test_rules_survive_their_trigger_and_their_action(fabric):
    """Without its trigger a rule is inactive for good; without its action it tells so when it fires."""
    await fabric.put("a")
    await fabric.call("PUT", "triggers/t", {})
    await rule(fabric)
    await fabric.call("DELETE", "actions/a")
    (line,) = await fired(fabric)
    assert (line["statusCode"], line["success"]) == (1, False)
    assert line["error"] == "The requested resource does not exist."
    assert (await fabric.call("DELETE", "triggers/t")).body["name"] == "t"
    assert (await fabric.call("GET", "rules/r")).body["status"] == "inactive"
    refused = await fabric.call("POST", "rules/r", {"status": "active"})
    assert (refused.status, refused.body["error"]) == (
        404,
        "Only rules with existing triggers can be activated",
    )
    assert (await fabric.call("POST", "rules/r", {"status": "inactive"})).status == 200
    await fabric.call("PUT", "triggers/t", {})
    assert (await fabric.call("POST", "triggers/t", {})).status == 204


async def test_an_update_of_a_trigger_keeps_its_rules(fabric):
    """What it does not mention stays."""
    await fabric.put("a")
    await fabric.call("PUT", "triggers/t", {"parameters": [{"key": "p", "value": 1}]})
    await rule(fabric)
    updated = await fabric.call("PUT", "triggers/t?overwrite=true", {"publish": True})
    assert (updated.body["version"], updated.body["publish"]) == ("0.0.2", True)
    assert updated.body["parameters"] == [{"key": "p", "value": 1}]
    assert list(updated.body["rules"]) == ["guest/r"]


async def test_a_rule_may_invoke_what_its_namespace_may(fabric):
    """A shared package's action runs in the namespace of who fired the trigger."""
    other = fabric.credentials.openwhisk["other"]
    await fabric.call("PUT", "packages/p", {"publish": True}, auth=other)
    await fabric.call("PUT", "actions/p/f", {"exec": {"kind": "python:3", "code": HELLO}}, auth=other)
    await fabric.call("PUT", "triggers/t", {})
    body = {"trigger": "/_/t", "action": "/other/p/f"}
    assert (await fabric.call("PUT", "rules/r", body)).status == 200
    (line,) = await fired(fabric)
    assert (await fabric.ended(line["activationId"]))["namespace"] == "guest"


async def test_fires_and_the_invocations_they_cause_are_throttled(open_fabric):
    """Each by its own count; a refused invocation is told of in the trigger's log."""
    bounds = Bounds(fires_per_minute=2, invocations_per_minute=1)
    async with open_fabric(FrontSettings(bounds=bounds, clock=lambda: 0.0)) as fabric:
        await fabric.put("a")
        await fabric.call("PUT", "triggers/t", {})
        await rule(fabric)
        assert (await fired(fabric))[0]["success"]
        assert (await fired(fabric))[0][
            "error"
        ] == "Too many requests in the last minute (count: 2, allowed: 1)."
        refused = await fabric.call("POST", "triggers/t", {})
        assert refused.status == 429
        assert refused.body["error"] == "Too many requests in the last minute (count: 3, allowed: 2)."
