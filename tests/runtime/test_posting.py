from __future__ import annotations

import base64
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

from fedkeeper.errors import TaskError
from fedkeeper.runtime import posting
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.runtime.posting import Client, post
from tests.runtime.web import Asked, Reply, serving

OPENWHISK = ClientAccess(platform="openwhisk", auth="uuid:the-key")
ACTION = "/api/v1/namespaces/guest/actions/client_0"
BYTES_MAX = 1 << 20


@pytest.fixture(scope="module")
def pem() -> bytes:
    """A private key of a service account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def account(pem: bytes, token_uri: str) -> ClientAccess:
    """Access with a service account whose tokens come from `token_uri`."""
    info = {
        "type": "service_account",
        "client_email": "keeper@project.iam",
        "private_key": pem.decode(),
        "private_key_id": "1",
        "token_uri": token_uri,
    }
    return ClientAccess(platform="google", service_account=info)


def token_for(asked: Asked, pem: bytes, *, valid_s: int) -> Reply:
    """What Google's token endpoint answers: an ID token for the audience that the signed request names."""
    from urllib.parse import parse_qs

    claims = jwt.decode(parse_qs(asked.body.decode())["assertion"][0], verify=False)
    signer = crypt.RSASigner.from_string(pem)
    now = int(time.time())
    payload = {"aud": claims["target_audience"], "iat": now, "exp": now + valid_s}
    token = jwt.encode(signer, payload).decode()
    return Reply(body=json.dumps({"id_token": token}).encode(), headers={"Content-Type": "application/json"})


def send(url: str, access: ClientAccess, body: bytes = b"body", *, seconds: float = 10.0) -> bytes:
    """Post with a deadline from now."""
    client = Client(name="here/client_0", url=url, access=access)
    return post(client, body, deadline=posting.time.monotonic() + seconds, answer_bytes_max=BYTES_MAX)


@pytest.mark.parametrize(("valid_s", "tokens"), [(3600, 1), (1, 2)])
def test_a_cloud_function_gets_bytes_and_an_id_token(pem: bytes, valid_s: int, tokens: int) -> None:
    """The token's audience is the function's URL; it is kept while it is valid, then another is fetched."""

    def answer(asked: Asked) -> Reply:
        return (
            token_for(asked, pem, valid_s=valid_s) if asked.path == "/token" else Reply(body=asked.body[::-1])
        )

    with serving(answer) as web:
        access = account(pem, f"{web.url}/token")
        for _ in range(2):
            assert send(f"{web.url}/client-0", access, b"ab\0") == b"\0ba"
        calls = [asked for asked in web.asked if asked.path == "/client-0"]
        assert len(calls) == 2
        assert len(web.asked) - len(calls) == tokens
        assert calls[0].headers["Content-Type"] == "application/octet-stream"
        token = calls[0].headers["Authorization"].removeprefix("Bearer ")
        assert jwt.decode(token, verify=False)["aud"] == f"{web.url}/client-0"


def test_no_token_no_post(pem: bytes) -> None:
    """A refusing token endpoint ends it, and the client is never asked."""
    refusal = Reply(400, b'{"error": "invalid_grant"}', {"Content-Type": "application/json"})
    with serving(lambda _: refusal) as web:
        with pytest.raises(TaskError, match="no ID token for it: RefreshError"):
            send(f"{web.url}/client-0", account(pem, f"{web.url}/token"))
        assert {asked.path for asked in web.asked} == {"/token"}


def test_a_broken_key_is_not_shown(pem: bytes) -> None:
    """The message names the client and the kind of fault, not the key."""
    access = ClientAccess(
        platform="google",
        service_account={"client_email": "k", "token_uri": "http://127.0.0.1:9/", "private_key": "SECRETKEY"},
    )
    with pytest.raises(TaskError, match="no ID token") as caught:
        send("http://127.0.0.1:9/", access)
    assert "SECRETKEY" not in str(caught.value)


def record(**response: Any) -> Reply:
    """An activation's record."""
    return Reply(body=json.dumps({"activationId": "a1", "response": response}).encode())


def blob(content: bytes) -> dict[str, str]:
    """A result with bytes in it."""
    return {"blob": base64.b64encode(content).decode()}


def test_an_action_gets_base64_and_basic_auth() -> None:
    """One blocking call for the bare result."""
    with serving(lambda _: Reply(body=json.dumps(blob(b"update")).encode())) as web:
        assert send(f"{web.url}{ACTION}", OPENWHISK, b"weights") == b"update"
        (asked,) = web.asked
    assert asked.path == f"{ACTION}?blocking=true&result=true"
    assert asked.headers["Authorization"] == "Basic " + base64.b64encode(b"uuid:the-key").decode()
    assert json.loads(asked.body) == blob(b"weights")


def test_an_action_that_outlasts_the_call_is_followed_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """202: its activation is polled, through the 404 of a record not yet written, and passing faults."""
    monkeypatch.setattr(posting, "_POLL_S", (0.01, 0.02))
    replies = iter([Reply(404), Reply(503), Reply(429), record(success=True, result=blob(b"late"))])

    def answer(asked: Asked) -> Reply:
        return Reply(202, b'{"activationId": "a1"}') if asked.method == "POST" else next(replies)

    with serving(answer) as web:
        assert send(f"{web.url}{ACTION}", OPENWHISK) == b"late"
        assert [asked.method for asked in web.asked] == ["POST", "GET", "GET", "GET", "GET"]
        assert web.asked[-1].path == "/api/v1/namespaces/guest/activations/a1"


def test_an_action_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline, naming the activation; the time is the test's own."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(posting, "time", clock)

    def answer(asked: Asked) -> Reply:
        return Reply(202, b'{"activationId": "a1"}') if asked.method == "POST" else Reply(404)

    with serving(answer) as web, pytest.raises(TaskError, match="activation a1 did not end in time"):
        send(f"{web.url}{ACTION}", OPENWHISK, seconds=30)


def test_a_body_that_openwhisk_would_refuse_is_not_sent() -> None:
    """1 MB, reckoned with base64: the hint names the way out."""
    with serving(lambda _: Reply()) as web:
        with pytest.raises(TaskError, match="OpenWhisk takes 1048576") as caught:
            send(f"{web.url}{ACTION}", OPENWHISK, b"x" * 800_000)
        assert not web.asked
    assert "route: direct" in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(502, b'{"error": "TaskError: no rows"}'), "HTTP 502: TaskError: no rows"),
        (Reply(401, b'{"error": "The supplied authentication is invalid"}'), "HTTP 401: The supplied"),
        (Reply(500, b"<html>crash</html>"), "HTTP 500: no reason given"),
        (Reply(307, b"", {"Location": "/elsewhere"}), "HTTP 307"),
        (Reply(200, b'{"loss": 1}'), "no `blob`"),
        (Reply(200, b'{"blob": "?"}'), "not base64"),
        (Reply(202, b"{}"), "without an activation ID"),
        (Reply(200, b"x" * 4 * BYTES_MAX), "its answer has more than"),
    ],
)
def test_every_other_answer_is_an_error_after_one_post(reply: Reply, problem: str) -> None:
    """No retry, no redirect; what the client said is passed on in a line."""
    with serving(lambda _: reply) as web:
        with pytest.raises(TaskError, match=problem):
            send(f"{web.url}{ACTION}", OPENWHISK)
        assert len(web.asked) == 1


def test_a_failed_activation_tells_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it was followed after a 202."""
    monkeypatch.setattr(posting, "_POLL_S", (0.01, 0.02))
    failed = record(success=False, result={"error": "TaskError: no rows"})

    def answer(asked: Asked) -> Reply:
        return Reply(202, b'{"activationId": "a1"}') if asked.method == "POST" else failed

    with serving(answer) as web, pytest.raises(TaskError, match="TaskError: no rows"):
        send(f"{web.url}{ACTION}", OPENWHISK)


def test_a_client_that_hangs_is_left_at_the_deadline() -> None:
    """And it is asked once at most."""
    release = threading.Event()

    def answer(_asked: Asked) -> Reply:
        release.wait(20)
        return Reply()

    with serving(answer) as web:
        try:
            with pytest.raises(TaskError, match="time"):
                send(f"{web.url}{ACTION}", OPENWHISK, seconds=0.3)
        finally:
            release.set()
        assert len(web.asked) <= 1


def test_nobody_there() -> None:
    """A closed port names the client and the kind of fault, not the URL's every part."""
    with serving(lambda _: Reply()) as web:
        url = f"{web.url}{ACTION}"
    with pytest.raises(TaskError, match="client here/client_0: ConnectionError"):
        send(url, OPENWHISK)


def test_a_platform_without_ways_of_its_own_gets_bytes_and_no_credentials() -> None:
    """As OpenFaaS's gateways take them; a gateway's refusal names the client."""
    with serving(lambda asked: Reply(body=asked.body[::-1])) as web:
        assert send(f"{web.url}/function/client-0", ClientAccess(platform="openfaas"), b"ab\0") == b"\0ba"
        (asked,) = web.asked
    assert asked.headers["Content-Type"] == "application/octet-stream"
    assert "Authorization" not in asked.headers
    with (
        serving(lambda _: Reply(503, b"No endpoints available for: client-0.")) as web,
        pytest.raises(TaskError, match="client here/client_0: HTTP 503"),
    ):
        send(f"{web.url}/function/client-0", ClientAccess(platform="openfaas"))
