"""Cloud Functions' answers, as a canned platform gives them, and a provider before it."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import Any

import google.auth.jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.crypt import RSASigner
from pydantic import SecretStr

from fedkeeper.providers.base import Activation, Package
from fedkeeper.providers.google.provider import Google
from tests.providers.canned import Canned, Seen

PARENT = "projects/p/locations/l"
FUNCTION = f"{PARENT}/functions/client-3"
OPERATION = f"{PARENT}/operations/o1"


@cache
def private_key() -> str:
    """One RSA key for all tests."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def account(url: str) -> dict[str, str]:
    """A service account whose tokens come from the canned platform."""
    return {
        "type": "service_account",
        "client_email": "keeper@p.iam",
        "private_key": private_key(),
        "private_key_id": "k1",
        "token_uri": f"{url}/token",
    }


def open_to(url: str, **options: Any) -> Any:
    """A provider with short limits."""
    limits = {"connect_timeout_s": 2.0, "request_timeout_s": 5.0, "deploy_timeout_s": 10.0}
    given = {"project": "p", "region": "l", "service_account": account(url), "api_endpoint": url}
    return Google.open("gcf", **{**limits, **given, **options})


def function(url: str, **changes: Any) -> dict[str, Any]:
    """A Function as the API gives it."""
    whole = {
        "name": FUNCTION,
        "state": "ACTIVE",
        "environment": "GEN_2",
        "url": f"{url}/fn/client-3",
        "updateTime": "2026-11-22T00:00:00.5Z",
        "labels": {"fedkeeper-function": "client_3", "fedkeeper-digest": "abc"},
        "serviceConfig": {
            "availableMemory": "512Mi",
            "revision": "client-3-00002",
            "environmentVariables": {"STORE": "geheim"},
        },
        "buildConfig": {"runtime": "python312", "entryPoint": "main"},
    }
    return {**whole, **changes}


def operation(url: str, *, error: dict[str, Any] | None = None, done: bool = True) -> dict[str, Any]:
    """A long-running operation on the function."""
    plain: dict[str, Any] = {"name": OPERATION, "done": done}
    if not done:
        return plain
    if error:
        return {**plain, "error": error}
    kind = "type.googleapis.com/google.cloud.functions.v2.Function"
    return {**plain, "response": {"@type": kind, **function(url)}}


def refused(code: int, status: str, message: str = "because") -> dict[str, Any]:
    """The API's error body."""
    return {"error": {"code": code, "status": status, "message": message}}


def token_for(seen: Seen) -> tuple[int, Any, dict[str, str]]:
    """An ID token as Google's endpoint would give it, valid for an hour."""
    now = int(time.time())
    token = google.auth.jwt.encode(
        RSASigner.from_string(private_key()), {"iat": now, "exp": now + 3600, "aud": "x"}
    ).decode()
    return 200, {"id_token": token}, {}


def package(**changes: Any) -> Package:
    """A package with a secret."""
    values: dict[str, Any] = {
        "function": "client_3",
        "source": "fl_client",
        "archive": b"zip",
        "digest": "D" * 40,
        "environment": {"STORE": SecretStr("geheim")},
        "timeout_s": 1.5,
        "memory_mb": 512,
    }
    return Package(**{**values, **changes})


async def act(provider: Google, what: str) -> Any:
    """One call by name."""
    match what:
        case "invoke":
            return await provider.invoke("client_3", {"a": 1}, key="r1/c3/a0", timeout_s=5)
        case "deploy":
            return await provider.deploy(package())
        case "remove":
            return await provider.remove("client_3")
        case "list":
            return await provider.list()
        case _:
            return await provider.check()


async def ending(provider: Google, activation_id: str) -> Activation:
    """The activation, once it has ended."""
    async with asyncio.timeout(60):
        while True:
            ended = await provider.ended([activation_id], since_ms=0)
            if ended:
                return ended[activation_id]
            await asyncio.sleep(0.01)


def paths(cloud: Canned) -> list[tuple[str, str]]:
    """What was asked for, without the tokens."""
    return [(seen.method, seen.path) for seen in cloud.seen if seen.path != "/token"]
