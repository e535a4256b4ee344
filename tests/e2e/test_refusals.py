"""What cannot work is said at once: the place, the problem, the way out, and a non-zero exit."""

import socket
from pathlib import Path

import pytest

from fedkeeper.weights.embedded import open_embedded_mongo
from tests.e2e.lab import Lab, kill, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_a_port_that_is_taken_is_named(lab: Lab, tmp_path: Path):
    """The error says which port and which key of the config."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        lab.write("ports", embedded={"data_dir": str(tmp_path / "own"), "fabric_port": port})
        done = lab.run("-s")
    assert done.returncode == 1
    assert str(port) in done.stdout
    assert "fabric_port" in done.stdout
    assert "Traceback" not in done.stdout


async def test_a_wrong_password_is_refused_and_not_shown(lab: Lab, shared: Path):
    """Nothing is deployed, and the password is not in the message."""
    mongo = await open_embedded_mongo(
        shared / "embedded" / "mongo", database="e2e", collection="w", linger_s=5
    )
    try:
        lab.write(
            "password",
            learning={
                "mongo_config": {
                    "embedded": False,
                    "url": mongo.address.hosts,
                    "username": mongo.address.username,
                    "password": "not-the-password",
                    "auth_source": mongo.address.auth_source,
                }
            },
        )
        done = lab.run("-s")
    finally:
        await mongo.close()
    assert done.returncode == 1
    assert "password" in done.stdout
    assert "not-the-password" not in done.stdout
    assert "Traceback" not in done.stdout


def test_another_config_does_not_take_over_an_unfinished_run(lab: Lab):
    """The error names the keys that changed and both ways out; --fresh abandons the old run."""
    lab.write("changing", learning={"stopping": {"rounds_max": 50}})
    command = lab.start()
    until(lambda: "round 1/50 started" in lab.said(), "round 1")
    kill(command)
    lab.write("changing", learning={"stopping": {"rounds_max": 1}})
    refused = lab.run("-s")
    assert refused.returncode == 2
    assert "rounds_max" in refused.stdout
    assert "--fresh" in refused.stdout
    fresh = lab.run("-s", "--fresh")
    assert fresh.returncode == 0, fresh.stdout
    assert len(lab.rows("changing-2", "rounds")) == 1


def test_deploy_describe_and_remove_a_test_function(lab: Lab):
    """deploy.py tries out the clusters with nodeinfo: -m describes it, -r removes it."""
    config = lab.write("nodes")
    text = config.read_text()
    config.write_text(text + "  test:\n    functions:\n      nodeinfo: {openwhisk: {}, google: {}}\n")
    first = lab.run("-a", "-s", "test", "-f", "nodeinfo", "-d", program="deploy.py")
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("created") >= 2
    again = lab.run("-o", "ow", "-s", "test", "-d", program="deploy.py")
    assert "unchanged" in again.stdout
    typo = lab.run("-o", "ow", "-s", "test", "-f", "nodeinof", "-d", program="deploy.py")
    assert typo.returncode == 2
    assert "nodeinfo" in typo.stdout
    invoked = lab.run("-a", "-s", "test", "-f", "nodeinfo", program="invoke")
    assert invoked.returncode == 0, invoked.stdout
    assert invoked.stdout.count('"hostname"') == 2
    described = lab.run("-a", "-s", "test", "-m", program="deploy.py")
    assert described.returncode == 0
    removed = lab.run("-a", "-s", "test", "-r", program="deploy.py")
    assert removed.returncode == 0
    assert removed.stdout.count("removed") >= 2
