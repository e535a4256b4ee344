"""kill -9 of the fabric as a run starts it, over workers that work: what is left, and what can be read."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp

from fedkeeper.fabric.cgroups import group_name
from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.launch import OpenFabric, open_fabric
from tests.fabric.workers.conftest import eventually, exists

BUSY = """
import json, os, socket, tempfile, time
def daemon(pipe):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(pipe, b"%d " % os.getpid())
            time.sleep(600)
        os._exit(0)
def main(args):
    if "to" not in args:
        return {"hello": args["name"]}
    server = socket.create_server(("127.0.0.1", 0))
    r, w = os.pipe()
    daemon(w)
    child = os.fork()
    if child == 0:
        time.sleep(600)
    file = os.path.join(tempfile.gettempdir(), "file")
    open(file, "wb").write(bytes(1 << 20))
    told = {"pids": [os.getpid(), child, int(os.read(r, 20))], "port": server.getsockname()[1], "file": file}
    open(args["to"] + ".new", "w").write(json.dumps(told))
    os.rename(args["to"] + ".new", args["to"])
    time.sleep(600)
"""
REASON = "The fabric was stopped while the action was running."


class Guest:
    """A client of its OpenWhisk."""

    def __init__(self, fabric: OpenFabric, http: aiohttp.ClientSession) -> None:
        pair = fabric.address.openwhisk_auth["guest"].get_secret_value()
        self._headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        self._base = f"{fabric.address.url}/api/v1/namespaces/_"
        self._http = http

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = f"{self._base}/{path}"
        async with self._http.request(method, url, json=body, headers=self._headers) as answer:
            return answer.status, await answer.json()


def groups_of(folder: Path) -> list[Path]:
    """The control groups of its pool; none where it may make none."""
    return list(Path("/sys/fs/cgroup").rglob(group_name(folder / "pool")))


def open_ports(ports: list[int]) -> list[int]:
    """Those that somebody listens on."""
    found = []
    for port in ports:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


async def test_nothing_is_left_and_every_activation_can_be_read(tmp_path: Path) -> None:
    """No worker, child, daemon, directory, control group or port; finished records as they were.

    What ran has ended as an internal error that says why, and the next fabric serves at the same address.
    """
    folder = tmp_path / "fabric"
    names: dict[str, Any] = {"namespaces": ["guest"], "projects": [], "linger_s": 30}
    fabric = await open_fabric(folder, **names)
    async with aiohttp.ClientSession() as http:
        guest = Guest(fabric, http)
        code = {"exec": {"kind": "python:default", "code": BUSY}, "limits": {"timeout": 600_000}}
        assert (await guest.call("PUT", "actions/busy", code))[0] == 200
        finished = [
            (await guest.call("POST", "actions/busy?blocking=true", {"name": str(n)}))[1] for n in range(5)
        ]
        running = []
        files = [tmp_path / f"told{n}" for n in range(3)]
        for file in files:
            status, told = await guest.call("POST", "actions/busy", {"to": str(file)})
            assert status == 202
            running.append(told["activationId"])
        await eventually(lambda: all(file.exists() for file in files), 60)
        busy = [json.loads(file.read_text()) for file in files]
        pid = json.loads((folder / "fabric.json").read_text())["pid"]
        everybody = processes.descendants([pid], processes.parents())
        strays = [one for told in busy for one in told["pids"]]
        assert set(strays) <= set(everybody)
        ports = [told["port"] for told in busy]
        assert open_ports(ports) == ports
        groups = groups_of(folder)

        os.kill(pid, signal.SIGKILL)

        await eventually(lambda: not any(map(exists, [pid, *everybody])))
        port = int(fabric.address.url.rpartition(":")[2])
        assert open_ports([port, *ports]) == []
        assert not any(map(os.path.exists, [told["file"] for told in busy]))
        assert list((folder / "pool" / "workers").iterdir()) == []
        assert not any(map(os.path.exists, groups))
        await fabric.close()

        fabric = await open_fabric(folder, **names)
        try:
            guest = Guest(fabric, http)
            for record in finished:
                assert await guest.call("GET", f"activations/{record['activationId']}") == (200, record)
            for activation_id in running:
                status, record = await guest.call("GET", f"activations/{activation_id}")
                assert (status, record["response"]["status"]) == (200, "whisk internal error")
                assert record["response"]["result"] == {"error": REASON}
            _, record = await guest.call("POST", "actions/busy?blocking=true", {"name": "again"})
            assert record["response"]["result"] == {"hello": "again"}
        finally:
            await fabric.close()
