"""Node actions: the rules and words of openwhisk-runtime-nodejs, served by the Node.js of this machine."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import archives, preload
from fedkeeper.fabric.model import Revision
from tests.fabric.workers.conftest import CONTEXT, Bench, exists


def node_installed() -> bool:
    """Whether node actions can run here at all."""
    try:
        preload.find_node()
    except ServiceError:
        return False
    return True


pytestmark = pytest.mark.skipif(not node_installed(), reason="no Node.js: put `node` on PATH")

# What the ancestor's nodeinfo does, with the module that comes with Node.js.
NODEINFO = """
const os = require('os');
function main(params) {
  console.log('asked by', params.name);
  return { hostname: os.hostname(), arch: os.arch(), cpus: os.cpus().length, platform: os.platform() };
}
"""


class NodeBench:
    """Makes node revisions as the fabric stores them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def revision(self, code: str | dict[str, str], entry: str = "main", **limits: int) -> Revision:
        """Of a single file, or of a zip's files."""
        python = self.bench.revision({}, entry=entry, **limits)
        folder = self.bench.root / f"{python.id}-node"
        if isinstance(code, str):
            archives.write_single_file(code, folder, "nodejs:20")
        else:
            packed = self.bench.root / f"{python.id}.zip"
            with zipfile.ZipFile(packed, "w") as bundle:
                for name, text in code.items():
                    bundle.writestr(name, text)
            archives.extract(packed.read_bytes(), folder)
        return Revision(
            id=python.id, flavour="openwhisk", name="/guest/f", folder=str(folder), entry=entry,
            limits=python.limits, kind="nodejs:20",
        )  # fmt: skip


@pytest.fixture
async def node(bench: Bench) -> NodeBench:
    """With an open pool."""
    await bench.open()
    return NodeBench(bench)


async def test_a_single_file_needs_no_export(node: NodeBench) -> None:
    """Cold, then warm in the same process; what it prints is its log; its context is in the environment."""
    action = node.revision(
        NODEINFO + "\nlet calls = 0; const inner = main;"
        "main = p => ({...inner(p), calls: ++calls, pid: process.pid, about: process.env.__OW_NAMESPACE});"
    )
    first = await node.bench.run(action, name="a")
    second = await node.bench.run(action, name="b")
    assert (first.status, second.status) == ("success", "success"), first
    assert first.result["hostname"] == os.uname().nodename
    assert [first.result["calls"], second.result["calls"]] == [1, 2]
    assert first.result["pid"] == second.result["pid"]
    assert first.result["about"] == CONTEXT["namespace"]
    assert (first.init_ms is None, second.init_ms is None) == (False, True)
    assert [line[31:] for line in second.logs] == ["stdout: asked by b"]


@pytest.mark.parametrize(
    ("files", "entry"),
    [
        ({"index.js": "exports.main = () => ({ok: require('./lib').value})"}, "main"),
        (
            {
                "package.json": json.dumps({"main": "app.js"}),
                "app.js": "exports.run = async () => ({ok: require('./lib').value})",
            },
            "run",
        ),
        (
            {"index.js": "", "deep/job.js": "exports.go = () => ({ok: require('../lib').value})"},
            "deep/job.go",
        ),
        (
            {
                "package.json": json.dumps({"type": "module", "main": "app.js"}),
                "app.js": "import { readFileSync } from 'fs'; export const main = () => ({ok: 7})",
            },
            "main",
        ),
    ],
)
async def test_a_zip_is_a_package(node: NodeBench, files: dict[str, str], entry: str) -> None:
    """index.js, package.json with another main or an ECMAScript module, and an entry point in a file."""
    ran = await node.bench.run(node.revision({**files, "lib.js": "exports.value = 7"}, entry))
    assert (ran.status, ran.result) == ("success", {"ok": 7}), ran


@pytest.mark.parametrize(
    ("code", "status", "result"),
    [
        ("const main = p => new Promise(r => setTimeout(() => r({late: p.n}), 5))", "success", {"late": 1}),
        ("exports.main = () => [1, 2]", "success", [1, 2]),
        ("function main() {}", "success", {}),
        ("function main() { return {error: 'no'} }", "application error", {"error": "no"}),
        ("function main() { return Promise.reject() }", "application error", {"error": {}}),
        ("function main() { return Promise.reject({code: 3}) }", "application error", {"error": {"code": 3}}),
        (
            "function main() { throw new Error('boom') }",
            "action developer error",
            {"error": "An error has occurred: Error: boom"},
        ),
        (
            "function main() { return 3 }",
            "action developer error",
            {"error": "The action did not return a dictionary or array."},
        ),
        ("function main() { process.exit(3) }", "action developer error", {"error": "command exited"}),
        (
            "const other = 1",
            "action developer error",
            {"error": "Initialization has failed due to: Action entrypoint 'main' is not a function."},
        ),
        (
            "exports.main = 3",
            "action developer error",
            {"error": "Initialization has failed due to: Action entrypoint 'main' is not a function."},
        ),
        ("function (", "action developer error", "SyntaxError"),
        (
            "function main() { return {big: 'x'.repeat(1 << 20)} }",
            "application error",
            "exceeded the allowed",
        ),
    ],
)
async def test_ends_have_the_runtimes_words(node: NodeBench, code: str, status: str, result: Any) -> None:
    """Results, promises, throws, exits: each as the real runtime says it, and the next one is served."""
    ran = await node.bench.run(node.revision(code), n=1)
    assert ran.status == status, ran
    if isinstance(result, str):
        assert result in ran.result["error"]
    else:
        assert ran.result == result
    assert (await node.bench.run(node.revision(NODEINFO))).status == "success"


async def test_limits_hold_for_node_too(node: NodeBench) -> None:
    """Time, memory, and what it has spawned dies with it."""
    slow = node.revision(
        "const { spawn } = require('child_process');"
        "function main() {"
        "  const c = spawn('sleep', ['600'], {detached: true}); console.log(c.pid); for (;;); }",
        timeout_ms=2_000,
    )
    ran = await node.bench.run(slow)
    assert ran.result == {"error": "The action exceeded its time limits of 2000 milliseconds."}
    assert not exists(int(ran.logs[0].rpartition(" ")[2]))
    hungry = node.revision(
        "const kept = []; function main() { for (;;) kept.push(Buffer.alloc(1 << 20, 1)); }", memory_mb=128
    )
    assert (await node.bench.run(hungry)).result == {
        "error": "The action exhausted its memory and was aborted."
    }


async def test_without_node_the_activation_says_so(bench: Bench, tmp_path: Path) -> None:
    """The platform's fault, not the action's."""
    await bench.open(node=str(tmp_path / "none"))
    ran = await bench.run(NodeBench(bench).revision(NODEINFO))
    assert ran.status == "whisk internal error"
    assert "node actions cannot run" in ran.result["error"]
    assert (await bench.run(bench.revision("def main(args): return {}"))).status == "success"
