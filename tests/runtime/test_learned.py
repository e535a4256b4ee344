"""Threads that meet at a type which msgspec has not seen yet would end the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

RACE = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from fedkeeper.core.model import Run
from fedkeeper.keeper import client
from fedkeeper.keeper.api.schemas import Status

start = threading.Barrier(8)

def read(kind):
    start.wait()
    try:
        msgspec.convert({"name": "k1"}, kind)
    except msgspec.ValidationError:
        pass

threads = [threading.Thread(target=read, args=(kind,)) for kind in (Status, Run) * 4]
for one in threads:
    one.start()
for one in threads:
    one.join()
print("alive")
"""

FIRST_USE = """
import fedkeeper.keeper.client
from fedkeeper.core import model
from fedkeeper.keeper.tasks import TaskBook
from fedkeeper.runtime import wire

kinds = [model.Run, model.RunSpec, model.Attempt, model.RoundRecord, TaskBook, wire.Outcome, wire.TrainTask]
print([kind.__name__ for kind in kinds if "__msgspec_cache__" not in vars(kind)])
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run it in a fresh interpreter, in which nothing has been used yet."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_many_threads_may_use_a_client_first_at_the_same_time():
    """As `status` does, which asks all keepers at once. Without `learn` one in five dies of SIGSEGV."""
    for _ in range(5):
        done = python(RACE)
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_what_is_read_in_threads_is_known_once_it_is_imported():
    """Nothing is left to a first use."""
    done = python(FIRST_USE)
    assert done.stdout == "[]\n", done.stdout + done.stderr
