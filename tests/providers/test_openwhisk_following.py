"""What OpenWhisk's activation records mean, and in how few requests they come."""

from __future__ import annotations

from typing import Any

import pytest

from fedkeeper.providers.openwhisk import provider as module
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from tests.providers.canned import Canned
from tests.providers.canned_openwhisk import error


def record(number: int, **changes: Any) -> dict[str, Any]:
    """An activation record as the platform writes it."""
    whole = {
        "namespace": "guest",
        "name": "client_3",
        "activationId": f"{number:032x}",
        "start": 1000 + number,
        "end": 1500 + number,
        "duration": 500,
        "logs": ["2026-11-21T21:28:00.463142Z    stdout: hi"],
        "annotations": [
            {"key": "path", "value": "guest/client_3"},
            {"key": "limits", "value": {"memory": 512, "timeout": 60000}},
            {"key": "initTime", "value": 80},
        ],
        "response": {"status": "success", "success": True, "result": {"n": number}},
    }
    return {**whole, **changes}


def summary(number: int) -> dict[str, Any]:
    """What the list says of it without docs=true."""
    return {"activationId": f"{number:032x}", "start": 1000 + number, "end": 1500 + number, "statusCode": 0}


async def test_a_record_becomes_an_activation(whisk: OpenWhisk, canned: Canned) -> None:
    """Times, memory, cold start and result; logs only where they were asked for."""
    canned.reply(200, record(1))
    whole = await whisk.activation(f"{1:032x}")
    assert whole is not None
    assert (whole.function, whole.ok, whole.result, whole.memory_mb) == ("client_3", True, {"n": 1}, 512)
    assert (whole.start_ms, whole.end_ms, whole.billed_ms, whole.cold) == (1001, 1501, 500, True)
    assert whole.logs == ("2026-11-21T21:28:00.463142Z    stdout: hi",)
    (ended,) = (await whisk.ended([f"{1:032x}"], since_ms=0)).values()
    assert ended.logs == ()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (
            {"status": "application error", "success": False, "result": {"error": "boom"}},
            "application error: boom",
        ),
        (
            {
                "status": "action developer error",
                "success": False,
                "result": {"error": "The action exceeded its time limits of 100 milliseconds."},
            },
            "action developer error: The action exceeded its time limits of 100 milliseconds.",
        ),
        ({"status": "whisk internal error", "success": False}, "whisk internal error"),
        (
            {"status": "application error", "success": False, "result": {"error": {"error": "in"}}},
            "application error: in",
        ),
    ],
)
async def test_a_failed_record_says_why(
    whisk: OpenWhisk, canned: Canned, response: dict[str, Any], reason: str
) -> None:
    """In the platform's or the function's own words."""
    canned.reply(200, record(1, response=response))
    ended = await whisk.ended([f"{1:032x}"], since_ms=0)
    (activation,) = ended.values()
    assert not activation.ok
    assert activation.reason == reason


async def test_a_list_as_result_is_wrapped(whisk: OpenWhisk, canned: Canned) -> None:
    """OpenWhisk lets actions return arrays."""
    canned.reply(200, record(1, response={"status": "success", "success": True, "result": [1, 2]}))
    (activation,) = (await whisk.ended([f"{1:032x}"], since_ms=0)).values()
    assert activation.result == {"value": [1, 2]}


async def test_a_record_that_is_not_written_yet_is_running(whisk: OpenWhisk, canned: Canned) -> None:
    """404 until then: absent, never failed."""
    canned.reply(404, error("The requested resource does not exist."))
    assert await whisk.ended(["a" * 32], since_ms=0) == {}
    assert await whisk.activation("a" * 32) is None


async def test_logs_kept_elsewhere_are_asked_for(whisk: OpenWhisk, canned: Canned) -> None:
    """Operators may keep logs out of the record; without any, the record is still told."""
    canned.reply(200, record(1, logs=[])).reply(200, {"logs": ["line"]})
    found = await whisk.activation(f"{1:032x}")
    assert found
    assert found.logs == ("line",)
    canned.answers.clear()
    canned.reply(200, record(1, logs=[])).reply(404, error("no"))
    found = await whisk.activation(f"{1:032x}")
    assert found
    assert found.logs == ()


async def test_many_running_cost_one_small_request(whisk: OpenWhisk, canned: Canned) -> None:
    """While none of them has ended only the summaries are fetched."""
    canned.reply(200, [summary(99)])
    assert await whisk.ended([f"{n:032x}" for n in range(50)], since_ms=1000) == {}
    (seen,) = canned.seen
    assert seen.query == {"since": "1000", "limit": "200", "skip": "0", "docs": "false"}


async def test_many_that_ended_come_in_one_page(whisk: OpenWhisk, canned: Canned) -> None:
    """Two requests for 50 activations; others in the same time are left out."""
    numbers = range(50)
    canned.reply(200, [summary(n) for n in (*numbers, 77)]).reply(200, [record(n) for n in (*numbers, 77)])
    ended = await whisk.ended([f"{n:032x}" for n in (*numbers, 60)], since_ms=1000)
    assert sorted(ended) == [f"{n:032x}" for n in numbers]
    assert len(canned.seen) == 2
    assert canned.seen[1].query["docs"] == "true"
    assert (canned.seen[1].query["since"], canned.seen[1].query["upto"]) == ("1000", "1049")


async def test_the_logs_of_many_come_with_their_records(whisk: OpenWhisk, canned: Canned) -> None:
    """Two requests for 50 activations, and one for each whose logs the operator keeps elsewhere."""
    numbers = range(50)
    rows = [record(n) for n in range(49)]
    canned.reply(200, [summary(n) for n in numbers]).reply(200, [*rows, record(49, logs=[])])
    canned.reply(200, {"logs": ["from elsewhere"]})
    found = await whisk.activations([f"{n:032x}" for n in numbers], since_ms=1000)
    assert sorted(found) == [f"{n:032x}" for n in numbers]
    assert found[f"{7:032x}"].logs == ("2026-11-21T21:28:00.463142Z    stdout: hi",)
    assert found[f"{49:032x}"].logs == ("from elsewhere",)
    assert len(canned.seen) == 3


async def test_pages_too_large_are_fetched_one_by_one(
    whisk: OpenWhisk, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much logging must not make the follow-up fail."""
    monkeypatch.setattr(module, "ENTITY_BYTES_MAX", 2000)
    canned.reply(200, [summary(n) for n in range(5)]).reply(200, [record(n) for n in range(5)])
    for number in range(5):
        canned.reply(200, record(number))
    canned.reply(500, error("never asked"))
    ended = await whisk.ended([f"{n:032x}" for n in range(6)], since_ms=0)
    assert len(canned.seen) == 7
    assert ended.keys() == {f"{n:032x}" for n in range(5)}
