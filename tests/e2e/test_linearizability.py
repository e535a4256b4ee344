"""The users' dictionary on real keepers, over HTTP, while they suffer; longer by hand: see the module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


def no_namespaces() -> str:
    """Why no partition can be made here; empty: it can."""
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} are not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no network namespace: {tried.stderr.strip()}"


def history(faults: str) -> str:
    """What a run of twelve seconds says in its last lines."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.linearizability_keepers", "--minutes", "0.2", "--faults", faults],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_dictionary_is_linearizable_while_keepers_are_killed_and_frozen():
    """Gets, sets, compare-and-sets and deletes of nine clients, each beginning at a keeper of its own."""
    said = history("kill,freeze")
    operations = re.search(r"(\d+) operations of 9 clients over HTTP", said)
    assert operations is not None
    assert int(operations[1]) > 100
    assert said.endswith("linearizable\n")


@pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())
def test_the_dictionary_is_linearizable_while_keepers_are_cut_off():
    """In both directions or in one; clients reach a deposed leader all the while."""
    said = history("partition")
    faults = re.search(r"faults: (\d+) partition", said)
    assert faults is not None
    assert int(faults[1]) > 0
    assert said.endswith("linearizable\n")
