"""The fabric as a process of its own, with real workers: started, joined, killed, started again."""

import asyncio
import base64
import json
import os
import signal
import socket
import stat
import time

import aiohttp
import psutil
import pytest
from google.api_core import exceptions as api_errors
from google.cloud import functions_v2
from structlog.testing import capture_logs

from fedkeeper.errors import PortTaken, ServiceError
from fedkeeper.fabric.credentials import read_credentials
from fedkeeper.fabric.launch import open_fabric
from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import Caller

GREET = "def main(args):\n    print('greeting')\n    return {'hello': args['name']}\n"
SLOW = """
import os, time
def main(args):
    open(args["file"], "w").write(str(os.getpid()))
    time.sleep(60)
"""
SLOW_FUNCTION = "import time\ndef hello(request):\n    time.sleep(60)\n"
CRASH = "import os\ndef hello(request):\n    os._exit(1)\n"
FUNCTION = "def hello(request):\n    print('called')\n    return {'got': request.get_json()}\n"


class Client:
    """One namespace of a running fabric."""

    def __init__(self, http, address, namespace):
        pair = address.openwhisk_auth[namespace].get_secret_value()
        self.headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        self.http, self.base = http, f"{address.url}/api/v1/namespaces/_"

    async def call(self, method, path, body=None):
        async with self.http.request(
            method, f"{self.base}/{path}", json=body, headers=self.headers
        ) as answer:
            return answer.status, await answer.json()

    async def put(self, name, code=GREET):
        body = {"exec": {"kind": "python:default", "code": code}}
        return await self.call("PUT", f"actions/{name}?overwrite=true", body)


@pytest.fixture
async def http():
    """A client session of the test."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def launch(tmp_path):
    """Opens the fabric of this test's folder; closes what was left open."""
    opened = []

    async def launch_(**more):
        names = {"namespaces": ["guest"], "projects": ["demo"], "linger_s": 5, **more}
        opened.append(await open_fabric(tmp_path / "fabric", **names))
        return opened[-1]

    yield launch_
    for fabric in opened:
        await fabric.close()


def pid_of(folder):
    """The process that announced itself."""
    return json.loads((folder / "fabric" / "fabric.json").read_text())["pid"]


async def gone(pid):
    """Wait, 20 s at most, until the process has ended."""
    limit = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


async def test_both_platforms_run_real_functions(launch, http):
    """Actions and Cloud Functions in real workers, with logs, time limits, crashes and failed builds."""
    fabric = await launch()
    client = Client(http, fabric.address, "guest")
    assert (await client.put("greet"))[0] == 200
    status, record = await client.call("POST", "actions/greet?blocking=true", {"name": "you"})
    assert (status, record["response"]["result"]) == (200, {"hello": "you"})
    _, logs = await client.call("GET", f"activations/{record['activationId']}/logs")
    assert [line.partition("stdout: ")[2] for line in logs["logs"]] == ["greeting"]

    class Google:
        url = fabric.address.url

        class credentials:
            accounts = fabric.address.service_accounts

    def deploy_and_call():
        caller = Caller(Google)
        made = caller.create("hello", zipped(main__py=FUNCTION))
        assert made.state == functions_v2.Function.State.ACTIVE
        assert caller.invoke(made.url, {"x": 1}).json() == {"got": {"x": 1}}
        slow = caller.create("slow", zipped(main__py=SLOW_FUNCTION), timeout_seconds=1)
        assert caller.invoke(slow.url, {}).status_code == 504
        crash = caller.create("crash", zipped(main__py=CRASH))
        assert caller.invoke(crash.url, {}).status_code == 500
        assert caller.invoke(made.url, {"x": 2}).json() == {"got": {"x": 2}}
        with pytest.raises(api_errors.InvalidArgument, match="no way"):
            caller.create("bad", zipped(main__py="raise ValueError('no way')"))
        caller.close()

    await asyncio.to_thread(deploy_and_call)


async def test_a_second_user_joins_with_new_names_and_the_last_one_ends_it(launch, http, tmp_path):
    """The same process serves both; a new namespace and project are usable at once."""
    first = await launch()
    second = await launch(namespaces=["guest", "more"], projects=["more"])
    assert first.started
    assert not second.started
    assert first.address.url == second.address.url
    assert (await Client(http, second.address, "more").put("a"))[0] == 200
    assert second.address.service_accounts["more"]["project_id"] == "more"
    assert first.address.openwhisk_auth["guest"] == second.address.openwhisk_auth["guest"]
    pid = pid_of(tmp_path)
    await first.close()
    assert second.alive()
    await second.close()
    await gone(pid)


async def test_a_second_user_is_told_which_settings_do_not_hold(launch, http):
    """What runs stays as it is: what it does otherwise is logged by name, and nothing where all is alike."""
    first = await launch(namespaces=["a"], images={"me/x:1": "python:default"}, memory_mb=1024)
    with capture_logs() as logged:
        await launch(namespaces=["a"], images={"me/x:1": "python:default"}, memory_mb=1024)
    assert not logged
    with capture_logs() as logged:
        second = await launch(namespaces=["b"], images={}, memory_mb=2048, invocations_per_minute=3)
    assert second.address.url == first.address.url
    [line] = logged
    assert line["log_level"] == "warning"
    assert line["settings"] == ["images", "invocations_per_minute", "memory_mb"]
    client = Client(http, second.address, "b")
    assert (await client.call("GET", "limits"))[1]["maxActionMemory"] == 1024


async def test_two_that_start_it_at_once_share_one(launch, http, tmp_path):
    """Each finds its own namespace, whoever's settings the process was started with."""
    one, two = await asyncio.gather(launch(namespaces=["one"]), launch(namespaces=["two"]))
    assert one.address.url == two.address.url
    assert one.started != two.started
    for fabric, namespace in ((one, "one"), (two, "two")):
        assert (await Client(http, fabric.address, namespace).put("a"))[0] == 200


async def test_a_restart_keeps_port_credentials_and_functions(launch, http, tmp_path):
    """URLs and keys stay valid, after an orderly end and after kill -9."""
    fabric = await launch()
    before = fabric.address
    await Client(http, before, "guest").put("greet")
    for end in ("close", "kill"):
        if end == "close":
            await fabric.close()
        else:
            pid = pid_of(tmp_path)
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
        fabric = await launch()
        assert fabric.address.url == before.url
        client = Client(http, fabric.address, "guest")
        status, result = await client.call("POST", "actions/greet?blocking=true&result=true", {"name": end})
        assert (status, result) == (200, {"hello": end})


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_what_ran_when_the_fabric_ended_has_a_record(launch, http, tmp_path, end):
    """Its keeper asks for it by ID and hears that it failed; its worker is dead."""
    fabric = await launch()
    client = Client(http, fabric.address, "guest")
    await client.put("slow", SLOW)
    file = tmp_path / "started"
    _, told = await client.call("POST", "actions/slow", {"file": str(file)})
    limit = time.monotonic() + 20
    while not file.exists() or not file.read_text():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)
    pid = pid_of(tmp_path)
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        await fabric.close()
    await gone(pid)
    await gone(int(file.read_text()))
    await launch()
    status, record = await client.call("GET", f"activations/{told['activationId']}")
    assert status == 200
    assert record["response"]["status"] == "whisk internal error"


async def test_a_taken_port_is_named_with_its_configuration_key(launch):
    """PortTaken, not a timeout; a port that was only remembered is given up silently."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port}") as taken:
            await launch(port=port)
        assert "fabric_port" in taken.value.hint


async def test_a_remembered_port_that_is_taken_is_given_up(launch, tmp_path):
    """Only a configured port is insisted on."""
    (tmp_path / "fabric").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (tmp_path / "fabric" / "port").write_text(str(port))
        fabric = await launch()
        assert not fabric.address.url.endswith(f":{port}")


async def test_a_name_that_no_url_can_carry_is_refused(launch):
    """Before anything is started."""
    with pytest.raises(ServiceError, match="My_Project"):
        await launch(projects=["My_Project"])
    with pytest.raises(ServiceError, match="a/b"):
        await launch(namespaces=["a/b"])


async def test_secrets_are_for_this_user_only_and_never_shown(launch, tmp_path):
    """Files 0600, nothing in reprs, in argv or in the log."""
    fabric = await launch()
    folder = tmp_path / "fabric"
    credentials = read_credentials(folder)
    secrets = [credentials.admin, credentials.signing_key, *credentials.openwhisk.values()]
    secrets += [account["private_key"] for account in credentials.accounts.values()]
    shown = [repr(fabric.address), repr(credentials), str(psutil.Process(pid_of(tmp_path)).cmdline())]
    shown.append((folder / "fabric.log").read_text())
    for text in shown:
        assert not [secret for secret in secrets if secret in text]
    for name in ("credentials.json", "settings.json", "fabric.sqlite", "fabric.json", "fabric.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


async def test_it_ends_by_itself_when_nobody_uses_it(launch, tmp_path):
    """A user that dies leaves it running for linger_s and no longer."""
    fabric = await launch(linger_s=0.2)
    pid = pid_of(tmp_path)
    os.close(fabric._running._lease)  # what the kernel does when a user is killed
    fabric._running._lease = None
    await gone(pid)
