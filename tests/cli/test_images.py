"""`deploy.py --images`: what images of functions are built from. No Docker is needed, and none is here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from fedkeeper.errors import ConfigError
from fedkeeper.providers.openfaas.images import write_contexts
from tests.wiring.doctoring import config

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0


@pytest.fixture
def deploy(tmp_path):
    """Run deploy.py with an experiment whose clients are partly behind a gateway elsewhere."""

    def change(tree):
        tree["providers"]["openfaas"] = {
            "far": {"gateway": "https://gateway.example.org:8080"},
            "here": {"embedded": True},
        }
        learning = tree["scenarios"]["federated_learning"]
        learning["clients_info"] |= {"clients_per_cluster": {"far": 4, "here": 3, "ow_here": 3}}
        for key in ("edge_clients_count", "ow_clients_count", "gcf_clients_count"):
            learning["clients_info"].pop(key, None)
        learning.setdefault("functions", {}).setdefault("fl_client", {})["openfaas"] = {
            "docker_image": "registry.example.org/lab/fl_client:7"
        }
        learning["mongo_config"] = {"url": "mongo.example.org:27017", "username": "u", "password": "geheim"}
        data = learning["training_test_data"]
        data |= dict.fromkeys(data, "https://example.org/mnist.npz")
        tree["scenarios"]["test"] = {"functions": {"nodeinfo": {"openfaas": {}, "openwhisk": {}}}}

    path = config(tmp_path, change)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "deploy.py"), "-c", str(path), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    return run


def test_a_context_for_each_image_and_one_stack(deploy, tmp_path):
    """What the gateway needs and no more; the commands that build and push it are told; nobody is asked."""
    done = deploy("-e", "far", "-s", "federated_learning", "-f", "fl_client", "--images", "images")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "images" / "openfaas"
    assert sorted(one.name for one in folder.iterdir()) == ["fl_client", "stack.yml"]
    stack = yaml.safe_load((folder / "stack.yml").read_text())
    assert stack["provider"] == {"name": "openfaas"}
    assert stack["functions"] == {
        "fl-client": {
            "lang": "dockerfile",
            "handler": "./fl_client",
            "image": "registry.example.org/lab/fl_client:7",
        }
    }
    context = folder / "fl_client"
    wanted = {"Dockerfile", "main.py", "handler.py", "requirements.txt", "fedkeeper"}
    assert wanted <= {one.name for one in context.iterdir()}
    dockerfile = (context / "Dockerfile").read_text()
    for line in dockerfile.splitlines():  # what is copied from the context is there
        if line.startswith("COPY") and "--from" not in line:
            assert (context / line.split()[-2]).exists(), line
    assert "of-watchdog" in dockerfile
    assert f"faas-cli build -f {Path('images/openfaas/stack.yml')}" in done.stdout


def test_a_second_writing_replaces_the_first(deploy, tmp_path):
    """What is gone from a function is gone from its context; other files of the folder stay."""
    arguments = ("-e", "far", "-s", "test", "-f", "nodeinfo", "--images", "images")
    assert deploy(*arguments).returncode == 0
    folder = tmp_path / "images" / "openfaas"
    (folder / "nodeinfo" / "gone.py").touch()
    (folder / "mine").touch()
    assert deploy(*arguments).returncode == 0
    assert not (folder / "nodeinfo" / "gone.py").exists()
    assert (folder / "mine").exists()


def test_what_needs_no_image_is_left_out(deploy, tmp_path):
    """Platforms that run packages, and gateways of this machine."""
    done = deploy("-o", "ow_here", "-e", "here", "-s", "test", "--images", "images")
    assert done.returncode == 0, done.stderr
    assert "none of these functions needs an image of yours" in done.stdout
    assert not (tmp_path / "images").exists()


def test_what_the_image_would_start_serves(deploy, tmp_path):
    """The Dockerfile's command, run in the context with another port, answers a request."""
    done = deploy("-e", "far", "-s", "test", "-f", "nodeinfo", "--images", "images")
    assert done.returncode == 0, done.stderr
    context = tmp_path / "images" / "openfaas" / "nodeinfo"
    environment = next(
        line for line in (context / "Dockerfile").read_text().splitlines() if line.startswith("ENV ")
    )
    command = environment.partition('fprocess="')[2].partition('"')[0].split()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [one.replace("--port=5000", f"--port={port}") for one in command]
    assert started != command
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name(started[0])), *started[1:], "--host=127.0.0.1"],
        cwd=context,
        env={"PATH": "/usr/bin:/bin"},
    )
    try:
        assert json.loads(answered(server, port))["hostname"] == socket.gethostname()
    finally:
        server.terminate()
        server.communicate(timeout=WAIT_S)


def answered(server, port):
    """The body of its first answer, waited for."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/", data=b"{}", timeout=WAIT_S) as answer:
                return answer.read()
        except urllib.error.URLError as exc:
            if not isinstance(exc.reason, ConnectionRefusedError):
                raise
            time.sleep(0.05)
    raise AssertionError(f"no answer; ended with {server.poll()}")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """A file is in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.*cannot be written"):
        write_contexts(tmp_path / "file", {"f": b""}, {"f": "lab/f:1"})
