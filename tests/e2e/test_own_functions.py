"""Functions of one's own, deployed, invoked and removed as a user does."""

from __future__ import annotations

import socket

import pytest
import yaml

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import preload
from tests.e2e.lab import Lab

pytestmark = pytest.mark.e2e

WHERE = """
import os


def main(args):
    return {"asked": args, "image": os.environ["__OW_ACTION_NAME"]}
"""


def node_installed() -> bool:
    """Whether node actions can run here at all."""
    try:
        preload.find_node()
    except ServiceError:
        return False
    return True


def test_an_image_of_the_config_runs_here_or_is_refused(lab: Lab):
    """`embedded.images` lets a docker_image run; without it the platform's own words say why not."""
    lab.write("imaged")
    (lab.folder / "where.py").write_text(WHERE)
    settings = {"func_path": "where.py", "docker_image": "lab/tensorflow:2", "memory": 128}
    lab.config["scenarios"]["test"] = {"functions": {"where": {"openwhisk": settings}}}
    lab.config["embedded"] = {"data_dir": "own", "linger_s": 1}
    path = lab.folder / "config.yaml"
    path.write_text(yaml.safe_dump(lab.config))

    done = lab.run("-o", "ow", "-s", "test", "-d", program="deploy.py")
    assert done.returncode == 0, done.stdout
    refused = lab.run("-o", "ow", "-s", "test", "-f", "where", program="invoke")
    assert refused.returncode != 0
    assert "Failed to pull container image 'lab/tensorflow:2'." in refused.stdout

    lab.config["embedded"] |= {"images": {"lab/tensorflow:2": "python:default"}}
    path.write_text(yaml.safe_dump(lab.config))
    ran = lab.run("-o", "ow", "-s", "test", "-f", "where", program="invoke")
    assert ran.returncode == 0, ran.stdout
    assert "/ow/where" in ran.stdout


# What fl_faas_fabric's nodeinfo does, in its words: a promise of a payload, from a file and the module os.
NODEINFO = """
'use strict'
const os = require('os'), fs = require('fs');
function main(params) {
  return new Promise((resolve, reject) => fs.readFile('/proc/sys/kernel/hostname', 'utf8', (err, name) => err
    ? reject({payload: err})
    : resolve({payload: `Hostname: ${name}Arch: ${os.arch()}\\nCPU count: ${os.cpus().length}\\n`})));
}
exports.main = main;
"""


@pytest.mark.skipif(not node_installed(), reason="no Node.js: put `node` on PATH")
def test_the_ancestors_nodeinfo_runs(lab: Lab):
    """A file of fl_faas_fabric's shape and its JavaScript beside it: deployed, asked and removed."""
    lab.write("ancestral")
    handler = lab.folder / "functions" / "nodeinfo" / "openwhisk" / "handler.js"
    handler.parent.mkdir(parents=True)
    handler.write_text(NODEINFO)
    settings = {
        "func_path": "./functions/nodeinfo/openwhisk/handler.js",
        "memory": "256",
        "runtime": "nodejs:14",
        "docker": None,
        "timeout": "60000",
    }
    lab.config["scenarios"]["test"] = {"functions": {"nodeinfo": {"openwhisk": settings}}}
    (lab.folder / "config.yaml").write_text(yaml.safe_dump(lab.config))

    done = lab.run("-o", "ow", "-s", "test", "-f", "nodeinfo", "-d", program="deploy.py")
    assert done.returncode == 0, done.stdout
    asked = lab.run("-o", "ow", "-s", "test", "-f", "nodeinfo", program="invoke")
    assert asked.returncode == 0, asked.stdout
    assert f"Hostname: {socket.gethostname()}" in asked.stdout
    assert "CPU count: " in asked.stdout
    removed = lab.run("-o", "ow", "-s", "test", "-f", "nodeinfo", "-r", program="deploy.py")
    assert removed.returncode == 0, removed.stdout


def test_clients_in_an_image_learn_what_others_learn(lab: Lab, calm: str):
    """Where a kind stands in for the image of their cluster: the same config is tried out on one machine."""
    lab.write(
        "standing-in",
        embedded={"data_dir": str(lab.folder / "own"), "images": {"lab/tensorflow:2": "python:default"}},
        learning={
            "functions": {"fl_client": {"openwhisk": {"docker_image": "lab/tensorflow:2"}}},
            "stopping": {"rounds_max": 3},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert lab.weights_hash("standing-in-1") == calm
