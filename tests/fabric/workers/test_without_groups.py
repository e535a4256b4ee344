"""The limits where no control group can be made: measured and enforced all the same."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.fabric.cgroups import Cgroups
from tests.fabric.workers.conftest import Bench

NOBODY = 65_534
MEMORY = """
import os, time
def main(args):
    if args.get("fork") and os.fork() != 0:
        time.sleep(60)
    held = bytearray(args["mb"] << 20)
    for i in range(0, len(held), 4096):
        held[i] = 1
    if args.get("wait"):
        time.sleep(60)
    return {"mb": args["mb"]}
"""
ALL_AT_ONCE = """
def main(args):
    try:
        bytearray(4 << 30)
    except MemoryError:
        return {"refused": True}
    return {"refused": False}
"""
MANY = """
import os, time
def main(args):
    for _ in range(args["count"]):
        if os.fork() == 0:
            time.sleep(60)
    if args["wait"]:
        time.sleep(60)
    return {}
"""


async def over_the_limits(bench: Bench) -> dict[str, Any]:
    """Break each of them once, on an open pool that allows 20 processes; what became of it."""
    memory, many = bench.revision(MEMORY, memory_mb=128), bench.revision(MANY)
    ran = {
        "within": await bench.run(memory, mb=60),
        "memory": await bench.run(memory, mb=200, wait=True),
        "memory of a child": await bench.run(memory, mb=200, wait=True, fork=True),
        "all at once": await bench.run(bench.revision(ALL_AT_ONCE, memory_mb=128)),
        "few processes": await bench.run(many, count=10, wait=False),
        "many processes": await bench.run(many, count=30, wait=True),
        "next": await bench.run(bench.revision("def main(args): return {'next': 1}")),
    }
    return {what: one.result for what, one in ran.items()}


EXPECTED = {
    "within": {"mb": 60},
    "memory": {"error": "The action exhausted its memory and was aborted."},
    "memory of a child": {"error": "The action exhausted its memory and was aborted."},
    "all at once": {"refused": True},
    "few processes": {},
    "many processes": {"error": "The action started too many processes and was aborted."},
    "next": {"next": 1},
}


async def test_limits_hold_without_control_groups(bench: Bench) -> None:
    """Memory of the worker and of its children, an allocation that never could be, and processes."""
    pool = await bench.open(control_groups=False, processes_max=20)
    assert pool._cgroups.controllers == ()
    assert await over_the_limits(bench) == EXPECTED


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may write; pytest's own are for us alone."""
    folder = Path(tempfile.mkdtemp(prefix="fedkeeper-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_limits_hold_for_a_user_who_cannot_make_groups(open_folder: Path) -> None:
    """The whole pool as an unprivileged user, who finds no control group that it may write."""
    command = [sys.executable, "-B", "-m", "tests.fabric.workers.unprivileged", str(open_folder)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("this needs setpriv (util-linux) to give up root")
        # It may read what root may: the interpreter may be in root's home. It may not write it.
        read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        bound = ["--bounding-set=-all,+dac_read_search"]
        who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command = ["setpriv", *who, *read, *bound, "--", *command]
    root = Path(__file__).parents[3]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        cwd=root,
        env={"PATH": os.environ["PATH"], "HOME": str(open_folder), "TMPDIR": str(open_folder)},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])  # after the log
    assert told["uid"] != 0
    assert told["controllers"] == []
    assert told["results"] == EXPECTED


def test_version_2_of_control_groups_is_told_the_limits(tmp_path: Path) -> None:
    """The files and values that the kernel reads there; what it says of a kill is understood."""
    root = tmp_path / "faas-pool"
    root.mkdir()
    group = Cgroups({"memory pids": root}).make("w1", memory_mb=128, processes_max=20)
    folder = root / "w1"
    assert group.join == [str(folder / "cgroup.procs")]
    assert (folder / "memory.max").read_text() == str(128 << 20)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "20"
    assert group.oom_kills() == 0
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    assert group.oom_kills() == 1
