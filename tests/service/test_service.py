"""fedkeeper.service with real processes: one service, joined, left, killed, started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedkeeper import service
from fedkeeper.errors import PortTaken, ServiceError

SERVICE = """
import asyncio, os, sys, time
from pathlib import Path
from fedkeeper import service
from fedkeeper.errors import PortTaken
folder, linger, mode = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if mode == "raises":
    raise SystemExit("no such luck")
if mode == "port":
    service.report_failure(folder, "echo", PortTaken("port 1 is taken", hint="choose another"))
    raise SystemExit(1)
if mode == "hangs":
    time.sleep(60)
with service.own(folder, "echo"):
    service.announce(folder, "echo", {"pid": os.getpid(), "word": os.environ.get("WORD", "")})
    busy = lambda: (folder / "busy").exists()
    asyncio.run(service.wait_until_unused(folder, "echo", linger_s=linger, busy=busy))
"""
USER = """
import asyncio, sys
from pathlib import Path
from fedkeeper import service
async def main():
    running = await service.attach(Path(sys.argv[1]), "echo", sys.argv[2:], start_timeout_s=20)
    print(running.info["pid"], running.started, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def argv(folder: Path, *, linger_s: float = 60, mode: str = "") -> list[str]:
    """The command of the service under test."""
    return [sys.executable, "-c", SERVICE, str(folder), str(linger_s), mode]


async def attach(folder: Path, **options) -> service.Running:
    """Join or start it."""
    return await service.attach(folder, "echo", argv(folder, **options), start_timeout_s=20)


async def gone(pid: int) -> None:
    """Return when the process has ended (a zombie of ours counts)."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pid} still runs")


async def start_user(folder: Path, **options) -> tuple[asyncio.subprocess.Process, int, bool]:
    """A user in a process of its own: (the process, the service's pid, whether it started it)."""
    user = await asyncio.create_subprocess_exec(
        sys.executable, "-c", USER, str(folder), *argv(folder, **options), stdout=asyncio.subprocess.PIPE
    )
    assert user.stdout
    pid, started = (await user.stdout.readline()).split()
    return user, int(pid), started == b"True"


async def test_the_first_starts_it_and_the_last_ends_it(tmp_path):
    """Two users share one process; it lives until the second has closed, and then ends at once."""
    first = await attach(tmp_path)
    second = await attach(tmp_path)
    assert (first.started, second.started) == (True, False)
    assert first.info == second.info
    await first.close()
    assert second.alive()
    await second.close()
    assert not second.alive()
    await gone(first.info["pid"])
    await second.close()  # twice is harmless


async def test_users_that_start_at_once_get_one_service(tmp_path):
    """Ten attach at the same time: one starts it, all see the same process."""
    users = await asyncio.gather(*(attach(tmp_path) for _ in range(10)))
    assert len({user.info["pid"] for user in users}) == 1
    assert sum(user.started for user in users) == 1
    await asyncio.gather(*(user.close() for user in users))
    assert not users[0].alive()


async def test_processes_that_start_at_once_get_one_service(tmp_path):
    """The same with separate processes, all killed by -9: the service is there for the next one."""
    users = await asyncio.gather(*(start_user(tmp_path) for _ in range(4)))
    assert len({pid for _, pid, _ in users}) == 1
    assert sum(started for _, _, started in users) == 1
    for user, _, _ in users:
        user.kill()
        await user.wait()
    next_one = await attach(tmp_path)
    assert next_one.info["pid"] == users[0][1]
    assert not next_one.started
    await next_one.close()
    await gone(users[0][1])


async def test_after_kill_9_of_its_user_it_lingers_and_then_ends(tmp_path):
    """Nobody comes within `linger_s`: it ends on its own, and the next start makes a new one."""
    user, pid, _ = await start_user(tmp_path, linger_s=0.3)
    user.kill()
    await user.wait()
    await gone(pid)
    again = await attach(tmp_path)
    assert again.started
    assert again.info["pid"] != pid
    await again.close()


async def test_a_busy_service_outlasts_its_linger(tmp_path):
    """Running activations keep it: it ends only when they have."""
    (tmp_path / "busy").touch()
    user, pid, _ = await start_user(tmp_path, linger_s=0.05)
    user.kill()
    await user.wait()
    # It looks at least once a second; that it does not end in this time is what `busy` is for.
    await asyncio.sleep(1.5)
    os.kill(pid, 0)
    (tmp_path / "busy").unlink()
    await gone(pid)


async def test_kill_9_of_the_service_is_seen_and_the_next_start_replaces_it(tmp_path):
    """What a dead service announced is not believed."""
    user = await attach(tmp_path)
    os.kill(user.info["pid"], signal.SIGKILL)
    await gone(user.info["pid"])
    assert not user.alive()
    other = await attach(tmp_path)
    assert other.started
    assert other.info["pid"] != user.info["pid"]
    await user.close()
    assert other.alive()
    await other.close()
    assert not other.alive()


async def test_a_service_that_cannot_start_shows_its_last_words(tmp_path):
    """The error carries the log's end, and only of this start."""
    (tmp_path / "echo.log").write_text("an older story\n")
    with pytest.raises(ServiceError, match="no such luck") as caught:
        await attach(tmp_path, mode="raises")
    assert "older" not in str(caught.value)
    assert "echo.log" in caught.value.hint


async def test_a_service_says_which_error_to_raise(tmp_path):
    """PortTaken travels from the service to the one who starts it."""
    with pytest.raises(PortTaken, match="port 1 is taken") as caught:
        await attach(tmp_path, mode="port")
    assert caught.value.hint == "choose another"


async def test_a_service_that_hangs_is_killed_when_its_time_is_up(tmp_path):
    """No process and no lease are left, so that the next start can work."""
    with pytest.raises(ServiceError, match="in time"):
        await service.attach(tmp_path, "echo", argv(tmp_path, mode="hangs"), start_timeout_s=0.5)
    user = await attach(tmp_path)
    await user.close()


async def test_the_announcement_is_for_this_user_only(tmp_path):
    """It may name ports and tokens; and the environment given is what the service sees."""
    command = argv(tmp_path)
    environment = {**os.environ, "WORD": "melon"}
    user = await service.attach(tmp_path, "echo", command, start_timeout_s=20, environment=environment)
    assert user.info["word"] == "melon"
    assert stat.S_IMODE((tmp_path / "echo.json").stat().st_mode) == 0o600
    assert json.loads((tmp_path / "echo.json").read_text())["pid"] == user.info["pid"]
    await user.close()


def test_only_one_can_own_a_name(tmp_path):
    """A second owner is told, and may be when the first has gone."""
    with (
        service.own(tmp_path, "x"),
        pytest.raises(ServiceError, match="running already"),
        service.own(tmp_path, "x", wait_s=0.1),
    ):
        pass
    with service.own(tmp_path, "x", wait_s=0.1):
        pass


async def test_users_come_and_go_while_it_ends(tmp_path):
    """Attach and close in a tight race, many times: everybody always gets a live service."""

    async def use(_: int) -> None:
        for _ in range(3):
            user = await attach(tmp_path, linger_s=0.05)
            assert user.alive()
            await user.close()

    await asyncio.gather(*(use(n) for n in range(4)))


async def test_one_who_leaves_lets_it_go_on_while_it_is_busy(tmp_path):
    """And it ends by itself once it is neither used nor busy."""
    (tmp_path / "busy").touch()
    running = await attach(tmp_path, linger_s=0.1)
    pid = running.info["pid"]
    await running.leave()
    found = service.find(tmp_path, "echo")
    assert found is not None
    assert found["pid"] == pid
    (tmp_path / "busy").unlink()
    await gone(pid)
    assert service.find(tmp_path, "echo") is None


async def test_a_user_knows_whether_there_is_another(tmp_path):
    """Asking changes nothing: neither of them loses the service."""
    mine = await attach(tmp_path)
    assert not await mine.shared()
    user, _, _ = await start_user(tmp_path)
    assert await mine.shared()
    assert await mine.shared()
    user.kill()
    await user.wait()
    assert not await mine.shared()
    assert mine.alive()
    await mine.close()
    assert not mine.alive()


def test_looking_for_a_service_makes_nothing(tmp_path):
    """Not even its folder."""
    assert service.find(tmp_path / "not-there", "echo") is None
    assert not (tmp_path / "not-there").exists()
