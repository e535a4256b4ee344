"""Certificates are verified, unless the config says otherwise, and that is logged."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from fedkeeper.errors import ProviderUnavailable
from fedkeeper.providers.openwhisk.provider import OpenWhisk


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    loopback = ipaddress.ip_address("127.0.0.1")
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(loopback)]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + signed.public_bytes(pem))
    return path


@pytest.fixture
async def url(certificate: Path) -> AsyncIterator[str]:
    """An OpenWhisk with no actions, over TLS."""

    async def empty(_: web.Request) -> web.Response:
        return web.json_response([])

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/_/actions", empty)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def open_to(url: str, **options: Any) -> Any:
    """A provider with the settings under test."""
    return OpenWhisk.open("ow", api_host=url, auth=SecretStr("u:k"), **options)


async def test_an_unknown_certificate_is_refused(url: str) -> None:
    """Nothing was sent; the hint says what is missing."""
    async with open_to(url) as whisk:
        with pytest.raises(ProviderUnavailable, match="certificate") as caught:
            await whisk.check()
    assert "ca_file" in caught.value.hint


async def test_the_clusters_own_authority_is_trusted(url: str, certificate: Path) -> None:
    """ca_file, as a private cluster needs it."""
    async with open_to(url, ca_file=certificate) as whisk:
        await whisk.check()


async def test_a_host_without_tls_is_logged() -> None:
    """Basic authentication over plain HTTP is readable on the way; on loopback there is no way."""
    with structlog.testing.capture_logs() as logs:
        async with open_to("http://ow.example"), open_to("http://127.0.0.1:1"):
            pass
    assert [line["host"] for line in logs] == ["ow.example"]


async def test_not_verifying_is_possible_and_logged(url: str) -> None:
    """At every start, with the cluster's name."""
    with structlog.testing.capture_logs() as logs:
        async with open_to(url, tls_verify=False) as whisk:
            await whisk.check()
    assert [(line["log_level"], line["cluster"]) for line in logs] == [("warning", "ow")]
