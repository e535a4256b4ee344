"""Zygotes: what they preload, when they refuse to fork, and TensorFlow in forked workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from fedkeeper.errors import ServiceError
from fedkeeper.fabric import preload
from fedkeeper.fabric.inside import zygote
from tests.fabric.workers.conftest import Bench, eventually, exists
from tests.fabric.workers.folders import write_folder


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (None, "plain"),
        ("numpy>=2\n# tensorflow\n", "plain"),
        ("tensorflow-probability", "plain"),
        ("requests\nTensorFlow>=2.19 ; python_version >= '3.11'\n", "tensorflow"),
        ("tensorflow_cpu==2.21.0", "tensorflow"),
        ("keras", "tensorflow"),
    ],
)
def test_requirements_choose_the_preload(tmp_path: Path, requirements: str | None, expected: str) -> None:
    """TensorFlow is imported for those that name it only; a virtualenv of one's own gets nothing of ours."""
    files = {} if requirements is None else {"requirements.txt": requirements}
    write_folder(tmp_path, files)
    assert preload.preload_for(tmp_path) == expected
    write_folder(tmp_path, {"virtualenv/bin/activate_this.py": ""})
    assert preload.preload_for(tmp_path) == "bare"


def test_a_zygote_with_too_many_threads_refuses_to_fork() -> None:
    """A thread that came after the imports may hold a lock that no child could ever get."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        mother = zygote.Zygote(theirs)
        mother.threads = 0
        assert "threads, 0 after its imports" in mother.fork([])["error"]


async def test_a_zygote_that_cannot_start_says_why(tmp_path: Path) -> None:
    """An interpreter that ends at once is an error that names the log, and leaves no process."""
    with pytest.raises(ServiceError, match="plain zygote did not start"):
        await preload.Zygote.start("plain", tmp_path, "/bin/false")


async def test_what_its_workers_had_goes_with_it(tmp_path: Path) -> None:
    """When its socket closes, though its parent lives: the kernel closes it before the parent counts as dead.

    What others have stays.
    """
    workers, group = tmp_path / "workers", tmp_path / "group"
    for folder in (workers, group):
        folder.mkdir()
    mother = await preload.Zygote.start("bare", tmp_path, sys.executable, [group], workers=workers)
    for name in (f"{mother.mark}-w1", "other-w2"):
        (workers / name / "inner").mkdir(parents=True)
        (workers / name / "inner" / "file").write_text("x")
        (group / name).mkdir()
    await mother.close()
    assert [path.name for path in workers.iterdir()] == ["other-w2"]
    assert [path.name for path in group.iterdir()] == ["other-w2"]
    another = await preload.Zygote.start("bare", tmp_path, sys.executable, [group], workers=workers)
    (group / "other-w2").rmdir()
    os.kill(another.pid, signal.SIGTERM)
    await eventually(lambda: not exists(another.pid))
    assert not group.exists()
    await another.close()


async def test_a_functions_own_virtualenv_is_activated(bench: Bench) -> None:
    """Its packages come before all others, and the worker has preloaded none of ours."""
    await bench.open()
    action = bench.revision({
        "__main__.py": """
            import sys
            loaded = [name for name in ("numpy", "flask", "pymongo") if name in sys.modules]
            import numpy
            def main(args):
                return {"numpy": numpy.mark, "loaded": loaded}
            """,
        "virtualenv/bin/activate_this.py": """
            import os, sys
            sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "lib"))
            """,
        "virtualenv/lib/numpy.py": "mark = 'own'",
    })  # fmt: skip
    assert (await bench.run(action)).result == {"numpy": "own", "loaded": []}


async def test_workers_of_one_zygote_draw_different_numbers(bench: Bench) -> None:
    """The fork copies the generators' states: each worker seeds its own."""
    await bench.open()
    source = """
        import random, numpy
        def main(args):
            return {"draws": [random.random(), float(numpy.random.rand())]}
    """
    first, second = [(await bench.run(bench.revision(source))).result["draws"] for _ in range(2)]
    assert not set(first) & set(second)


async def test_a_worker_writes_nothing_into_the_functions_folder(bench: Bench) -> None:
    """No __pycache__: the folder is shared by workers and belongs to the store."""
    await bench.open()
    action = bench.revision({"__main__.py": "import helper\ndef main(args): return {}", "helper.py": ""})
    assert (await bench.run(action)).status == "success"
    lister = bench.revision(f"import os\ndef main(args): return os.listdir({action.folder!r})")
    left = (await bench.run(lister)).result
    assert sorted(left) == ["__main__.py", "helper.py"]


FIT = """
    import numpy as np
    import keras
    import tensorflow as tf
    def main(args):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([
            keras.layers.Input((12, 12, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ])
        model.compile("adam", "sparse_categorical_crossentropy")
        x = np.random.rand(32, 12, 12, 1)
        fitted = model.fit(x, np.arange(32) % 10, verbose=0)
        # float32 kernels of one thread: the same bits in every worker
        return {"loss": float(fitted.history["loss"][0])}
"""


@pytest.mark.slow
async def test_ten_forked_workers_train_at_once(bench: Bench) -> None:
    """One import of TensorFlow serves ten workers, none hangs, and 256 MB are enough for each.

    The memory that a worker inherits from the zygote is not charged to it.
    """
    pool = await bench.open()
    files = {"__main__.py": FIT, "requirements.txt": "tensorflow"}
    actions = [bench.revision(files, memory_mb=256) for _ in range(10)]
    googles = {"main.py": FIT, "requirements.txt": "tensorflow"}
    function = bench.revision(googles, flavour="google", memory_mb=256)
    runs = await asyncio.gather(*(bench.run(action) for action in actions))
    assert [ran.status for ran in runs] == ["success"] * 10
    assert len({ran.result["loss"] for ran in runs}) == 1
    assert {line for ran in runs for line in ran.logs} == set()
    assert pool.stats()["cold"] == 10
    assert (await bench.run(actions[0])).init_ms is None
    assert json.loads((await bench.get(function)).body) == runs[0].result


async def test_spares_are_kept_ready_and_become_workers(bench: Bench) -> None:
    """The next cold start takes one that was forked before, and it is made up for; a dead one is not used."""
    pool = await bench.open(spares=2)
    action = bench.revision("import os\ndef main(args): return {'pid': os.getpid()}")
    first = (await bench.run(action)).result["pid"]
    zygote = pool._zygotes["plain"]
    await eventually(lambda: pool.stats()["spare"] == 2)
    dead, ready = (spare.pid for spare in zygote._spares)
    os.kill(dead, signal.SIGKILL)
    await eventually(lambda: not exists(dead))
    other = bench.revision("import os\ndef main(args): return {'pid': os.getpid()}")
    assert (await bench.run(other)).result["pid"] == ready != first
    await eventually(lambda: pool.stats()["spare"] == 2)
    assert pool.stats()["workers"] == 2
    spares = [spare.pid for spare in zygote._spares]
    await pool.close()
    await eventually(lambda: not any(map(exists, spares)))


async def test_no_spares_if_none_are_wanted(bench: Bench) -> None:
    """Each worker is then forked when it is needed."""
    pool = await bench.open(spares=0)
    assert (await bench.run(bench.revision("def main(args): return {}"))).status == "success"
    assert pool.stats()["spare"] == 0
