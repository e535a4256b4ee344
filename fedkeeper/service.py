"""Embedded services (mongod's guard, the fabric) that outlive the process that started them.

A user takes a *lease*, starts the service if nobody has, and joins it otherwise. A user that dies by
kill -9 leaves the service running for `linger_s`, so that the next start finds it and its work; the last
user that closes in order ends it at once. Four files in a folder carry this, all by `flock`, which the
kernel gives back whatever a process dies of:

`NAME.lease`  shared lock of each user; whoever gets it exclusively knows that there is no user
`NAME.start`  exclusive lock of the one that is starting the service
`NAME.lock`   exclusive lock of the service itself, for as long as it lives
`NAME.json`   what the service announces: its pid and `info`; taken away before it ends

An announcement counts only while the lock is held. It is removed by one who holds the lease exclusively,
so nobody can join a service that has decided to end: that service has a lock and no announcement.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from fedkeeper.errors import PortTaken, ServiceError

_POLL_S = 0.02
_STOP_TIMEOUT_S = 20.0  # how long a closing user waits for the service's end
_KINDS = {"PortTaken": PortTaken}


# --- for users -----------------------------------------------------------------------------------


class Running:
    """A lease on a service that runs. `info` is what it announced; `started`: we started it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        lease: int,
        info: dict[str, Any],
        child: int | None,
        again: Callable[[], Awaitable[Running]],
    ) -> None:
        self.info = info
        self.started = child is not None
        self._folder = folder
        self._name = name
        self._lease: int | None = lease
        self._child = child
        self._again = again  # attach, as we were made

    def alive(self) -> bool:
        """Whether the service, or a successor of it, holds its lock now."""
        return _held(self._folder / f"{self._name}.lock")

    async def ensure(self) -> bool:
        """Start the service again if it has died; True if it had. It comes back where it was."""
        if self._lease is None or self.alive():
            return False
        successor = await self._again()
        os.close(self._lease)
        if self._child is not None:
            _reap(self._child)
        self._lease, self.info, self._child = successor._lease, successor.info, successor._child
        return True

    async def shared(self) -> bool:
        """Whether there is another user now."""
        if self._lease is None:
            return False
        last = await _is_last(self._lease)
        while not _flock(self._lease, fcntl.LOCK_SH):  # noqa: ASYNC110 - asking took our share away
            await asyncio.sleep(_POLL_S)
        return not last

    async def close(self) -> None:
        """Give up the lease. The last user ends the service and waits (20 s at most) for that."""
        await self._give_up(end=True)

    async def leave(self) -> None:
        """Give up the lease, and let the service go on: it ends by itself when it is unused and not busy."""
        await self._give_up(end=False)

    async def _give_up(self, *, end: bool) -> None:
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        try:
            if end and await _is_last(lease):
                await self._end()
        finally:
            os.close(lease)
            if self._child is not None:
                _reap(self._child)

    async def _end(self) -> None:
        lock, announcement = self._folder / f"{self._name}.lock", self._folder / f"{self._name}.json"
        told = _read(announcement)
        announcement.unlink(missing_ok=True)
        if not told or not _held(lock):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(told["pid"]), signal.SIGTERM)
        limit = time.monotonic() + _STOP_TIMEOUT_S
        while _held(lock) and time.monotonic() < limit:  # noqa: ASYNC110 - another process; nothing tells us
            await asyncio.sleep(_POLL_S)


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment that run a module of this very package, from whatever folder."""
    home = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": paths}


def find(folder: Path, name: str) -> dict[str, Any] | None:
    """What the service announces, without using it; None if it does not run."""
    told = _read(folder / f"{name}.json")
    if not told or not _lives(int(told["pid"])) or not _held(folder / f"{name}.lock"):
        return None
    info: dict[str, Any] = told["info"]
    return info


def pid_of(folder: Path, name: str) -> int | None:
    """The process of a service that has announced itself and lives."""
    told = _read(folder / f"{name}.json")
    return int(told["pid"]) if told and _lives(int(told["pid"])) else None


def last_announced(folder: Path, name: str) -> dict[str, Any] | None:
    """What it announced last, whether it still runs or was killed. Quick, and without a lock."""
    told = _read(folder / f"{name}.json")
    info: dict[str, Any] | None = told["info"] if told else None
    return info


async def attach(
    folder: Path,
    name: str,
    argv: Sequence[str],
    *,
    start_timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Join the service `name` of `folder`, starting `argv` detached if it does not run.

    The service inherits `environment` (this process's, if None) and no open file; its output is appended
    to `folder/name.log`. Secrets belong in `environment`, never in `argv`.

    Raises:
        PortTaken: the service said so.
        ServiceError: it ended before it announced itself, or did not within `start_timeout_s`.
    """
    again = functools.partial(
        attach, folder, name, argv, start_timeout_s=start_timeout_s, environment=environment
    )
    limit = time.monotonic() + start_timeout_s
    _make(folder)
    lease = os.open(folder / f"{name}.lease", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _flock(lease, fcntl.LOCK_SH):
            await _pause(limit, folder, name)
        while True:
            if _held(folder / f"{name}.lock"):
                told = _read(folder / f"{name}.json")
                if told and _lives(int(told["pid"])):
                    return Running(folder, name, lease, told["info"], None, again)
            else:
                child = await _start(folder, name, argv, environment, limit)
                told = _read(folder / f"{name}.json")
                if child is not None and told:
                    return Running(folder, name, lease, told["info"], child, again)
            await _pause(limit, folder, name)
    except BaseException:
        os.close(lease)
        raise


async def _start(
    folder: Path, name: str, argv: Sequence[str], environment: Mapping[str, str] | None, limit: float
) -> int | None:
    """The pid of the service that was started and has announced itself; None: look again."""
    with _lock_file(folder / f"{name}.start") as mine:
        if not mine or _held(folder / f"{name}.lock"):
            return None
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.error.json").unlink(missing_ok=True)
        log = folder / f"{name}.log"
        skip = log.stat().st_size if log.exists() else 0
        child = _spawn(argv, log, os.environ if environment is None else environment)
        try:
            while not (folder / f"{name}.json").exists():
                status = _reap(child)
                if status is not None:
                    if _held(folder / f"{name}.lock"):  # one that was being started by a user who died
                        return None
                    raise _failure(folder, name, skip, f"ended with status {status}")
                if time.monotonic() > limit:
                    raise _failure(folder, name, skip, "did not come up in time")
                await asyncio.sleep(_POLL_S)
        except BaseException:
            _kill(child)
            raise
        return child


def _spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Start `argv` in a session of its own, so that neither Ctrl-C nor our end reaches it.

    posix_spawn and not subprocess.Popen, which warns of children that are meant to outlive us.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawnp(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them; its children should not
    )


def _reap(child: int) -> int | None:
    """Exit status of our child, negative for a signal; None while it runs."""
    try:
        pid, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:  # reaped before
        return 0
    return os.waitstatus_to_exitcode(status) if pid else None


def _kill(child: int) -> None:
    if _reap(child) is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def _is_last(lease: int) -> bool:
    """Whether no other user is left. Of several that close at once, at least one hears True."""
    for _ in range(3):  # the service itself looks now and then, for a moment
        if _flock(lease, fcntl.LOCK_EX):
            return True
        await asyncio.sleep(_POLL_S)
    return False


async def _pause(limit: float, folder: Path, name: str) -> None:
    if time.monotonic() > limit:
        raise _failure(folder, name, None, "neither announced itself nor ended in time")
    await asyncio.sleep(_POLL_S)


def _failure(folder: Path, name: str, skip: int | None, problem: str) -> ServiceError:
    told = _read(folder / f"{name}.error.json")
    if told:
        return _KINDS.get(told.get("kind", ""), ServiceError)(
            f"{name}: {told.get('problem')}", hint=told.get("hint", "")
        )
    lines: list[str] = []
    log = folder / f"{name}.log"
    if skip is not None and log.exists():
        with log.open("rb") as file:
            file.seek(max(skip, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()[-12:]
    return ServiceError("\n  ".join([f"{name} {problem}", *lines]), hint=f"its whole log is {log}")


# --- for services --------------------------------------------------------------------------------


@contextlib.contextmanager
def own(folder: Path, name: str, *, wait_s: float = 3.0) -> Iterator[None]:
    """Be the service `name` of `folder`, for as long as the block runs. ServiceError if another one is.

    Blocking. It tries for `wait_s` because users look at the lock by taking it for a moment.
    """
    _make(folder)
    limit = time.monotonic() + wait_s
    while True:
        with _lock_file(folder / f"{name}.lock") as mine:
            if mine:
                try:
                    yield
                finally:
                    (folder / f"{name}.json").unlink(missing_ok=True)
                return
        if time.monotonic() > limit:
            raise ServiceError(f"{name} of {folder} is running already")
        time.sleep(_POLL_S)


def announce(folder: Path, name: str, info: Mapping[str, Any]) -> None:
    """Say that this process, which owns `name`, can be used. `info` is JSON, in a file of mode 0600.

    The last thing to do before `wait_until_unused`: from now on SIGTERM may come at any time.
    """
    _write(folder / f"{name}.json", {"pid": os.getpid(), "info": dict(info)})


@contextlib.contextmanager
def kept_in_use(folder: Path, name: str, *, wait_s: float = 3.0) -> Iterator[None]:
    """Hold a lease while the block runs: users that join come and go, and the last one does not end it.

    For a service that somebody runs in the foreground. Blocking, for a moment.
    """
    limit = time.monotonic() + wait_s
    lease = os.open(folder / f"{name}.lease", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _flock(lease, fcntl.LOCK_SH):  # a user looks whether it is the last one, for a moment
            if time.monotonic() > limit:
                raise ServiceError(f"{name} of {folder} cannot be marked as in use")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(lease)


def withdraw(folder: Path, name: str) -> None:
    """Take the announcement back: nobody joins any more."""
    (folder / f"{name}.json").unlink(missing_ok=True)


def report_failure(folder: Path, name: str, error: ServiceError) -> None:
    """Have whoever is starting this service raise `error`."""
    told = {"kind": type(error).__name__, "problem": str(error), "hint": error.hint}
    _write(folder / f"{name}.error.json", told)


async def wait_until_unused(folder: Path, name: str, *, linger_s: float, busy: Callable[[], bool]) -> None:
    """Return when SIGTERM came, or when for `linger_s` there was no user and `busy()` was False.

    The announcement is gone by then: nobody joins any more. Replaces this process's SIGTERM handler.
    """
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    unused_since: float | None = None
    while not told.is_set():
        with _lock_file(folder / f"{name}.lease") as nobody:
            now = time.monotonic()
            if not nobody or busy():
                unused_since = None
            else:
                unused_since = now if unused_since is None else unused_since
                if now - unused_since >= linger_s:
                    (folder / f"{name}.json").unlink(missing_ok=True)  # while nobody can take a lease
                    return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), min(1.0, max(linger_s / 4, _POLL_S)))
    (folder / f"{name}.json").unlink(missing_ok=True)


# --- files ---------------------------------------------------------------------------------------


def _lives(pid: int) -> bool:
    """Whether the process runs; one that was killed may hold its lock for a moment longer."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _flock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[bool]:
    """Hold `path` exclusively while the block runs; False if somebody else does."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _flock(file, fcntl.LOCK_EX)
    finally:
        os.close(file)


def _held(path: Path) -> bool:
    with _lock_file(path) as free:
        return not free


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return told if isinstance(told, dict) else None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Atomically, readable by this user only."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w") as out:
        json.dump(value, out)
    scratch.replace(path)
