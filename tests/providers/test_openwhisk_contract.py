"""OpenWhisk's answers, row by row of the platform's contracts (apache/openwhisk @1fae641).

Each row is one answer to one request, the error that it becomes, and whether the act has happened.
"""

from __future__ import annotations

from typing import Any

import pytest

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    Conflict,
    FunctionMissing,
    Happened,
    InvocationFailed,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from tests.providers.canned import Canned, Row
from tests.providers.canned_openwhisk import KEY, error, package

ID = "a" * 32
NAMED = {"x-openwhisk-activation-id": ID}
NO, YES, UNKNOWN = Happened.NO, Happened.YES, Happened.UNKNOWN


def record(status: str, result: Any) -> dict[str, Any]:
    """The answer to a blocking call whose activation failed."""
    response = {"status": status, "success": False, "result": result}
    return {"activationId": ID, "logs": [], "response": response}


def row(
    act: str,
    status: int,
    body: Any,
    kind: type[ProviderError],
    happened: Happened,
    says: str,
    **headers: str,
) -> Row:
    """One of the table; header names have _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Row(act=act, status=status, body=body, kind=kind, happened=happened, says=says, headers=named)


PER_MINUTE = "Too many requests in the last minute (count: 61, allowed: 60)."
CONCURRENT = "Too many concurrent requests in flight (count: 31, allowed: 30)."
RESERVED = "Request defines parameters that are not allowed (e.g., reserved properties)."
INVALID = "The supplied authentication is invalid"
INTERNAL = "There was an internal server error."
DEVELOPER = "action developer error"
WAIT = "Timeout must be number of milliseconds up to 60000."
MEMORY = "memory size 513 MB exceeds allowed threshold of 512 MB"
NO_ACTION = "The requested resource does not exist."
EXHAUSTED = "The action exhausted its memory and was aborted."
OVERTIME = "The action exceeded its time limits of 100 milliseconds."
PULL = "Failed to pull container image 'x'."
KIND = "The specified runtime 'x' is not supported by this platform. Valid values are: 'python:3.11'."
TOO_LONG = "Name segement longer than allowed: 257 > 256."
ILLEGAL = "The name of the entity contains illegal characters."

TABLE = [
    # 1.4: an invocation
    row("invoke", 400, error(RESERVED), RequestRefused, NO, "reserved properties"),
    row(
        "invoke",
        400,
        error(WAIT),
        RequestRefused,
        NO,
        "60000",
    ),
    row("invoke", 401, error(INVALID), AuthenticationRefused, NO, "invalid"),
    row("invoke", 403, error("not authorized to access 'ns/x'."), AuthenticationRefused, NO, "ns/x"),
    row("invoke", 404, error(NO_ACTION), FunctionMissing, NO, "does not exist"),
    row("invoke", 405, error("HTTP method not allowed"), RequestRefused, NO, "405"),
    row("invoke", 409, error("Resource by this name exists"), Conflict, NO, "by this name"),
    row("invoke", 413, error("Request larger than allowed: 2 > 1 bytes."), TooLarge, NO, "larger"),
    row("invoke", 413, b"<html>too large</html>", TooLarge, NO, "too large"),
    row("invoke", 415, b"unsupported", RequestRefused, NO, "unsupported"),
    row("invoke", 429, error(PER_MINUTE), Throttled, NO, "last minute"),
    row("invoke", 429, error(CONCURRENT), Throttled, NO, "in flight"),
    row("invoke", 503, error("No invokers available."), ProviderUnavailable, NO, "No invokers"),
    row("invoke", 503, b"<html>gateway</html>", InvocationUnknown, UNKNOWN, "gateway"),
    row("invoke", 500, error(INTERNAL), InvocationUnknown, UNKNOWN, "internal"),
    row("invoke", 502, b"<html>bad gateway</html>", InvocationUnknown, UNKNOWN, "bad gateway"),
    row("invoke", 504, b"", InvocationUnknown, UNKNOWN, "504"),
    row("invoke", 302, b"", RequestRefused, NO, "redirected"),
    row("invoke", 202, b"not json", InvocationUnknown, UNKNOWN, "not JSON"),
    row("invoke", 202, {}, InvocationUnknown, UNKNOWN, "no activationId"),
    row("invoke", 200, [1], InvocationUnknown, UNKNOWN, "no activationId"),
    row(
        "invoke",
        502,
        record("application error", {"error": "boom"}),
        InvocationFailed,
        YES,
        "application error: boom",
        x_openwhisk_activation_id=ID,
    ),
    row(
        "invoke",
        502,
        record(DEVELOPER, {"error": EXHAUSTED}),
        InvocationFailed,
        YES,
        EXHAUSTED,
    ),
    row("invoke", 502, record(DEVELOPER, {"error": OVERTIME}), InvocationFailed, YES, OVERTIME),
    row("invoke", 502, {"error": PULL}, InvocationFailed, YES, PULL, x_openwhisk_activation_id=ID),
    # 1.2, 1.3, 1.6, 1.7: a deployment
    row("deploy", 400, error(KIND), RequestRefused, NO, "Valid values"),
    row(
        "deploy",
        400,
        error(MEMORY),
        RequestRefused,
        NO,
        "513",
    ),
    row("deploy", 400, error("duration 99 milliseconds below allowed threshold"), RequestRefused, NO, "99"),
    row("deploy", 400, error("Sequence component does not exist."), RequestRefused, NO, "component"),
    row("deploy", 400, error(TOO_LONG), RequestRefused, NO, "257 > 256"),
    row("deploy", 400, error(ILLEGAL), RequestRefused, NO, "illegal"),
    row("deploy", 401, error(INVALID), AuthenticationRefused, NO, "invalid"),
    row("deploy", 403, error("not authorized to access 'ns/x'."), AuthenticationRefused, NO, "ns/x"),
    row("deploy", 409, error("resource already exists"), Conflict, NO, "exists"),
    row("deploy", 413, error("exec larger than allowed: 2 > 1 bytes."), TooLarge, NO, "exec"),
    row("deploy", 413, error("parameters larger than allowed: 2 > 1 bytes."), TooLarge, NO, "parameters"),
    row("deploy", 500, error(INTERNAL), InvocationUnknown, UNKNOWN, "internal"),
    row("deploy", 200, b"<html>", InvocationUnknown, UNKNOWN, "not JSON"),
    # a removal
    row("remove", 401, error(INVALID), AuthenticationRefused, NO, "invalid"),
    row("remove", 409, error("Concurrent modification to resource detected."), Changing, NO, "Concurrent"),
    row("remove", 503, b"", InvocationUnknown, UNKNOWN, "503"),
    # reads can always be asked again: nothing happens by them
    row("list", 401, error(INVALID), AuthenticationRefused, NO, "invalid"),
    row("list", 404, error(NO_ACTION), RequestRefused, NO, "ow: HTTP 404"),
    row("list", 500, error(INTERNAL), ProviderUnavailable, NO, "internal"),
    row("list", 503, b"", ProviderUnavailable, NO, "503"),
    row("list", 200, {"not": "a list"}, ProviderError, NO, "list was expected"),
    row("list", 200, b"<html>", ProviderError, NO, "not JSON"),
    row("check", 401, {"error": "no", "code": 77}, AuthenticationRefused, NO, "no"),  # older: a number
    row("check", 403, error("no"), AuthenticationRefused, NO, "no"),
    row("record", 400, error("Activation id length is 3 but must be 32."), RequestRefused, NO, "must be 32"),
    row("record", 500, error(INTERNAL), ProviderUnavailable, NO, "internal"),
]


async def act(whisk: OpenWhisk, what: str) -> Any:
    """One read or write by name."""
    match what:
        case "invoke":
            return await whisk.invoke("f", {"a": 1}, key="k", timeout_s=1)
        case "deploy":
            return await whisk.deploy(package())
        case "remove":
            return await whisk.remove("f")
        case "list":
            return await whisk.list()
        case "record":
            return await whisk.activation(ID)
        case _:
            return await whisk.check()


@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_every_answer_is_one_typed_error(whisk: OpenWhisk, canned: Canned, case: Row) -> None:
    """Its class says what to do, its text what the platform said; nothing is sent twice; no key in it."""
    canned.reply(case.status, case.body, case.headers)
    with pytest.raises(ProviderError) as caught:
        await act(whisk, case.act)
    assert type(caught.value) is case.kind
    assert caught.value.happened is case.happened
    assert caught.value.definite is (case.happened is not UNKNOWN)
    assert case.says in str(caught.value)
    assert len(canned.seen) == 1
    assert KEY.split(":")[1] not in repr(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (202, {"activationId": ID}, {}),
        (202, {"activationId": ID}, NAMED),
        (202, b"", NAMED),
        (200, {"activationId": ID, "response": {"status": "success", "success": True, "result": {}}}, {}),
        (200, [1, 2], NAMED),  # a result that is a list comes bare
        (500, error(INTERNAL), NAMED),  # it may run all the same
        (503, error("busy"), NAMED),
        (504, b"<html>slow</html>", NAMED),
    ],
)
async def test_an_answer_that_names_an_activation_is_followed_and_not_sent_again(
    whisk: OpenWhisk, canned: Canned, status: int, body: Any, headers: dict[str, str]
) -> None:
    """The header is on every 200, 202 and 5xx; the record, or the deadline, tells what became of it."""
    canned.reply(status, body, headers)
    assert await whisk.invoke("f", {}, key="k", timeout_s=1) == ID
    assert len(canned.seen) == 1


async def test_a_young_activation_is_no_error(whisk: OpenWhisk, canned: Canned) -> None:
    """404 until the record is written, which may be never: neither asking way takes that for a failure."""
    canned.reply(404, error(NO_ACTION))
    assert await whisk.activation(ID) is None
    assert await whisk.ended([ID], since_ms=0) == {}


@pytest.mark.parametrize(
    ("text", "headers", "wait_s"),
    [
        (PER_MINUTE, {}, 40.5),  # the clock stands at :20
        (PER_MINUTE, {"Date": "Sun, 22 Nov 2026 00:00:50 GMT"}, 10.5),  # the platform's clock is what counts
        (CONCURRENT, {}, 1.0),
        (PER_MINUTE, {"Retry-After": "7"}, 7.0),  # a gateway in front
    ],
)
async def test_a_throttled_call_says_when_to_come_back(
    whisk: OpenWhisk, canned: Canned, text: str, headers: dict[str, str], wait_s: float
) -> None:
    """The per-minute window is the clock minute; room for one more in flight comes sooner."""
    # aiohttp's server always sends a Date of its own, so the first case hides it behind an unreadable one
    canned.reply(429, error(text), {"Date": "?", **headers})
    with pytest.raises(Throttled) as caught:
        await act(whisk, "invoke")
    assert caught.value.retry_after_s == wait_s
