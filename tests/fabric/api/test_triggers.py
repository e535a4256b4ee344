"""HTTP triggers and the token endpoint: private functions, called with ID tokens."""

import asyncio
import json

import pytest
import requests
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, Caller


async def test_a_trigger_needs_an_id_token_for_its_own_url(fabric, caller):
    """No token 403, wrong audience or API token 401, another project's account 403."""

    def call():
        made = caller.create("f", zipped(main__py=ECHO))
        assert requests.post(made.url, json={}, timeout=10).status_code == 403
        wrong = caller.invoke(made.url, {}, audience=f"{made.url}x")
        assert wrong.status_code == 401
        assert 'error="invalid_token"' in wrong.headers["WWW-Authenticate"]
        other = Caller(fabric, "elsewhere")
        assert other.invoke(made.url, {}).status_code == 403
        other.close()
        below = caller.invoke(f"{made.url}/a/b?c=d", {}, audience=made.url)
        assert below.json()["path"] == "/a/b?c=d"

    await asyncio.to_thread(call)


async def test_the_function_sees_who_called_but_cannot_use_the_token(fabric, caller):
    """The signature is removed; the execution ID is the caller's, or made."""

    def call():
        made = caller.create("f", zipped(main__py=ECHO))
        caller.invoke(made.url, {}, **{"Function-Execution-Id": "run-r1-c0-a0"})
        caller.invoke(made.url, {})

    await asyncio.to_thread(call)
    first, second = (request.headers for request in fabric.workers.requests)
    assert first["Authorization"].endswith(".SIGNATURE_REMOVED_BY_GOOGLE")
    assert first["Function-Execution-Id"] == "run-r1-c0-a0"
    assert len(second["Function-Execution-Id"]) == 12


async def test_a_trigger_passes_on_status_and_says_429_when_full(fabric, caller):
    """500 of a crash, the function's own statuses, 413 over 32 MB, 429 when there is no room."""

    def call():
        code = "def hello(request):\n    return (int(request.body), 'x')\n"
        made = caller.create("f", zipped(main__py=code))
        assert caller.invoke(made.url, 418).status_code == 418
        assert caller.invoke(made.url, "crash").status_code == 500
        fabric.workers.full = True
        assert caller.invoke(made.url, 200).status_code == 429
        fabric.workers.full = False
        identity = service_account.IDTokenCredentials.from_service_account_info(
            caller.info, target_audience=made.url
        )
        with AuthorizedSession(identity) as session:
            assert session.post(made.url, data=b"0" * (32 * 2**20), timeout=30).status_code in {200, 500}
            refused = session.post(made.url, data=b"0" * (32 * 2**20 + 1), timeout=30)
            assert refused.status_code == 413
        assert caller.invoke(made.url, 200).status_code == 200

    await asyncio.to_thread(call)


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"grant_type=password",
        b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=x.y.z",
        b"a=1&" * 50,
        b"\xff",
        b"x" * 100_000,
    ],
)
async def test_the_token_endpoint_refuses_what_is_no_assertion(fabric, form):
    """400 with an OAuth error, never a token."""
    async with fabric.http.post(f"{fabric.url}/token", data=form) as answer:
        assert answer.status == 400
        assert set(await answer.json()) <= {"error", "error_description"}


async def test_health_tells_nothing_but_what_it_is(fabric):
    """No credentials, no facts beyond name, version, pid; administration needs its token."""
    told = await fabric.call("GET", "/health", auth=None)
    assert set(told.body) == {"name", "version", "pid"}
    assert (await fabric.call("GET", "/admin/stats", auth=None)).status == 401
    headers = {"Authorization": f"Bearer {fabric.credentials.admin}"}
    async with fabric.http.get(f"{fabric.url}/admin/stats", headers=headers) as answer:
        assert json.loads(await answer.text()) == {"workers": 0}
