"""Application Default Credentials that impersonate a service account, as gcloud writes them for people.

Google's library calls Google for them, by names that cannot be changed. So its requests go through a proxy of
ours, as HTTPS_PROXY says, to a server that has a certificate for those names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google.auth.jwt
import pytest
from aiohttp import web
from google.auth.crypt import RSASigner

from tests.providers.canned import Canned, Seen
from tests.providers.canned_google import private_key
from tests.providers.google_elsewhere import elsewhere
from tests.replication.raft.certificates import authority

ROBOT = "robot@p.iam.gserviceaccount.com"
IAM = f"/v1/projects/-/serviceAccounts/{ROBOT}"
HOSTS = ("oauth2.googleapis.com", "iamcredentials.googleapis.com")


@dataclass
class Internet:
    """A proxy behind which there is nothing but Google's token services, which answer what `canned` says."""

    canned: Canned
    environment: dict[str, str] = field(default_factory=dict)
    asked_for: set[str] = field(default_factory=set)  # host:port of every CONNECT


@pytest.fixture
async def internet(tmp_path: Path) -> AsyncIterator[Internet]:
    """For a process: proxy and certificates in its environment."""
    tls = authority().files(tmp_path, "google", sans=HOSTS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    internet = Internet(Canned())
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", internet.canned.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    behind = runner.addresses[0][1]

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b" ", 2)[:2]
        assert method == b"CONNECT"
        internet.asked_for.add(target.decode())
        there, back = await asyncio.open_connection("127.0.0.1", behind)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    internet.environment = {
        "HTTPS_PROXY": f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
        "REQUESTS_CA_BUNDLE": str(tls.ca_file),
    }
    yield internet
    proxy.close()
    await runner.cleanup()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All of one direction."""
    try:
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


def id_token(seen: Seen) -> tuple[int, Any, dict[str, str]]:
    """What IAM answers to generateIdToken."""
    now_s = int(time.time())
    claims = {"iat": now_s, "exp": now_s + 3600, "aud": seen.json["audience"], "email": ROBOT}
    token = google.auth.jwt.encode(RSASigner.from_string(private_key()), claims).decode()
    return 200, {"token": token}, {}


@pytest.fixture
def google_services(internet: Internet) -> Canned:
    """The token endpoint for the user's login, and IAM for the robot's tokens."""
    canned = internet.canned
    canned.reply(404, {"error": {"code": 404, "status": "NOT_FOUND"}})
    canned.when("POST", "/token", 200, {"access_token": "of-the-user", "expires_in": 3600})
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    access = {"accessToken": "of-the-robot", "expireTime": until}
    canned.when("POST", f"{IAM}:generateAccessToken", 200, access)
    canned.rules.insert(0, ("POST", f"{IAM}:generateIdToken", id_token))
    return canned


@pytest.fixture
def login(tmp_path: Path) -> str:
    """What `gcloud auth application-default login --impersonate-service-account=ROBOT` leaves."""
    path = tmp_path / "application_default_credentials.json"
    user = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    impersonation = f"https://iamcredentials.googleapis.com{IAM}:generateAccessToken"
    path.write_text(
        json.dumps(
            {
                "type": "impersonated_service_account",
                "delegates": [],
                "service_account_impersonation_url": impersonation,
                "source_credentials": user,
            }
        )
    )
    return str(path)


async def test_a_person_calls_functions_as_a_service_account(
    cloud: Canned, internet: Internet, google_services: Canned, login: str, tmp_path: Path
) -> None:
    """The API gets the robot's access token, the function its ID token; IAM is asked with the person's."""
    environment = {**internet.environment, "GOOGLE_APPLICATION_CREDENTIALS": login}
    assert await elsewhere(cloud.url, tmp_path, **environment) == "ok"
    api = {seen.headers["Authorization"] for seen in cloud.seen if seen.path.startswith("/v2/")}
    assert api == {"Bearer of-the-robot"}
    (called,) = [seen for seen in cloud.seen if seen.path == "/fn/client-3"]
    claims = google.auth.jwt.decode(called.headers["Authorization"].removeprefix("Bearer "), verify=False)
    assert (claims["aud"], claims["email"]) == (f"{cloud.url}/fn/client-3", ROBOT)
    (asked,) = [seen for seen in google_services.seen if seen.path.endswith(":generateIdToken")]
    assert asked.headers["Authorization"] == "Bearer of-the-user"
    assert asked.json["includeEmail"] is True
    assert internet.asked_for == {f"{host}:443" for host in HOSTS}


@pytest.mark.parametrize("refusing", ["generateAccessToken", "generateIdToken"])
async def test_a_person_who_may_not_is_refused(
    cloud: Canned, internet: Internet, google_services: Canned, login: str, tmp_path: Path, refusing: str
) -> None:
    """Without the role Service Account Token Creator: named as a refused login, and nothing is called."""
    denied = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "iam.serviceAccounts"}}
    google_services.when("POST", f"{IAM}:{refusing}", 403, denied)
    environment = {**internet.environment, "GOOGLE_APPLICATION_CREDENTIALS": login}
    said = await elsewhere(cloud.url, tmp_path, **environment)
    assert said.startswith("AuthenticationRefused gcf: ")
    assert "login refused" in said
    assert not [seen for seen in cloud.seen if seen.path == "/fn/client-3"]
