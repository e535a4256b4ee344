"""Cloud Functions' answers, row by row: canned ones. What the fabric gives of them is in test_google_fabric.

Each row is one answer to one request, the error that it becomes, and whether the act has happened. Sources:
google/rpc/code.proto (which code has which HTTP status), google/longrunning/operations.proto, the XML of
Cloud Storage, and what Cloud Run answers at a function's URL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    DeploymentFailed,
    FunctionMissing,
    Happened,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.fabric.google_rpc import CODES
from fedkeeper.providers.google.provider import Google
from tests.providers.canned import Canned
from tests.providers.canned_google import act, ending, operation, refused

NO, UNKNOWN = Happened.NO, Happened.UNKNOWN
HTML = b"<html><head><title>Error</title></head><body><h1>Error: Server Error</h1></body></html>"


@dataclass(frozen=True, kw_only=True)
class Row:
    """An answer of the platform to the request of `act` that has this method and end of its path."""

    act: str
    method: str
    end: str
    status: int
    body: Any
    kind: type[ProviderError]
    happened: Happened
    says: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.act}-{self.method}-{self.status}-{self.kind.__name__}-{self.says[:30]}"


def row(
    request: tuple[str, str, str],
    status: int,
    body: Any,
    kind: type[ProviderError],
    happened: Happened,
    says: str,
    **headers: str,
) -> Row:
    """One of the table; a word as body is a google.rpc.Status of that name; _ in header names is -."""
    what, method, end = request
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    plain = refused(status, body, f"words of {body}") if isinstance(body, str) else body
    return Row(
        act=what, method=method, end=end, status=status, body=plain, kind=kind, happened=happened,
        says=says, headers=named,
    )  # fmt: skip


def stored(code: str) -> bytes:
    """Cloud Storage's error, which quotes what was signed."""
    text = f"<Error><Code>{code}</Code><StringToSign>/s/ecret</StringToSign></Error>"
    return f"<?xml version='1.0' encoding='UTF-8'?>{text}".encode()


LIST = ("list", "GET", "/functions")
CHECK = ("check", "GET", "/functions")
FIND = ("deploy", "GET", "/functions/client-3")
PLACE = ("deploy", "POST", ":generateUploadUrl")
UPLOAD = ("deploy", "PUT", "ecret")
UPDATE = ("deploy", "PATCH", "/functions/client-3")
CREATE = ("create", "POST", "/functions")
REMOVE = ("remove", "DELETE", "/functions/client-3")
SITE = ("invoke", "GET", "/functions/client-3")
TOKEN = ("invoke", "POST", "/token")

TABLE = [
    # reads can always be asked again: nothing happens by them
    row(LIST, 400, "INVALID_ARGUMENT", RequestRefused, NO, "HTTP 400: words of INVALID_ARGUMENT"),
    row(LIST, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "PERMISSION_DENIED"),
    row(LIST, 404, "NOT_FOUND", RequestRefused, NO, "gcf: HTTP 404"),  # the project or region
    row(LIST, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(LIST, 499, "CANCELLED", ProviderUnavailable, NO, "CANCELLED"),
    row(LIST, 500, "INTERNAL", ProviderUnavailable, NO, "INTERNAL"),
    row(LIST, 501, "UNIMPLEMENTED", RequestRefused, NO, "UNIMPLEMENTED"),
    row(LIST, 503, "UNAVAILABLE", ProviderUnavailable, NO, "UNAVAILABLE"),
    row(LIST, 504, "DEADLINE_EXCEEDED", ProviderUnavailable, NO, "DEADLINE_EXCEEDED"),
    row(LIST, 408, HTML, ProviderUnavailable, NO, "HTTP 408"),
    row(LIST, 502, HTML, ProviderUnavailable, NO, "HTTP 502"),
    row(LIST, 302, b"", RequestRefused, NO, "redirected", Location="http://127.0.0.1:1/"),
    row(LIST, 200, HTML, ProviderError, NO, "not the API's"),
    row(LIST, 200, [1], ProviderError, NO, "not the API's"),
    row(CHECK, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "PERMISSION_DENIED"),
    row(CHECK, 500, "UNKNOWN", ProviderUnavailable, NO, "UNKNOWN"),
    row(CHECK, 500, "DATA_LOSS", ProviderUnavailable, NO, "DATA_LOSS"),
    # a deployment: what is there, where to upload, the upload, the function
    row(FIND, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "client_3"),
    row(FIND, 503, "UNAVAILABLE", ProviderUnavailable, NO, "client_3"),
    row(PLACE, 404, "NOT_FOUND", RequestRefused, NO, "HTTP 404"),
    row(PLACE, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(UPLOAD, 400, stored("EntityTooLarge"), TooLarge, NO, "HTTP 400 EntityTooLarge"),
    row(UPLOAD, 400, stored("ExpiredToken"), RequestRefused, NO, "HTTP 400 ExpiredToken"),
    row(UPLOAD, 400, stored("RequestTimeout"), ProviderUnavailable, NO, "RequestTimeout"),
    row(UPLOAD, 403, stored("SignatureDoesNotMatch"), RequestRefused, NO, "SignatureDoesNotMatch"),
    row(UPLOAD, 408, b"", ProviderUnavailable, NO, "HTTP 408"),
    row(UPLOAD, 413, b"", TooLarge, NO, "HTTP 413"),
    row(UPLOAD, 429, stored("TooManyRequests"), Throttled, NO, "TooManyRequests", Retry_After="3"),
    row(UPLOAD, 503, stored("ServiceUnavailable"), ProviderUnavailable, NO, "ServiceUnavailable"),
    row(UPLOAD, 307, b"", RequestRefused, NO, "HTTP 307", Location="http://127.0.0.1:1/"),
    row(CREATE, 400, "FAILED_PRECONDITION", RequestRefused, NO, "FAILED_PRECONDITION"),
    row(CREATE, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "PERMISSION_DENIED"),
    row(CREATE, 404, "NOT_FOUND", RequestRefused, NO, "HTTP 404"),  # the region
    row(CREATE, 409, "ALREADY_EXISTS", Changing, NO, "ALREADY_EXISTS"),
    row(CREATE, 413, HTML, TooLarge, NO, "HTTP 413"),
    row(CREATE, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(CREATE, 503, "UNAVAILABLE", InvocationUnknown, UNKNOWN, "UNAVAILABLE"),
    row(CREATE, 200, HTML, InvocationUnknown, UNKNOWN, "not the API's"),
    row(UPDATE, 400, "INVALID_ARGUMENT", RequestRefused, NO, "INVALID_ARGUMENT"),
    row(UPDATE, 400, "OUT_OF_RANGE", RequestRefused, NO, "OUT_OF_RANGE"),
    row(UPDATE, 404, "NOT_FOUND", FunctionMissing, NO, "client_3"),
    row(UPDATE, 408, HTML, ProviderUnavailable, NO, "HTTP 408"),
    row(UPDATE, 409, "ABORTED", Changing, NO, "ABORTED"),  # another operation is at work on it
    row(UPDATE, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(UPDATE, 499, "CANCELLED", InvocationUnknown, UNKNOWN, "CANCELLED"),
    row(UPDATE, 500, "INTERNAL", InvocationUnknown, UNKNOWN, "INTERNAL"),
    row(UPDATE, 501, "UNIMPLEMENTED", RequestRefused, NO, "UNIMPLEMENTED"),
    row(UPDATE, 502, HTML, InvocationUnknown, UNKNOWN, "HTTP 502"),
    row(UPDATE, 504, "DEADLINE_EXCEEDED", InvocationUnknown, UNKNOWN, "DEADLINE_EXCEEDED"),
    row(UPDATE, 302, b"", RequestRefused, NO, "redirected", Location="http://127.0.0.1:1/"),
    # a removal; 404 is none: see test_remove_tells_whether_there_was_one
    row(REMOVE, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "PERMISSION_DENIED"),
    row(REMOVE, 409, "ABORTED", Changing, NO, "ABORTED"),
    row(REMOVE, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(REMOVE, 503, "UNAVAILABLE", InvocationUnknown, UNKNOWN, "UNAVAILABLE"),
    row(REMOVE, 200, HTML, InvocationUnknown, UNKNOWN, "not the API's"),
    # before a call: where the function is, and the token for it
    row(SITE, 403, "PERMISSION_DENIED", AuthenticationRefused, NO, "PERMISSION_DENIED"),
    row(SITE, 404, "NOT_FOUND", FunctionMissing, NO, "no such function"),
    row(SITE, 429, "RESOURCE_EXHAUSTED", Throttled, NO, "RESOURCE_EXHAUSTED"),
    row(SITE, 503, "UNAVAILABLE", ProviderUnavailable, NO, "UNAVAILABLE"),
    row(SITE, 200, {"name": "x", "state": "FAILED"}, FunctionMissing, NO, "its build failed"),
    row(TOKEN, 400, {"error": "invalid_grant"}, AuthenticationRefused, NO, "login refused"),
    row(TOKEN, 401, {"error": "invalid_client"}, AuthenticationRefused, NO, "login refused"),
    row(TOKEN, 200, HTML, AuthenticationRefused, NO, "login refused"),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_every_answer_is_one_typed_error(google_cloud: Google, cloud: Canned, case: Row) -> None:
    """Its class says what to do, its text what the platform said; it is sent once; no secret in it."""
    if case.act == "create":
        cloud.when("GET", "/functions/client-3", 404, refused(404, "NOT_FOUND"))
    cloud.rules.insert(0, (case.method, case.end, (case.status, case.body, case.headers)))
    with pytest.raises(ProviderError) as caught:
        await act(google_cloud, "deploy" if case.act == "create" else case.act)
    assert type(caught.value) is case.kind
    assert caught.value.happened is case.happened
    assert case.says in str(caught.value)
    sent = [seen for seen in cloud.seen if seen.method == case.method and seen.path.endswith(case.end)]
    assert len(sent) == 1
    assert "sig=" not in repr(caught.value)
    assert "ecret" not in repr(caught.value)
    assert "geheim" not in repr(caught.value)


@pytest.mark.parametrize(("what", "method", "end"), [CHECK, PLACE, UPDATE, REMOVE])
async def test_a_login_that_the_api_refuses_is_named(
    google_cloud: Google, cloud: Canned, what: str, method: str, end: str
) -> None:
    """Google's library asks again with renewed credentials, which a 401 allows: nothing was done."""
    cloud.when(method, end, 401, refused(401, "UNAUTHENTICATED", "no"))
    with pytest.raises(AuthenticationRefused, match="HTTP 401: no") as caught:
        await act(google_cloud, what)
    assert caught.value.happened is NO


def test_the_table_has_a_row_for_every_code() -> None:
    """Those that google/rpc/code.proto has; UNAUTHENTICATED has a test of its own."""
    errors = [case.body.get("error") for case in TABLE if isinstance(case.body, dict)]
    named = {error["status"] for error in errors if isinstance(error, dict)}
    assert named == set(CODES) - {"UNAUTHENTICATED"}


# Of an operation that was begun. A deployment whose build or service fails is one thing, whatever the code.
REMOVALS = {
    "INVALID_ARGUMENT": (RequestRefused, NO),
    "FAILED_PRECONDITION": (RequestRefused, NO),
    "PERMISSION_DENIED": (AuthenticationRefused, NO),
    "ABORTED": (Changing, NO),
    "RESOURCE_EXHAUSTED": (Throttled, NO),
    "CANCELLED": (InvocationUnknown, UNKNOWN),
    "UNKNOWN": (InvocationUnknown, UNKNOWN),
    "DEADLINE_EXCEEDED": (InvocationUnknown, UNKNOWN),
    "INTERNAL": (InvocationUnknown, UNKNOWN),
    "UNAVAILABLE": (InvocationUnknown, UNKNOWN),
}


@pytest.mark.parametrize("code", CODES)
async def test_a_deployment_that_was_begun_and_failed(google_cloud: Google, cloud: Canned, code: str) -> None:
    """DeploymentFailed with the platform's words: the package was taken and could not be made to run."""
    failed = operation(cloud.url, error={"code": CODES[code][0], "message": f"words of {code}"})
    cloud.when("PATCH", "/functions/client-3", 200, failed)
    with pytest.raises(DeploymentFailed, match=f"words of {code}") as caught:
        await act(google_cloud, "deploy")
    assert caught.value.happened is NO


@pytest.mark.parametrize("code", REMOVALS)
async def test_a_removal_that_was_begun_and_failed(google_cloud: Google, cloud: Canned, code: str) -> None:
    """As if the API had refused it with that code: what it broke off may be half done."""
    failed = operation(cloud.url, error={"code": CODES[code][0], "message": f"words of {code}"})
    cloud.when("DELETE", "/functions/client-3", 200, failed)
    kind, happened = REMOVALS[code]
    with pytest.raises(ProviderError, match=f"words of {code}") as caught:
        await act(google_cloud, "remove")
    assert type(caught.value) is kind
    assert caught.value.happened is happened


async def test_a_removal_that_finds_nothing_is_none(google_cloud: Google, cloud: Canned) -> None:
    """Somebody else was faster: it is gone, as after a 404."""
    gone = operation(cloud.url, error={"code": CODES["NOT_FOUND"][0], "message": "no such service"})
    cloud.when("DELETE", "/functions/client-3", 200, gone)
    assert await google_cloud.remove("client_3") is False


FORBIDDEN = (
    b"\n<html><head>\n<title>403 Forbidden</title>\n</head>\n<body><h1>Error: Forbidden</h1>"
    b"\n<h2>Your client may not get <code>/x</code>.</h2>\n<h2></h2>\n</body></html>\n"
)
CRASHED = {"X-Google-Status": "crash", "Content-Type": "text/html"}
# After sending there is no error to raise: what the function's URL answers is how the activation ended.
ENDS = [
    (302, b"", {}, "refused", ""),
    (400, b"Bad Request", {}, "refused", "Bad Request"),
    (401, b"<html>", {}, "unauthenticated", ""),
    (403, FORBIDDEN, {}, "permission denied", "Error: Forbidden Your client may not get /x ."),
    (403, b"", {}, "permission denied", ""),
    (404, b"", {}, "not found", ""),
    (408, b"", {}, "deadline exceeded", ""),  # 1st generation
    (413, b"Request Entity Too Large", {}, "payload too large", "Request Entity Too Large"),
    (429, b"Rate exceeded.", {}, "resource exhausted", "Rate exceeded."),
    (500, {"error": "boom"}, {}, "function error", "boom"),
    (500, b"<h1>Internal Server Error</h1>", CRASHED, "function error", "Internal Server Error"),
    (502, HTML, {}, "unavailable", "Error: Server Error"),
    (503, b"", {}, "unavailable", ""),
    (504, b"upstream request timeout", {}, "deadline exceeded", "upstream request timeout"),
    (507, b"", {}, "function error", ""),
]


@pytest.mark.parametrize(("status", "body", "headers", "word", "text"), ENDS)
async def test_what_a_call_came_to_is_told_by_ended(
    google_cloud: Google,
    cloud: Canned,
    status: int,
    body: Any,
    headers: dict[str, str],
    word: str,
    text: str,
) -> None:
    """After sending, a refusal is an activation that failed, with the reason; it is sent once."""
    cloud.rules.insert(0, ("POST", "/fn/client-3", (status, body, headers)))
    ended = await ending(google_cloud, await act(google_cloud, "invoke"))
    reason = f"HTTP {status} {word}" + (f": {text}" if text else "")
    assert (ended.ok, ended.status, ended.reason) == (False, word, reason)
    assert len([seen for seen in cloud.seen if seen.path == "/fn/client-3"]) == 1
