"""The embedded fabric under a mixed load and kill -9 of its workers, for as long as is wanted.

    python -m benchmarks.soak --minutes 20

Its own process, as a run starts it; OpenWhisk actions (blocking and not), a Cloud Function, an OpenFaaS
function at once and through its queue; every second or so a worker is killed, now and then a zygote. In the
end, and once before as the standard, all functions are removed. Then there must be no process but idle
zygotes and their spares, no more descriptors or threads than before, no port, control group, directory or
temporary file of a worker, no revision; every accepted activation must have been readable, and the fabric's
memory must not have grown. Last the fabric is closed, and nothing may be left of it at all.

Prints a table; exit status 1 if anything of that was not so. Needs root, for a network of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
import psutil

from benchmarks.lab import in_own_network
from benchmarks.soak_load import PROJECT, Load
from fedkeeper.fabric.cgroups import group_name
from fedkeeper.fabric.credentials import read_credentials
from fedkeeper.fabric.launch import OpenFabric, open_fabric

Json = dict[str, Any]
WORKER, ZYGOTE, SPARE = "faas-worker", "faas-zygote", "faas-spare"
QUIET_S_MAX: Final = 120.0
ZYGOTE_CHANCE: Final = 0.04  # of a kill
GROWTH_MB_MAX: Final = 24.0  # of the fabric's memory, by the line through its samples after the warm-up
DESCRIPTORS_MORE: Final = 4  # than the standard; connections of our own that are still open
THREADS_MORE: Final = 4
READ_AGAIN: Final = 5_000  # records; the fabric keeps 20,000


class Fabric:
    """The running fabric as the system shows it."""

    def __init__(
        self, opened: OpenFabric, folder: Path, temporary: Path, http: aiohttp.ClientSession
    ) -> None:
        self.opened = opened
        self.folder = folder
        self.temporary = temporary
        self.pid = int(json.loads((folder / "fabric.json").read_text())["pid"])
        self._process = psutil.Process(self.pid)
        self._admin = {"Authorization": f"Bearer {read_credentials(folder).admin}"}
        self._http = http

    async def stats(self) -> Json:
        """The pool's own."""
        url = f"{self.opened.address.url}/admin/stats"
        async with self._http.get(url, headers=self._admin) as answer:
            told: Json = await answer.json()
            return told

    def named(self, name: str) -> list[int]:
        """Descendants of that name."""
        return [pid for pid, known in self.family().items() if known == name]

    def family(self) -> dict[int, str]:
        """All descendants, with their names."""
        found = {}
        for one in self._process.children(recursive=True):
            try:
                found[one.pid] = one.name()
            except psutil.NoSuchProcess:
                continue
        return found

    def memory_mb(self) -> float:
        """Resident memory of the fabric's own process."""
        return self._process.memory_info().rss / 2**20

    def groups(self) -> list[Path]:
        """Control groups of its pool, in all hierarchies."""
        name = group_name(self.folder / "pool")
        # os.walk takes it that groups of others go while it looks.
        return [Path(base) / name for base, names, _ in os.walk("/sys/fs/cgroup") if name in names]

    def holds(self) -> Json:
        """What it has, when no function is left."""
        family = self.family()
        return {
            "workers": sum(name == WORKER for name in family.values()),
            "other processes": sorted({n for n in family.values() if n not in (WORKER, ZYGOTE, SPARE)}),
            "zygotes": sum(name == ZYGOTE for name in family.values()),
            "descriptors": self._process.num_fds(),
            "threads": self._process.num_threads(),
            "workers' directories": len(list((self.folder / "pool" / "workers").iterdir())),
            "workers' control groups": sum(map(_folders_in, self.groups())),
            "revisions": len(list((self.folder / "revisions").iterdir())),
            "temporary files": len(list(self.temporary.iterdir())),
            "memory_mb": round(self.memory_mb(), 1),
        }


def _folders_in(path: Path) -> int:
    return next((len(names) for _, names, _ in os.walk(path)), 0)


class Killer:
    """Kills workers, now and then a zygote."""

    def __init__(self, fabric: Fabric, seed: int, every_s: float) -> None:
        self.workers = self.zygotes = 0
        self._fabric = fabric
        self._chance = random.Random(seed)  # noqa: S311 - who dies next is no secret
        self._every_s = every_s

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(0, 2 * self._every_s))
            name = ZYGOTE if self._chance.random() < ZYGOTE_CHANCE else WORKER
            victims = await asyncio.to_thread(self._fabric.named, name)
            if not victims:
                continue
            try:
                os.kill(self._chance.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.zygotes += name == ZYGOTE
            self.workers += name == WORKER


async def sampled(fabric: Fabric, samples: list[tuple[float, float]]) -> None:
    """The fabric's memory, twice a second, until it is cancelled."""
    while True:
        samples.append((time.monotonic(), fabric.memory_mb()))
        await asyncio.sleep(0.5)


async def phase(
    fabric: Fabric, load: Load, chosen: argparse.Namespace, seconds: float, killer: Killer
) -> Json:
    """Deploy, call and kill for so long, remove; what is held then."""
    await load.deploy()
    killing = asyncio.create_task(killer.run())
    try:
        until = asyncio.get_running_loop().time() + seconds
        await load.run(until, callers=chosen.callers, pause_s=chosen.pause_s)
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    await load.remove()
    return await quiet(fabric)


async def quiet(fabric: Fabric) -> Json:
    """What is held once all that was under way has ended, or after QUIET_S_MAX."""
    end = time.monotonic() + QUIET_S_MAX
    while True:
        stats = await fabric.stats()
        holds = await asyncio.to_thread(fabric.holds)
        idle = not any((stats["busy"], stats["queued"], stats["workers"], holds["workers"]))
        if (idle and not holds["workers' directories"]) or time.monotonic() > end:
            return holds
        await asyncio.sleep(0.2)


def growth_mb(samples: list[tuple[float, float]]) -> float:
    """How much the line through the later two thirds of the samples rises."""
    later = samples[len(samples) // 3 :]
    line = statistics.linear_regression([at for at, _ in later], [mb for _, mb in later])
    return line.slope * (later[-1][0] - later[0][0])


def left_over(before: Json, after: Json, load: Load) -> list[str]:
    """What should not be there at the end, compared with the standard."""
    faults = [f"{fault} ({count} times)" for fault, count in sorted(load.faults.items())]
    nothing = ("workers", "other processes", "workers' directories", "workers' control groups", "revisions")
    faults += [f"{what}: {after[what]}" for what in (*nothing, "temporary files") if after[what]]
    for what, more in (("descriptors", DESCRIPTORS_MORE), ("threads", THREADS_MORE), ("zygotes", 0)):
        if after[what] > before[what] + more:
            faults.append(f"{what}: {after[what]}, {before[what]} after the warm-up")
    if listening := [port for port in load.ports if _listens(port)]:
        faults.append(f"ports of functions that are gone: {listening}")
    return faults


async def ended(fabric: Fabric) -> list[str]:
    """Close it; what is left of it after that."""
    pids = [fabric.pid, *fabric.family()]
    address = fabric.opened.address.url
    await fabric.opened.close()
    faults = []
    checks: dict[str, Callable[[], object]] = {
        "processes": lambda: [pid for pid in pids if psutil.pid_exists(pid) and not _zombie(pid)],
        "control groups": fabric.groups,
        "workers' directories": lambda: list((fabric.folder / "pool").glob("workers/*")),
        "its port": lambda: _listens(int(address.rpartition(":")[2])),
    }
    for what, left in checks.items():
        end = time.monotonic() + 30
        while (found := left()) and time.monotonic() < end:  # noqa: ASYNC110 - the system tells nobody
            await asyncio.sleep(0.1)
        if found:
            faults.append(f"{what} of a fabric that has ended: {found}")
    return faults


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def soak(chosen: argparse.Namespace, folder: Path) -> tuple[list[tuple[str, object]], list[str]]:
    """The rows of the table, and what should not have been."""
    temporary = folder / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)  # the fabric's; nobody else puts anything there
    names: Json = {"namespaces": ["guest"], "projects": [PROJECT], "memory_mb": 4096, "linger_s": 1}
    opened = await open_fabric(folder / "fabric", **names, start_timeout_s=120)
    timeout = aiohttp.ClientTimeout(total=None)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
            fabric = Fabric(opened, folder / "fabric", temporary, http)
            load, killer = Load(opened.address, http, chosen.seed), Killer(fabric, chosen.seed, chosen.kill_s)
            warm_s = min(60.0, chosen.minutes * 60 / 4)
            before = await phase(fabric, load, chosen, warm_s, killer)
            samples: list[tuple[float, float]] = []
            sampling = asyncio.create_task(sampled(fabric, samples))
            after = await phase(fabric, load, chosen, chosen.minutes * 60 - warm_s, killer)
            sampling.cancel()
            await load.read_again(READ_AGAIN)
        faults = left_over(before, after, load) + await ended(fabric)
    finally:
        await opened.close()
    grown = growth_mb(samples)
    if grown > GROWTH_MB_MAX:
        faults.append(f"the fabric's memory grew by {grown:.0f} MB")
    rows: list[tuple[str, object]] = [
        ("minutes", chosen.minutes),
        (
            "activations accepted, all readable" if not load.faults else "activations accepted",
            len(load.accepted),
        ),
        *sorted(load.counts.items()),
        ("workers killed", killer.workers),
        ("zygotes killed", killer.zygotes),
        ("memory after the warm-up and at the end (MB)", f"{before['memory_mb']} {after['memory_mb']}"),
        ("growth of memory by its slope (MB)", round(grown, 1)),
        *((what, f"{before[what]} {after[what]}") for what in after if what != "memory_mb"),
        ("load of the machine", round(os.getloadavg()[0], 1)),
    ]
    return rows, faults


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="the warm-up (a quarter, 1 at most) included"
    )
    parser.add_argument("--callers", type=int, default=12, help="calls under way at once")
    parser.add_argument(
        "--pause-s", type=float, default=0.2, help="mean pause of a caller after an answer (s)"
    )
    parser.add_argument("--kill-s", type=float, default=1.0, help="mean time between two kills (s)")
    parser.add_argument("--seed", type=int, default=1, help="of the calls and the kills")
    chosen = parser.parse_args()
    in_own_network()  # ports that are open there are ours
    with TemporaryDirectory(prefix="soak") as scratch:
        rows, faults = asyncio.run(soak(chosen, Path(scratch)))
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"{what:<{width}}  {value}")
    for fault in faults:
        print(f"VIOLATION  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
