"""Limits, kills and ends: nothing outlives its deadline, its pool or the pool's process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedkeeper.fabric.inside import processes
from fedkeeper.fabric.model import PoolFull
from fedkeeper.fabric.worker import WorkerDied
from tests.fabric.workers.conftest import Bench, eventually, exists
from tests.fabric.workers.folders import write_folder

BROOD = """
    import os, sys, time
    def daemon():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(w, b"%d " % os.getpid())
                time.sleep(600)
            os._exit(0)
    def child():
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        return pid
    r, w = os.pipe()
    def main(args):
        daemon()
        pids = [os.getpid(), child(), int(os.read(r, 20))]
        with open(args["to"] + ".new", "w") as file:
            file.write(" ".join(map(str, pids)))
        os.rename(args["to"] + ".new", args["to"])
        while args.get("hang"):
            time.sleep(1)
        if args.get("exit"):
            os._exit(1)
        return {"pids": pids}
"""


def pids_in(path: Path) -> list[int]:
    """What the brood wrote: worker, child, daemon."""
    return [int(word) for word in path.read_text().split()]


async def test_a_deadline_ends_the_action_and_all_it_started(bench: Bench, tmp_path: Path) -> None:
    """Its children and its daemon, which left its session and its family, die with it."""
    await bench.open()
    ran = await bench.run(bench.revision(BROOD, timeout_ms=3_000), to=str(tmp_path / "pids"), hang=True)
    assert ran.result == {"error": "The action exceeded its time limits of 3000 milliseconds."}
    assert (ran.status, ran.timed_out) == ("action developer error", True)
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 3
    await eventually(lambda: not any(map(exists, pids)))
    assert bench.pool.stats()["workers"] == 0
    assert bench.pool.stats()["killed"] == 1


async def test_orphans_of_a_worker_that_exits_are_killed(bench: Bench, tmp_path: Path) -> None:
    """A worker that ends by itself leaves nobody behind, and its directory is removed."""
    pool = await bench.open()
    ran = await bench.run(bench.revision(BROOD), to=str(tmp_path / "pids"), exit=True)
    assert ran.result == {"error": "command exited"}
    await eventually(lambda: not any(map(exists, pids_in(tmp_path / "pids"))))
    await eventually(lambda: not list((pool._folder / "workers").iterdir()))


async def test_a_deadline_during_initialization_says_so(bench: Bench) -> None:
    """An import that hangs is an init that timed out."""
    await bench.open()
    ran = await bench.run(bench.revision("import time; time.sleep(60)", timeout_ms=300))
    words = "The action exceeded its time limits of 300 milliseconds during initialization."
    assert ran.result == {"error": words}
    assert ran.timed_out


async def test_what_was_printed_before_the_deadline_is_in_the_logs(bench: Bench) -> None:
    """Also the last line, which had no end."""
    await bench.open()
    action = bench.revision(
        """
        import sys, time
        def main(args):
            print("one")
            sys.stdout.write("two")
            sys.stdout.flush()
            time.sleep(60)
        """,
        timeout_ms=2_000,
    )
    assert [line[31:] for line in (await bench.run(action)).logs[:2]] == ["stdout: one", "stdout: two"]


async def test_memory_over_the_limit_aborts_the_action(bench: Bench) -> None:
    """Below the limit it passes; above, the whole worker is killed, whoever of it holds the memory."""
    await bench.open()
    action = bench.revision(
        """
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
        """,
        memory_mb=128,
    )
    assert (await bench.run(action, mb=90)).status == "success"
    for fork in (False, True):
        ran = await bench.run(action, mb=200, wait=True, fork=fork)
        assert ran.status == "action developer error"
        assert ran.result == {"error": "The action exhausted its memory and was aborted."}
        assert not ran.timed_out


async def test_a_worker_killed_from_outside_ends_only_its_activation(bench: Bench, tmp_path: Path) -> None:
    """Busy: a developer error that names the signal. Idle: nobody notices. A new worker follows."""
    await bench.open()
    action = bench.revision(BROOD)
    path = tmp_path / "pids"
    running = asyncio.create_task(bench.run(action, to=str(path), hang=True))
    await eventually(path.exists)
    os.kill(pids_in(path)[0], signal.SIGKILL)
    ran = await running
    assert ran.status == "action developer error"
    assert "killed by signal 9 (SIGKILL)" in ran.result["error"]
    path.unlink()
    warm = (await bench.run(action, to=str(path))).result["pids"][0]
    os.kill(warm, signal.SIGKILL)
    await eventually(lambda: bench.pool.stats()["workers"] == 0)
    again = await bench.run(action, to=str(path))
    assert again.status == "success"
    assert again.init_ms is not None


async def test_a_call_to_a_worker_that_has_ended_fails_at_once(bench: Bench) -> None:
    """It died between its lease and the call: told by its status, not by a deadline."""
    pool = await bench.open()
    worker, _ = await pool.lease(bench.revision("def main(args): return {}"))
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: not worker.alive)
    await eventually(lambda: pool.stats()["workers"] == 0)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await worker.call({"kind": "run"}, b"", 3600)
    await pool.release(worker, spoilt=True)


async def test_a_zygote_that_is_killed_is_replaced(bench: Bench, tmp_path: Path) -> None:
    """Its workers die with it, and what they had started; the next invocation starts another."""
    pool = await bench.open()
    action = bench.revision(BROOD)
    path = tmp_path / "pids"
    running = asyncio.create_task(bench.run(action, to=str(path), hang=True))
    await eventually(path.exists)
    first = pool._zygotes["plain"].pid
    os.kill(first, signal.SIGKILL)
    ran = await running
    assert ran.status == "action developer error"
    assert "exited unexpectedly" in ran.result["error"]
    await eventually(lambda: not any(map(exists, pids_in(path))))
    assert (await bench.run(action, to=str(path))).status == "success"
    assert pool._zygotes["plain"].pid != first


@pytest.mark.parametrize("spares", [0, 2])
async def test_a_zygote_that_is_killed_while_idle_costs_no_activation(bench: Bench, spares: int) -> None:
    """Its death shows when the next worker is wanted, of which nothing has run: another zygote is asked."""
    pool = await bench.open(spares=spares)
    assert (await bench.run(bench.revision("def main(args): return {}"))).status == "success"
    await eventually(lambda: pool.stats()["spare"] == spares)
    first = pool._zygotes["plain"].pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: not exists(first))
    assert (await bench.run(bench.revision("def main(args): return {'next': 1}"))).result == {"next": 1}


async def test_everything_ends_with_the_pools_process(tmp_path: Path) -> None:
    """kill -9 of the process that holds the pool: zygote, worker, its child and its daemon all end.

    Control groups are gone as well.
    """
    script = tmp_path / "fabric.py"
    script.write_text("""
import asyncio, sys
from pathlib import Path
from tests.fabric.workers.conftest import Bench
from contextlib import AsyncExitStack
async def main(root):
    async with AsyncExitStack() as stack:
        bench = Bench(root, stack)
        pool = await bench.open()
        action = bench.revision((root / "action.py").read_text())
        running = asyncio.create_task(bench.run(action, to=str(root / "pids"), hang=True))
        while not (root / "pids").exists():
            await asyncio.sleep(0.02)
        print(pool._zygotes["plain"].pid, *pool._cgroups.roots, flush=True)
        await running
asyncio.run(main(Path(sys.argv[1])))
""")
    (tmp_path / "action.py").write_text(BROOD)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(  # noqa: ASYNC220 - as short as it is
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        assert process.stdout is not None
        zygote, *groups = (await asyncio.to_thread(process.stdout.readline)).decode().split()
        pids = [int(zygote), *pids_in(tmp_path / "pids")]
        assert all(map(exists, pids))
        process.kill()
    await eventually(lambda: not any(map(exists, pids)))
    assert not any(map(os.path.exists, groups))
    assert not list((tmp_path / "pool0" / "workers").iterdir())


@pytest.mark.parametrize("run", [0, 1])
async def test_an_idle_pool_that_is_killed_leaves_no_control_group(tmp_path: Path, run: int) -> None:
    """Neither before its first worker, when no zygote listens yet, nor after it has become idle."""
    script = tmp_path / "fabric.py"
    script.write_text("""
import asyncio, sys
from pathlib import Path
from tests.fabric.workers.conftest import Bench
from contextlib import AsyncExitStack
async def main(root, run):
    async with AsyncExitStack() as stack:
        bench = Bench(root, stack)
        pool = await bench.open()
        action = bench.revision("def main(args): return {}")
        for _ in range(run):
            assert (await bench.run(action)).status == "success"
        print(*(zygote.pid for zygote in pool._zygotes.values()), *pool._cgroups.roots, flush=True)
        await asyncio.sleep(600)
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, str(script), str(tmp_path), str(run)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        told = (await asyncio.to_thread(process.stdout.readline)).decode().split()
        process.kill()
    pids, groups = [int(word) for word in told if word.isdecimal()], [word for word in told if "/" in word]
    assert len(pids) == run
    await eventually(lambda: not any(map(exists, pids)))
    assert not any(map(os.path.exists, groups))


async def test_a_zygote_that_still_imports_ends_with_the_pools_process(tmp_path: Path) -> None:
    """It is not listening yet, so the kernel ends it."""
    write_folder(tmp_path / "f", {"requirements.txt": "tensorflow"})
    script = tmp_path / "fabric.py"
    script.write_text("""
import asyncio, sys
from pathlib import Path
from fedkeeper.fabric.pool import Pool
async def main(root):
    async with Pool.open(root / "pool", memory_mb=512, queue_max=1, idle_s=1) as pool:
        await pool.prepare(root / "f")
        await asyncio.sleep(600)
asyncio.run(main(Path(sys.argv[1])))
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, env=environment) as process:  # noqa: ASYNC220
        await eventually(lambda: processes.descendants([process.pid], processes.parents()))
        zygotes = processes.descendants([process.pid], processes.parents())
        process.kill()
    await eventually(lambda: not any(map(exists, zygotes)))


async def test_each_worker_has_its_own_directory(bench: Bench) -> None:
    """TMPDIR is private and empty at the start; limits on files and core dumps are set."""
    pool = await bench.open()
    action = bench.revision("""
        import os, resource, stat, tempfile
        def main(args):
            with tempfile.NamedTemporaryFile(delete=False):
                pass
            mode = stat.S_IMODE(os.stat(tempfile.gettempdir()).st_mode)
            return {"tmp": tempfile.gettempdir(), "mode": mode,
                    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                    "core": resource.getrlimit(resource.RLIMIT_CORE)[0], "sid": os.getsid(0) == os.getpid()}
    """)
    seen = (await bench.run(action)).result
    assert Path(seen["tmp"]).parent == pool._folder / "workers"
    assert (seen["mode"], seen["files"], seen["core"], seen["sid"]) == (0o700, 1024, 0, True)
    await pool.retire(action.id)
    assert not os.path.exists(seen["tmp"])  # noqa: ASYNC240, PTH110


SLOW = """
    import os, time
    def main(args):
        open(args["mark"], "x").close()
        while not os.path.exists(args["go"]):
            time.sleep(0.01)
        return {"pid": os.getpid()}
"""


async def test_memory_is_a_budget_and_idle_workers_make_room(bench: Bench) -> None:
    """The worker that was used least recently goes; the others stay warm."""
    pool = await bench.open(memory_mb=512)
    a, b, c = (bench.revision("def main(args): return {}", memory_mb=256) for _ in range(3))
    for action in (a, b, a, c):
        assert (await bench.run(action)).status == "success"
    assert pool.stats()["memory_mb"] == 512
    assert (await bench.run(a)).init_ms is None
    assert (await bench.run(b)).init_ms is not None


async def test_callers_wait_in_order_up_to_a_bound(bench: Bench, tmp_path: Path) -> None:
    """One runs, one waits (its wait is told), the third is turned away, and none is lost."""
    pool = await bench.open(memory_mb=256, queue_max=1)
    action = bench.revision(SLOW, memory_mb=256)
    go = tmp_path / "go"
    first = asyncio.create_task(bench.run(action, mark=str(tmp_path / "1"), go=str(go)))
    await eventually((tmp_path / "1").exists)
    second = asyncio.create_task(bench.run(action, mark=str(tmp_path / "2"), go=str(go)))
    await eventually(lambda: pool.stats()["queued"] == 1)
    with pytest.raises(PoolFull):
        await bench.run(action, mark=str(tmp_path / "3"), go=str(go))
    go.touch()
    one, two = await first, await second
    assert one.result == two.result
    assert two.start_ms >= one.end_ms
    assert two.wait_ms > 0


async def test_idle_workers_expire(bench: Bench) -> None:
    """After `idle_s` without a call the process is ended."""
    pool = await bench.open(idle_s=0.1)
    await bench.run(bench.revision("def main(args): return {}"))
    await eventually(lambda: pool.stats()["workers"] == 0)
    assert pool.stats()["memory_mb"] == 0


async def test_a_retired_revision_ends_after_its_last_activation(bench: Bench, tmp_path: Path) -> None:
    """The busy worker finishes its work and is not used again; a caller that gives up changes nothing."""
    pool = await bench.open()
    action = bench.revision(SLOW)
    mark, go = tmp_path / "1", tmp_path / "go"
    running = asyncio.create_task(bench.run(action, mark=str(mark), go=str(go)))
    await eventually(mark.exists)
    await pool.retire(action.id)
    assert pool.stats()["busy"] == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.stats()["busy"] == 1
    go.touch()
    await eventually(lambda: pool.stats()["workers"] == 0)


async def test_closing_ends_what_runs_and_what_waits(bench: Bench, tmp_path: Path) -> None:
    """Both callers are told; nothing hangs."""
    pool = await bench.open(memory_mb=256)
    action = bench.revision(SLOW, memory_mb=256)
    running = asyncio.create_task(bench.run(action, mark=str(tmp_path / "1"), go="/nowhere"))
    await eventually((tmp_path / "1").exists)
    waiting = asyncio.create_task(bench.run(action, mark=str(tmp_path / "2"), go="/nowhere"))
    await eventually(lambda: pool.stats()["queued"] == 1)
    await pool.close()
    assert (await running).status == "whisk internal error"
    with pytest.raises(PoolFull):
        await waiting


async def test_a_stats_line_is_plain_json(bench: Bench) -> None:
    """What /stats will show."""
    pool = await bench.open()
    assert set(json.loads(json.dumps(dict(pool.stats())))) == {
        "workers", "busy", "idle", "spare", "queued", "memory_mb", "cold", "warm", "ahead",
        "killed",
    }  # fmt: skip
