"""Who may invoke a function, and what stands in the answer's place: tokens, IAM, the platform's pages."""

from __future__ import annotations

import asyncio
import io
import time
from types import SimpleNamespace

import pytest
import requests
from google.api_core import exceptions as api_errors
from google.auth import crypt, jwt
from google.auth.transport.requests import Request
from google.oauth2 import id_token, service_account

from fedkeeper.fabric.tokens import GCLOUD_AUDIENCE, new_private_key
from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, PARENT, SOON, Caller


@pytest.fixture
async def deployed(fabric, caller):
    """A function, its URL, and tokens for it: signed by the fabric's key unless a test says otherwise."""
    made = await asyncio.to_thread(caller.create, "hello", zipped(main__py=ECHO))
    good = await asyncio.to_thread(id_token_of, caller.info, made.url)
    header, claims = jwt.decode_header(good), dict(jwt.decode(good, verify=False))

    def forge(key=None, kid=None, **changes):
        signer = crypt.RSASigner.from_string(key or fabric.credentials.signing_key, kid or header["kid"])
        return jwt.encode(signer, {**claims, **changes}).decode()

    return SimpleNamespace(url=made.url, name=made.name, good=good, forge=forge)


def id_token_of(info, audience):
    """An ID token from the local endpoint, by Google's own library."""
    credentials = service_account.IDTokenCredentials.from_service_account_info(info, target_audience=audience)
    credentials.refresh(Request())
    return credentials.token


FORGERIES = [
    ("audience", {"aud": "https://elsewhere"}),
    ("audience of another path", {"aud": "PATH"}),
    ("expired", {"exp": int(time.time()) - 60, "iat": int(time.time()) - 3660}),
    ("not yet", {"iat": int(time.time()) + 3600, "exp": int(time.time()) + 7200}),
    ("issuer", {"iss": "https://accounts.google.com"}),
    ("unknown account", {"email": "nobody@x.iam"}),
    ("signature", {"key": new_private_key()}),
    ("key id", {"kid": "0" * 40}),
]


@pytest.mark.parametrize(("what", "changes"), FORGERIES, ids=[what for what, _ in FORGERIES])
async def test_an_id_token_that_is_not_for_this_function_is_401(fabric, deployed, what, changes):
    """Signature, key, issuer, expiry, audience: each is verified; the function is not called."""
    if changes.get("aud") == "PATH":
        changes = {"aud": deployed.url + "/path"}
    bad = deployed.forge(**changes)
    for text in (bad, bad[:-3], "garbage"):
        async with fabric.http.post(deployed.url, headers={"Authorization": f"Bearer {text}"}) as answer:
            page = await answer.text()
        assert (answer.status, answer.content_type) == (401, "text/html")
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        assert "<h1>Error: Unauthorized</h1>" in page
        assert text not in page
    assert fabric.workers.requests == []


async def test_no_token_is_403_and_a_good_one_is_200(fabric, deployed):
    """Private by default; the token may also stand in X-Serverless-Authorization."""
    async with fabric.http.post(deployed.url) as answer:
        assert (answer.status, answer.content_type) == (403, "text/html")
        assert "does not have permission to get URL <code>/fn/demo/here/hello</code>" in await answer.text()
    for name in ("Authorization", "authorization", "X-Serverless-Authorization"):
        async with fabric.http.post(deployed.url, headers={name: f"Bearer {deployed.good}"}) as answer:
            assert answer.status == 200
    seen = fabric.workers.requests
    assert seen[0].headers["Authorization"].endswith(".SIGNATURE_REMOVED_BY_GOOGLE")
    assert deployed.good.rpartition(".")[2] not in str([one.headers for one in seen])


async def test_gcloud_calls_with_a_token_for_itself(fabric, deployed):
    """`gcloud functions call` has one for its own client ID, which every function takes; the rest holds."""
    ours = deployed.forge(aud=GCLOUD_AUDIENCE)
    for token, status in ((ours, 200), (deployed.forge(aud=GCLOUD_AUDIENCE, key=new_private_key()), 401)):
        async with fabric.http.post(deployed.url, headers={"Authorization": f"Bearer {token}"}) as answer:
            assert answer.status == status


async def test_the_fabrics_tokens_verify_with_googles_library(fabric, deployed):
    """id_token.verify_token with the fabric's certificates: what a function that verifies would do."""
    certificates = f"{fabric.url}/oauth2/v1/certs"

    def verify(token, audience):
        return id_token.verify_token(token, Request(), audience=audience, certs_url=certificates)

    claims = await asyncio.to_thread(verify, deployed.good, deployed.url)
    assert (claims["iss"], claims["email_verified"]) == (fabric.url, True)
    with pytest.raises(Exception, match="audience"):
        await asyncio.to_thread(verify, deployed.good, "https://elsewhere")
    with pytest.raises(Exception, match="key id"):
        await asyncio.to_thread(verify, deployed.forge(kid="0" * 40), deployed.url)


@pytest.mark.parametrize(
    ("members", "role", "nobody", "stranger"),
    [
        ([], "roles/run.invoker", 403, 403),
        (["allUsers"], "roles/run.invoker", 200, 200),
        (["allUsers"], "roles/cloudfunctions.invoker", 200, 200),
        (["allUsers"], "roles/cloudfunctions.viewer", 403, 403),
        (["allAuthenticatedUsers"], "roles/run.invoker", 403, 200),
        (["serviceAccount:STRANGER"], "roles/run.invoker", 403, 200),
        (["serviceAccount:other@x.iam.gserviceaccount.com"], "roles/run.invoker", 403, 403),
    ],
)
async def test_the_policy_says_who_else_may_invoke(fabric, caller, deployed, members, role, nobody, stranger):
    """The project's own account always may; a bad token is refused even where everybody may."""
    other = fabric.credentials.accounts["elsewhere"]
    members = [member.replace("STRANGER", other["client_email"]) for member in members]

    def invoke():
        policy = {"bindings": [{"role": role, "members": members}]}
        caller.client.set_iam_policy({"resource": deployed.name, "policy": policy}, timeout=10)
        assert requests.post(deployed.url, json={}, timeout=10).status_code == nobody
        theirs = {"Authorization": f"Bearer {id_token_of(other, deployed.url)}"}
        assert requests.post(deployed.url, json={}, headers=theirs, timeout=10).status_code == stranger
        bad = {"Authorization": "Bearer garbage"}
        assert requests.post(deployed.url, json={}, headers=bad, timeout=10).status_code == 401
        assert caller.invoke(deployed.url, {}).status_code == 200

    await asyncio.to_thread(invoke)


async def test_policies_are_kept_with_etags_and_go_with_their_function(fabric, caller, deployed):
    """get, set, test as the official client makes them; a stale etag is ABORTED."""

    def keep():
        resource = {"resource": deployed.name}
        empty = caller.client.get_iam_policy(resource, timeout=10)
        assert (list(empty.bindings), empty.etag) == ([], b"\x00\x20\x01")
        binding = {"role": "roles/run.invoker", "members": ["allUsers"]}
        first = caller.client.set_iam_policy({**resource, "policy": {"bindings": [binding]}}, timeout=10)
        assert caller.client.get_iam_policy(resource, timeout=10) == first
        stale = {"bindings": [], "etag": empty.etag}
        with pytest.raises(api_errors.Conflict, match="concurrent policy changes"):
            caller.client.set_iam_policy({**resource, "policy": stale}, timeout=10)
        fresh = {"bindings": [], "etag": first.etag}
        assert not caller.client.set_iam_policy({**resource, "policy": fresh}, timeout=10).bindings
        asked = ["cloudfunctions.functions.get", "run.routes.invoke", "storage.objects.get"]
        told = caller.client.test_iam_permissions({**resource, "permissions": asked}, timeout=10)
        assert list(told.permissions) == asked[:2]
        nowhere = {"resource": f"{PARENT}/functions/none", "permissions": asked}
        assert not caller.client.test_iam_permissions(nowhere, timeout=10).permissions
        caller.client.set_iam_policy({**resource, "policy": {"bindings": [binding]}}, timeout=10)
        caller.client.delete_function({"name": deployed.name}, timeout=10).result(timeout=20, retry=SOON)
        caller.create("hello", zipped(main__py=ECHO))
        assert not caller.client.get_iam_policy(resource, timeout=10).bindings

    await asyncio.to_thread(keep)


@pytest.mark.parametrize(
    "policy",
    [
        {"bindings": [{"role": "owner", "members": ["allUsers"]}]},
        {"bindings": [{"role": "roles/run.invoker", "members": ["everybody"]}]},
        {"bindings": [{"role": "roles/run.invoker", "members": ["user:nobody"]}]},
        {"bindings": [{"role": "roles/run.invoker", "condition": {"expression": "true"}}]},
        {"version": 2},
    ],
)
async def test_a_policy_that_means_nothing_is_refused(fabric, caller, deployed, policy):
    """INVALID_ARGUMENT; the policy stays."""

    def refuse():
        with pytest.raises(api_errors.BadRequest):
            caller.client.set_iam_policy({"resource": deployed.name, "policy": policy}, timeout=10)
        with pytest.raises(api_errors.BadRequest, match="wildcards"):
            caller.client.test_iam_permissions(
                {"resource": deployed.name, "permissions": ["cloudfunctions.*"]}, timeout=10
            )

    await asyncio.to_thread(refuse)


async def test_pages_of_the_front_end(fabric, caller, deployed):
    """404 without a function, 413 above 32 MiB, 429 when nobody has room: not the function's own answers."""
    large = io.BytesIO(bytes((32 << 20) + 1))
    good = {"Authorization": f"Bearer {deployed.good}"}
    async with fabric.http.get(f"{fabric.url}/fn/demo/here/none", headers=good) as answer:
        assert (answer.status, "<h1>Error: Page not found</h1>" in await answer.text()) == (404, True)
    async with fabric.http.post(deployed.url, data=large, headers=good) as answer:
        assert (answer.status, "too large" in await answer.text()) == (413, True)
    fabric.workers.full = True
    async with fabric.http.post(deployed.url, headers=good) as answer:
        assert (answer.status, await answer.text()) == (429, "Rate exceeded.")
    stranger = Caller(fabric, "elsewhere")
    assert (await asyncio.to_thread(stranger.invoke, deployed.url, {})).status_code == 403
    stranger.close()
