"""Who FedKeeper is to Google: a service account, this machine's credentials, or nobody; tokens' ages."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google.auth.exceptions
import google.auth.jwt
import google.oauth2.credentials
import pytest
from google.auth.crypt import RSASigner

from fedkeeper.clock import FakeClock
from fedkeeper.errors import AuthenticationRefused
from fedkeeper.providers.google import resources
from fedkeeper.providers.google.login import IdTokens, Limits
from fedkeeper.providers.google.provider import Google
from tests.providers.canned import Canned, Seen
from tests.providers.canned_google import account, ending, open_to, private_key, refused
from tests.providers.google_elsewhere import elsewhere

NOW_MS = 1_800_000_000_000


def minting(clock: FakeClock, lifetime_s: int) -> Any:
    """A token endpoint whose ID tokens live so long, by that clock."""

    def answer(seen: Seen) -> tuple[int, Any, dict[str, str]]:
        del seen
        now_s = clock.now_ms() // 1000
        claims = {"iat": now_s, "exp": now_s + lifetime_s, "aud": "x"}
        return (
            200,
            {"id_token": google.auth.jwt.encode(RSASigner.from_string(private_key()), claims).decode()},
            {},
        )

    return answer


async def call(provider: Google, key: str) -> None:
    """Invoke and wait for the end."""
    await ending(provider, await provider.invoke("client_3", {}, key=key, timeout_s=5))


def asked(cloud: Canned) -> int:
    """How often a token was asked for."""
    return sum(seen.path == "/token" for seen in cloud.seen)


@pytest.mark.parametrize(
    ("lifetime_s", "good_s", "renewed_s"),
    [(3600, 3299, 3301), (60, 29, 31), (400, 199, 201)],
)
async def test_a_token_is_renewed_before_it_expires(
    cloud: Canned, lifetime_s: int, good_s: int, renewed_s: int
) -> None:
    """Five minutes before; one with a short life is used for half of it."""
    clock = FakeClock(NOW_MS)
    cloud.rules.insert(0, ("POST", "/token", minting(clock, lifetime_s)))
    async with open_to(cloud.url, clock=clock) as provider:
        await call(provider, "a")
        await clock.advance(good_s * 1000)
        await call(provider, "b")
        assert asked(cloud) == 1
        await clock.advance((renewed_s - good_s) * 1000)
        await call(provider, "c")
        assert asked(cloud) == 2
    sent = [seen.headers["Authorization"] for seen in cloud.seen if seen.path == "/fn/client-3"]
    assert sent[0] == sent[1] != sent[2]


async def test_a_token_that_cannot_be_renewed_is_used_while_it_is_good(cloud: Canned) -> None:
    """An endpoint that is away for a while stops nothing; one that is away for longer does."""
    clock = FakeClock(NOW_MS)
    cloud.rules.insert(0, ("POST", "/token", minting(clock, 3600)))
    async with open_to(cloud.url, clock=clock) as provider:
        await call(provider, "a")
        cloud.rules.insert(0, ("POST", "/token", None))  # the connection breaks
        await clock.advance(3_400_000)
        await call(provider, "b")
        await clock.advance(300_000)
        with pytest.raises(Exception, match="no login"):
            await call(provider, "c")


async def test_many_callers_ask_for_one_token(cloud: Canned) -> None:
    """Ten at once, for one function: one request."""
    async with open_to(cloud.url) as provider:
        await asyncio.gather(*(call(provider, str(number)) for number in range(10)))
    assert asked(cloud) == 1


async def test_an_emulator_may_ask_for_nothing(cloud: Canned) -> None:
    """No credentials are looked for, none are sent; a 401 is still a 401."""
    async with open_to(cloud.url, service_account=None, anonymous=True) as provider:
        await provider.check()
        await call(provider, "a")
        assert asked(cloud) == 0
        assert not any("Authorization" in seen.headers for seen in cloud.seen)
        cloud.when("GET", "/functions", 401, refused(401, "UNAUTHENTICATED"))
        with pytest.raises(AuthenticationRefused, match="HTTP 401") as caught:
            await provider.check()
        assert "auth.anonymous" in caught.value.hint


def metadata_server(seen: Seen) -> tuple[int, Any, dict[str, str]]:
    """What Compute Engine's metadata server answers, as far as Google's library asks it."""
    if seen.headers.get("Metadata-Flavor") != "Google":
        return 403, b"", {}
    flavour = {"Metadata-Flavor": "Google"}
    text = {**flavour, "Content-Type": "text/plain"}
    _, _, about = seen.path.partition("/computeMetadata/v1/")
    if about.endswith("/identity"):
        now_s = int(time.time())
        claims = {"iat": now_s, "exp": now_s + 3600, "aud": seen.query["audience"], "email": "robot@p.iam"}
        return 200, google.auth.jwt.encode(RSASigner.from_string(private_key()), claims), text
    if about.endswith("/token"):
        return 200, {"access_token": "of-the-machine", "expires_in": 3600, "token_type": "Bearer"}, flavour
    if about.startswith("instance/service-accounts/"):
        return 200, {"email": "robot@p.iam", "aliases": ["default"], "scopes": []}, flavour
    words = {"project/project-id": b"p", "universe/universe-domain": b"googleapis.com"}
    return 200, words.get(about, b""), text


@pytest.fixture
async def machine(canned_elsewhere: Canned) -> dict[str, str]:
    """The environment of a machine that has a metadata server."""
    canned_elsewhere.answers.append(metadata_server)
    host = canned_elsewhere.url.removeprefix("http://")
    return {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "NO_GCE_CHECK": "false"}


async def test_a_machine_of_googles_needs_no_key(
    cloud: Canned, machine: dict[str, str], canned_elsewhere: Canned, tmp_path: Path
) -> None:
    """Access tokens and ID tokens of the metadata server, each for its use."""
    assert await elsewhere(cloud.url, tmp_path, **machine) == "ok"
    assert asked(cloud) == 0
    api = [seen for seen in cloud.seen if seen.path.startswith("/v2/")]
    assert {seen.headers["Authorization"] for seen in api} == {"Bearer of-the-machine"}
    (called,) = [seen for seen in cloud.seen if seen.path == "/fn/client-3"]
    token = called.headers["Authorization"].removeprefix("Bearer ")
    assert google.auth.jwt.decode(token, verify=False)["aud"] == f"{cloud.url}/fn/client-3"
    identity = [seen for seen in canned_elsewhere.seen if seen.path.endswith("/identity")]
    assert [seen.query["format"] for seen in identity] == ["full"]


async def test_the_environment_may_name_a_key_file(cloud: Canned, tmp_path: Path) -> None:
    """GOOGLE_APPLICATION_CREDENTIALS: a service account's JSON, for the API and for ID tokens."""
    key = tmp_path / "key.json"
    key.write_text(json.dumps(account(cloud.url)))
    assert await elsewhere(cloud.url, tmp_path, GOOGLE_APPLICATION_CREDENTIALS=str(key)) == "ok"
    assert asked(cloud) == 1


async def test_gclouds_own_place_is_looked_at(cloud: Canned, tmp_path: Path) -> None:
    """The well-known file counts for ID tokens too, not for the API alone."""
    place = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(account(cloud.url)))
    assert await elsewhere(cloud.url, tmp_path) == "ok"


async def test_a_users_login_gives_no_id_tokens_and_is_told_so() -> None:
    """It may use the API; calling a function is refused with the way out, before anything is sent."""
    user = google.oauth2.credentials.Credentials("of-a-user")
    with ThreadPoolExecutor(1) as threads:
        tokens = IdTokens("gcf", user, threads, FakeClock(), limits=Limits(connect_s=1, answer_s=1))
        with pytest.raises(google.auth.exceptions.DefaultCredentialsError) as caught:
            await tokens.token("http://127.0.0.1:1/fn")
        tokens.close()
    refusal = resources.failure("gcf", "client_3", caught.value, wrote=False)
    assert isinstance(refusal, AuthenticationRefused)
    assert "impersonate-service-account" in refusal.hint
    assert "of-a-user" not in f"{refusal} {refusal.hint}"


async def test_no_credentials_at_all_is_refused_with_the_way_out(cloud: Canned, tmp_path: Path) -> None:
    """Named at once, before any request."""
    said = await elsewhere(cloud.url, tmp_path)
    assert "AuthenticationRefused" in said
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said
    assert cloud.seen == []
