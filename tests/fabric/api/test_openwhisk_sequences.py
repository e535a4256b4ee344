"""Sequences: one activation that is made of others."""

import pytest

from fedkeeper.fabric.front import FrontSettings
from fedkeeper.fabric.openwhisk_entities import Bounds

ADD = "def main(args):\n    return {'n': args.get('n', 0) + args.get('by', 1)}\n"
LIST = "def main(args):\n    return [args]\n"
FIRST = "def main(args):\n    return args[0] if isinstance(args, list) else {'not': 'a list'}\n"
FAILS = "def main(args):\n    return {'error': 'enough'}\n"
CRASHES = "def main(args):\n    return 'text'\n"


def notes(record):
    """Its annotations."""
    return {item["key"]: item["value"] for item in record["annotations"]}


async def chain(fabric, name, *components):
    """Deploy a sequence."""
    body = {"exec": {"kind": "sequence", "components": [f"/_/{component}" for component in components]}}
    made = await fabric.call("PUT", f"actions/{name}?overwrite=true", body)
    assert made.status == 200, made.body
    return made.body


async def records(fabric, ids):
    """The full records of these activations."""
    return [await fabric.ended(activation_id) for activation_id in ids]


async def test_each_component_gets_what_the_one_before_it_returned(fabric):
    """Its own parameters under it; the sequence's logs are the components' activations."""
    await fabric.put("one", ADD, limits={"memory": 128})
    await fabric.put("ten", ADD, parameters=[{"key": "by", "value": 10}], limits={"memory": 512})
    await chain(fabric, "s", "one", "ten", "one")
    answer = await fabric.call("POST", "actions/s?blocking=true", {"n": 5})
    record = answer.body
    assert record["response"]["result"] == {"n": 17}
    assert (record["response"]["success"], record["response"]["status"]) == (True, "success")
    assert notes(record)["kind"] == "sequence"
    assert notes(record)["topmost"] is True
    assert notes(record)["path"] == "guest/s"
    assert notes(record)["limits"]["memory"] == 512
    assert "causedBy" not in notes(record)
    assert "cause" not in record
    inner = await records(fabric, record["logs"])
    assert [item["name"] for item in inner] == ["one", "ten", "one"]
    assert {item["cause"] for item in inner} == {record["activationId"]}
    assert {notes(item)["causedBy"] for item in inner} == {"sequence"}
    assert record["duration"] == sum(item["duration"] for item in inner)
    assert (await fabric.call("GET", f"activations/{record['activationId']}")).body == record
    listed = (await fabric.call("GET", "activations?name=one")).body
    assert [item["cause"] for item in listed] == [record["activationId"]] * 2


async def test_a_sequence_of_sequences_tells_who_caused_what(fabric):
    """The inner one is not topmost; each names the activation right above it."""
    await fabric.put("a", ADD)
    await chain(fabric, "inner", "a", "a")
    await chain(fabric, "outer", "a", "inner")
    record = (await fabric.call("POST", "actions/outer?blocking=true", {})).body
    assert record["response"]["result"] == {"n": 3}
    atomic, inner = await records(fabric, record["logs"])
    assert (atomic["name"], inner["name"]) == ("a", "inner")
    assert notes(inner)["topmost"] is False
    assert notes(inner)["causedBy"] == "sequence"
    assert inner["cause"] == record["activationId"]
    assert {item["cause"] for item in await records(fabric, inner["logs"])} == {inner["activationId"]}


async def test_a_list_goes_from_one_component_to_the_next(fabric):
    """As it is, without the component's parameters."""
    await fabric.put("list", LIST)
    await fabric.put("first", FIRST, parameters=[{"key": "by", "value": 1}])
    await chain(fabric, "s", "list", "first")
    answer = await fabric.call("POST", "actions/s?blocking=true&result=true", {"n": 1})
    assert answer.body == {"n": 1}


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (FAILS, "application error", "enough"),
        (CRASHES, "action developer error", "The action did not return a dictionary or array."),
    ],
    ids=["error", "crash"],
)
async def test_an_error_ends_a_sequence(fabric, code, status, error):
    """What comes after is not run; the error is the sequence's, 502."""
    await fabric.put("a", ADD)
    await fabric.put("bad", code)
    await chain(fabric, "s", "a", "bad", "a")
    answer = await fabric.call("POST", "actions/s?blocking=true", {})
    assert answer.status == 502
    assert answer.body["response"]["status"] == status
    assert answer.body["response"]["result"] == {"error": error}
    assert [item["name"] for item in await records(fabric, answer.body["logs"])] == ["a", "bad"]


async def test_an_error_in_the_payload_ends_nothing(fabric):
    """Only what a component returned is looked at."""
    await fabric.put("a", ADD)
    await chain(fabric, "s", "a")
    answer = await fabric.call("POST", "actions/s?blocking=true&result=true", {"error": "mine", "n": 1})
    assert answer.body == {"n": 2}


async def test_a_component_that_is_gone_ends_a_sequence(fabric):
    """502 in the platform's words, after those before it have run."""
    await fabric.put("a", ADD)
    await fabric.put("b", ADD)
    await chain(fabric, "s", "a", "b")
    await fabric.call("DELETE", "actions/b")
    answer = await fabric.call("POST", "actions/s?blocking=true", {})
    assert answer.status == 502
    assert answer.body["response"]["status"] == "application error"
    assert answer.body["response"]["result"] == {"error": "Sequence component does not exist."}
    assert len(answer.body["logs"]) == 1


async def test_a_sequence_that_grew_afterwards_ends_at_the_limit(open_fabric):
    """Its inner sequence was replaced by a longer one."""
    async with open_fabric(FrontSettings(bounds=Bounds(sequence_length=3))) as fabric:
        await fabric.put("a", ADD)
        await chain(fabric, "inner", "a")
        await chain(fabric, "outer", "inner", "inner", "inner")
        await chain(fabric, "inner", "a", "a")
        answer = await fabric.call("POST", "actions/outer?blocking=true", {})
        assert answer.body["response"]["result"] == {"error": "Too many actions in the sequence."}
        assert len((await fabric.call("GET", "activations?name=a")).body) == 3


async def test_a_sequence_takes_one_place_in_flight(open_fabric):
    """Its components need none of their own, so a full platform finishes what it has accepted."""
    async with open_fabric(FrontSettings(in_flight_max=1)) as fabric:
        await fabric.put("a", ADD)
        await chain(fabric, "s", "a", "a")
        assert (await fabric.call("POST", "actions/s?blocking=true&result=true", {})).body == {"n": 2}


async def test_a_sequence_is_polled_for_and_survives_as_an_internal_error(open_fabric):
    """202 at once; a fabric that is stopped leaves a record of it and of its component."""
    async with open_fabric() as fabric:
        await fabric.put("a", ADD)
        await chain(fabric, "s", "a", "a")
        fabric.workers.gate.clear()
        answer = await fabric.call("POST", "actions/s", {})
        assert (answer.status, list(answer.body)) == (202, ["activationId"])
        assert answer.headers["x-openwhisk-activation-id"] == answer.body["activationId"]
        for _ in range(1000):
            if fabric.workers.contexts:
                break
            await fabric.call("GET", "activations")
    async with open_fabric() as fabric:
        record = await fabric.ended(answer.body["activationId"])
        assert record["response"]["status"] == "whisk internal error"
        assert notes(record)["kind"] == "sequence"
        listed = (await fabric.call("GET", "activations?name=a")).body
        assert [item["statusCode"] for item in listed] == [3]
