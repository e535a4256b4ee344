"""TLS to a mongod that demands it: the configured CA is trusted, no other; plain text is refused."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import pymongo
import pytest

from fedkeeper.errors import StoreUnavailable
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.store import open_store
from fedkeeper.weights.binary import die_with_parent, find_mongod
from fedkeeper.weights.mongo import MongoUpdates
from tests.certificates import certificate, key_pem, pem


@pytest.fixture(scope="module")
def tls_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAddress]:
    """A mongod of its own that takes TLS only."""
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate("tests' CA")
    server = certificate("mongod", authority)
    (folder / "server.pem").write_text(pem(server) + key_pem(server))
    (folder / "ca.pem").write_text(pem(authority))
    (folder / "data").mkdir()
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    with (folder / "log").open("wb") as log:
        mongod = subprocess.Popen(
            [
                find_mongod(),
                *("--dbpath", folder / "data", "--port", str(port), "--bind_ip", "127.0.0.1"),
                *("--nounixsocket", "--replSet", "rs0", "--wiredTigerCacheSizeGB", "0.25"),
                *("--tlsMode", "requireTLS", "--tlsCertificateKeyFile", folder / "server.pem"),
                *("--tlsCAFile", folder / "ca.pem", "--tlsAllowConnectionsWithoutCertificates"),
            ],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - no thread of ours holds a lock here
        )
    try:
        with pymongo.MongoClient(
            "127.0.0.1", port, directConnection=True, tls=True, tlsCAFile=str(folder / "ca.pem")
        ) as client:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        yield StoreAddress(
            hosts=f"127.0.0.1:{port}",
            database="fed",
            collection="c",
            replica_set="rs0",
            tls=True,
            ca_pem=pem(authority),
        )
    finally:
        mongod.kill()
        mongod.wait()


async def test_the_configured_ca_is_trusted(tls_address):
    """Both faces work over TLS; the CA travels as text, as it does to the functions."""
    objects, updates = open_store(tls_address), MongoUpdates(tls_address)
    await updates.ping()
    objects.put("run/w0", {"w": np.ones(3)}, run="run", round_no=0)
    objects.get("run/w0")
    await updates.close()
    objects.close()


# In a process of its own: pymongo's monitors leave the sockets of failed handshakes to the garbage collector,
# which would find them, with a warning, in some later test.
_REFUSED = """
import asyncio, sys
import msgspec
from fedkeeper.errors import StoreRefused
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.store import open_store
from fedkeeper.weights.mongo import MongoUpdates
from tests.certificates import certificate, key_pem, pem

address = msgspec.json.decode(sys.stdin.buffer.read(), type=StoreAddress)
try:
    open_store(address).get("run/w0")
except StoreRefused as exc:
    print("functions refused:", exc.hint)

async def keeper():
    updates = MongoUpdates(address)
    try:
        await updates.ping()
    except StoreRefused as exc:
        print("keeper refused:", exc.hint)
    await updates.close()

asyncio.run(keeper())
"""


@pytest.mark.parametrize("other", ["", "another"])
def test_another_ca_is_refused_at_once(tls_address, other):
    """Neither the system's certificates nor somebody else's CA vouch for this server."""
    wrong = replace(tls_address, ca_pem=pem(certificate("another CA")) if other else "")
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED],
        input=msgspec.json.encode(wrong),
        capture_output=True,
        timeout=60,
        check=True,
    )
    refusals = done.stdout.decode().splitlines()
    assert [line.partition(":")[0] for line in refusals] == ["functions refused", "keeper refused"]
    assert all("CA" in line for line in refusals)


async def test_plain_text_is_not_taken(tls_address):
    """The server closes the connection, which looks like an outage: given up after the wait."""
    plain = replace(tls_address, tls=False, ca_pem="", wait_s=0.3)
    objects = open_store(plain)
    with pytest.raises(StoreUnavailable):
        objects.get("run/w0")
    objects.close()
