"""Control groups for workers, where this process may make them: the kernel then holds the limits itself.

Version 1 (one hierarchy for memory, one for pids) and version 2 (one for all, if it was delegated to us).
What cannot be had is left out: the pool measures and kills in any case.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fedkeeper.fabric.inside import processes

log = structlog.get_logger(__name__)
CONTROLLERS = ("memory", "pids")
END_S_MAX = 5.0
MAKE_TRIES = 3
_UNIFIED = ""  # version 2's name in the table of hierarchies


@dataclass(frozen=True, slots=True)
class Group:
    """The control groups of one worker."""

    folders: tuple[Path, ...]
    events: tuple[str, ...] = ()  # files that count what the kernel has killed, read several times a second

    @property
    def join(self) -> list[str]:
        """Files in which a process writes "0" to become a member."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because the memory was used up."""
        kills = 0
        for file in self.events:
            for line in _text(file).splitlines():
                field, _, count = line.partition(" ")
                kills += int(count) if field == "oom_kill" else 0
        return kills

    def end(self) -> None:
        """Kill all members, whatever they have become, and remove the groups. Blocking."""
        deadline = time.monotonic() + END_S_MAX
        for folder in self.folders:
            while folder.exists() and time.monotonic() < deadline:
                _kill(folder)
                with contextlib.suppress(OSError):  # busy until the last of them is reaped
                    folder.rmdir()
                    break
                time.sleep(0.005)


class Cgroups:
    """The groups of one pool: `<ours>/faas-<pool>/<worker>` in each hierarchy that can be used.

    `<pool>` is made for the first worker and not before: then there is a zygote, which removes it when this
    process is killed.
    """

    def __init__(self, roots: dict[str, Path]) -> None:
        self._roots = roots  # controllers, separated by blanks -> folder

    @property
    def roots(self) -> list[Path]:
        """The pool's own groups, which hold those of its workers."""
        return list(self._roots.values())

    @property
    def controllers(self) -> tuple[str, ...]:
        """What is limited by groups: memory, pids, both or nothing."""
        return tuple(sorted({name for names in self._roots for name in names.split()}))

    @classmethod
    def open(cls, pool: Path) -> Cgroups:
        """Groups for the pool of this folder; what an earlier one left is killed and removed. Blocking."""
        name = group_name(pool)
        roots = {}
        for controllers, base in _bases().items():
            root = base / name
            try:
                if root.exists():
                    _remove(root)
                _make_root(root, controllers)
                root.rmdir()
            except OSError as exc:
                log.debug("no control groups here", folder=str(root), error=repr(exc))
                continue
            roots[controllers] = root
        return cls(roots)

    def make(self, worker: str, *, memory_mb: int, processes_max: int) -> Group:
        """Groups with these limits; without those that fail."""
        folders, events = [], []
        for controllers, root in self._roots.items():
            folder = root / worker
            try:
                _make_in(root, controllers, folder)
                if "memory" in controllers:
                    events.append(str(_limit_memory(folder, memory_mb << 20)))
                if "pids" in controllers:
                    (folder / "pids.max").write_text(str(processes_max))
            except OSError as exc:
                log.warning("a worker without control group", folder=str(folder), error=repr(exc))
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            folders.append(folder)
        return Group(tuple(folders), tuple(events))

    def close(self) -> None:
        """Kill what is left in the groups and remove them. Blocking."""
        for root in self._roots.values():
            _remove(root)


def group_name(pool: Path) -> str:
    """What the groups of the pool of this folder are called, in every hierarchy."""
    return f"faas-{hashlib.sha256(os.fsencode(pool.resolve())).hexdigest()[:12]}"


def _bases() -> dict[str, Path]:
    """Where our own process is in each hierarchy that can limit memory or processes."""
    own = {}
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        own[names] = path
    bases: dict[str, Path] = {}
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mounted, point = left.split(" ")[3:5]
        if kind == "cgroup2":
            base = _under(Path(point), mounted, own.get(_UNIFIED, "/"))
            offered = set(_text(base / "cgroup.controllers").split()) & set(CONTROLLERS)
            if offered and _delegated(base, offered):
                bases[" ".join(sorted(offered))] = base
        elif kind == "cgroup":
            for name in CONTROLLERS:
                if name in options.split(","):
                    path = next((p for names, p in own.items() if name in names.split(",")), "/")
                    bases[name] = _under(Path(point), mounted, path)
    return bases


def _under(point: Path, mounted: str, path: str) -> Path:
    """The folder of control group `path` where `mounted` is seen at `point`; in a container often `point`."""
    inner = path.removeprefix(mounted) if mounted != "/" else path
    folder = point / inner.lstrip("/")
    return folder if folder.is_dir() else point


def _delegated(base: Path, controllers: Iterable[str]) -> bool:
    """Make version 2's group `base` pass controllers on: then it may hold no process, so it must be ours."""
    control = base / "cgroup.subtree_control"
    if set(controllers) <= set(_text(control).split()):
        return True
    try:
        members = {int(pid) for pid in _text(base / "cgroup.procs").split()}
        if members and members <= {os.getpid(), *processes.descendants([os.getpid()], processes.parents())}:
            leaf = base / "fedkeeper"
            leaf.mkdir(exist_ok=True)
            for pid in members:
                (leaf / "cgroup.procs").write_text(str(pid))
        control.write_text(_enable(" ".join(controllers)))
    except OSError as exc:
        log.debug("control group not delegated", folder=str(base), error=repr(exc))
        return False
    return True


def _enable(controllers: str) -> str:
    return " ".join(f"+{name}" for name in controllers.split())


def _limit_memory(folder: Path, nbytes: int) -> Path:
    """The file that counts what the kernel kills for it."""
    if (folder / "memory.limit_in_bytes").exists():  # version 1
        (folder / "memory.limit_in_bytes").write_text(str(nbytes))
        with contextlib.suppress(OSError):  # a kernel that does not count swap
            (folder / "memory.memsw.limit_in_bytes").write_text(str(nbytes))
        return folder / "memory.oom_control"
    (folder / "memory.max").write_text(str(nbytes))
    with contextlib.suppress(OSError):
        (folder / "memory.swap.max").write_text("0")
    return folder / "memory.events"


def _make_root(root: Path, controllers: str) -> None:
    with contextlib.suppress(FileExistsError):
        root.mkdir()
        if (root / "cgroup.controllers").exists():  # version 2
            (root / "cgroup.subtree_control").write_text(_enable(controllers))


def _make_in(root: Path, controllers: str, folder: Path) -> None:
    for _ in range(MAKE_TRIES):  # a zygote that ends takes an empty root along
        _make_root(root, controllers)
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir()
            return
    raise FileNotFoundError(f"{root} is removed again and again")


def _remove(root: Path) -> None:
    inner = tuple(folder for folder in root.iterdir() if folder.is_dir()) if root.exists() else ()
    Group((*inner, root)).end()


def _kill(folder: Path) -> None:
    kill = folder / "cgroup.kill"
    if kill.exists():
        with contextlib.suppress(OSError):
            kill.write_text("1")
        return
    for pid in _text(folder / "cgroup.procs").split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _text(path: Path | str) -> str:
    try:
        with open(path) as file:  # noqa: PTH123 - a Path of it would cost more than the reading
            return file.read()
    except OSError:
        return ""
