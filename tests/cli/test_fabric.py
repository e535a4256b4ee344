"""`fedkeeper fabric` as a real process: started by hand, used by other programs, ended by a signal."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fedkeeper.fabric.launch import open_fabric

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
ACTION = "def main(args):\n    print('said')\n    return {'hello': args.get('name', 'nobody')}\n"


@pytest.fixture
def fabric(tmp_path):
    """Start `fedkeeper fabric` with some options, in an empty folder; ended for certain after the test."""
    started = []

    def start(*arguments):
        child = subprocess.Popen(
            [sys.executable, "-m", "fedkeeper", "fabric", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def told(child):
    """What it says when it is up, with --json."""
    line = child.stdout.readline()
    assert line, child.communicate(timeout=WAIT_S)
    return json.loads(line)


def ended(child, number=signal.SIGINT):
    """Stop it, and what it said on stderr meanwhile."""
    child.send_signal(number)
    _, err = child.communicate(timeout=WAIT_S)
    return child.returncode, err


def variables(path):
    """A file of NAME=value lines."""
    return dict(line.split("=", 1) for line in Path(path).read_text().splitlines())


class Wsk:
    """As wsk does: address and key from a properties file."""

    def __init__(self, properties):
        rows = variables(properties)
        self.base = f"{rows['APIHOST']}/api/v1/namespaces/{rows['NAMESPACE']}"
        self.key = rows["AUTH"]

    def __call__(self, method, path, body=None):
        request = urllib.request.Request(
            f"{self.base}/{path}", method=method, data=None if body is None else json.dumps(body).encode()
        )
        request.add_header("Authorization", "Basic " + base64.b64encode(self.key.encode()).decode())
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=WAIT_S) as answer:
            return json.loads(answer.read())


def put(wsk, name):
    """Deploy the action."""
    return wsk("PUT", f"actions/{name}?overwrite=true", {"exec": {"kind": "python:default", "code": ACTION}})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_functions_and_activations_survive_an_orderly_end(fabric, number):
    """Exit 0; the next start on the folder has the same port, key, namespace, function and activation."""
    child = fabric("--json", "--namespace", "lab", "--project", "demo")
    first = told(child)
    wsk = Wsk(first["openwhisk"]["lab"])
    put(wsk, "greet")
    record = wsk("POST", "actions/greet?blocking=true", {"name": "you"})
    assert record["response"]["result"] == {"hello": "you"}
    code, err = ended(child, number)
    assert code == 0
    assert "functions stay" in err
    assert "Traceback" not in err

    child = fabric("--json")  # other names are asked for; those of before are still there
    second = told(child)
    assert second["url"] == first["url"]
    assert set(second["openwhisk"]) == {"lab", "guest"}
    assert set(second["google"]) == {"demo", "fedkeeper"}
    again = Wsk(second["openwhisk"]["lab"])
    assert again.key == wsk.key
    assert again("GET", f"activations/{record['activationId']}")["response"]["result"] == {"hello": "you"}
    assert again("POST", "actions/greet?blocking=true&result=true", {}) == {"hello": "nobody"}


def test_credentials_are_files_that_are_named_and_never_shown(fabric, tmp_path):
    """Neither on stdout nor on stderr, and readable by their owner only."""
    child = fabric("--namespace", "lab", "--data-dir", "data")
    lines = [child.stdout.readline() for _ in range(7)]
    properties = tmp_path / "data" / "clients" / "lab.wskprops"
    account = tmp_path / "data" / "clients" / "fedkeeper.json"
    gateway = tmp_path / "data" / "clients" / "openfaas.env"
    assert str(gateway) in "".join(lines)
    assert str(properties) in "".join(lines)
    assert str(account) in "".join(lines)
    code, err = ended(child)
    assert code == 0
    said = "".join(lines) + err
    key = Wsk(properties).key
    secrets = [key, key.partition(":")[2], json.loads(account.read_text())["private_key"].splitlines()[1]]
    secrets.append(variables(gateway)["OPENFAAS_PASSWORD"])
    assert not [one for one in secrets if one in said]
    for path in (properties, account, gateway, tmp_path / "data" / "credentials.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (properties.parent, tmp_path / "data"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_port_that_is_taken_is_named_with_the_way_out(fabric):
    """Nothing is started, exit 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = fabric("--port", str(port))
        out, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 1
    assert not out
    assert f"127.0.0.1:{port}" in err
    assert "`--port`" in err
    assert "Traceback" not in err


def test_a_folder_in_use_is_named_with_whoever_uses_it(fabric):
    """Exit 1, and the first one goes on undisturbed."""
    first = fabric("--json")
    running = told(first)
    second = fabric("--port", "0")
    out, err = second.communicate(timeout=WAIT_S)
    assert second.returncode == 1
    assert not out
    assert running["url"] in err
    assert f"kill {first.pid}" in err
    assert "--data-dir" in err
    put(Wsk(running["openwhisk"]["guest"]), "greet")
    assert ended(first)[0] == 0


def test_a_folder_that_cannot_be_made_is_named(fabric, tmp_path):
    """A file is in the way: exit 1, no traceback."""
    (tmp_path / "file").write_text("")
    child = fabric("--data-dir", "file/folder")
    _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 1
    assert str(tmp_path / "file" / "folder") in err
    assert "Traceback" not in err


def test_a_name_that_cannot_be_used_is_refused(fabric, tmp_path):
    """Before the folder is touched."""
    child = fabric("--project", "No_Project")
    _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 1
    assert "No_Project" in err
    assert not (tmp_path / ".fedkeeper").exists()


def test_a_run_joins_it_and_does_not_end_it(fabric, tmp_path):
    """What an experiment opens and closes on the same folder leaves the one in the foreground alone."""
    child = fabric("--json")
    running = told(child)

    async def join():
        opened = await open_fabric(
            tmp_path / ".fedkeeper" / "fabric", namespaces=["ow_here"], projects=["fedkeeper"], linger_s=1
        )
        started, address = opened.started, opened.address
        await opened.close()
        return started, address

    started, address = asyncio.run(join())
    assert not started
    assert address.url == running["url"]
    put(Wsk(running["openwhisk"]["guest"]), "still-there")
    assert child.poll() is None
    assert ended(child)[0] == 0


def test_a_wrong_key_is_refused(fabric):
    """The files matter: without the key there is no way in."""
    child = fabric("--json")
    wsk = Wsk(told(child)["openwhisk"]["guest"])
    wsk.key = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:wrong"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        put(wsk, "greet")


def failure(wsk, method, path, body):
    """Status and words of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        wsk(method, path, body)
    with refused.value as answer:
        return answer.code, json.loads(answer.read())["error"]


def test_an_image_runs_here_where_a_kind_stands_in_for_it(fabric):
    """With `--image` its code runs; any other image is refused in the platform's own words."""
    child = fabric("--json", "--image", "me/python:1=python:default", "--image", "me/node=nodejs:default")
    wsk = Wsk(told(child)["openwhisk"]["guest"])
    for name, image in (("known", "me/python:1"), ("strange", "me/python:2")):
        wsk("PUT", f"actions/{name}", {"exec": {"kind": "blackbox", "image": image, "code": ACTION}})
    assert wsk("POST", "actions/known?blocking=true&result=true", {"name": "you"}) == {"hello": "you"}
    words = "Failed to pull container image 'me/python:2'."
    assert failure(wsk, "POST", "actions/strange?blocking=true&result=true", {}) == (502, words)


def test_invocations_of_a_minute_are_bounded_as_asked(fabric):
    """`--invocations-per-minute`: beyond it 429 with the platform's words; `limits` says how many."""
    child = fabric("--json", "--invocations-per-minute", "3")
    wsk = Wsk(told(child)["openwhisk"]["guest"])
    put(wsk, "greet")
    assert wsk("GET", "limits")["invocationsPerMinute"] == 3

    def invoke_often():
        for _ in range(60):  # the window is the clock's minute: a new one may begin in between
            wsk("POST", "actions/greet", {})

    with pytest.raises(urllib.error.HTTPError, match="429") as refused:
        invoke_often()
    with refused.value as answer:
        words = json.loads(answer.read())["error"]
    assert words == "Too many requests in the last minute (count: 4, allowed: 3)."


@pytest.mark.parametrize(
    ("pair", "code", "problem"),
    [
        ("me/python:1", 2, "IMAGE=KIND"),
        ("me/python:1=ruby:2.5", 1, "python:default"),
        ("Not An Image=python:3", 1, "registry/name:tag"),
    ],
)
def test_a_stand_in_that_cannot_be_is_refused(fabric, tmp_path, pair, code, problem):
    """Before the folder is touched, with what can be written instead."""
    child = fabric("--image", pair)
    _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == code
    assert problem in err
    assert "Traceback" not in err
    assert not (tmp_path / ".fedkeeper").exists()


def test_the_gateway_lets_in_whoever_has_its_file(fabric):
    """Address, user and password in one file that a shell or faas-cli's users can read; else 401."""
    login = variables(told(fabric("--json"))["openfaas"])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def functions(password):
        pair = f"{login['OPENFAAS_USERNAME']}:{password}".encode()
        request = urllib.request.Request(f"{login['OPENFAAS_URL']}/system/functions")
        request.add_header("Authorization", "Basic " + base64.b64encode(pair).decode())
        with opener.open(request, timeout=WAIT_S) as answer:
            return json.loads(answer.read())

    assert functions(login["OPENFAAS_PASSWORD"]) == []
    with pytest.raises(urllib.error.HTTPError, match="401"):
        functions("wrong")
