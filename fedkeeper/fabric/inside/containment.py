"""What a worker does to itself right after the fork: new session, own pipes, limits, environment."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
FILES_MAX = 1024
DATA_HEADROOM_MB = 384  # what TensorFlow reserves and never touches: VmData of a toy fit is 370 MB


def die_with_parent(signal_number: int, parent: int) -> None:
    """Have the kernel send `signal_number` when the parent ends; end at once if it already has."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that a daemon stays in reach."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_name(name: str) -> None:
    """The name that `ps` and `top` show (15 characters)."""
    _LIBC.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def separate(zygote: int, stdout: int, stderr: int) -> None:
    """Make the calling process, just forked from `zygote`, one of its own: session, pipes, signals."""
    os.setsid()
    die_with_parent(signal.SIGKILL, zygote)
    adopt_orphans()
    set_name("faas-spare")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _streams(stdout, stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def enter(order: dict[str, Any], data_kb: int) -> None:
    """Turn the calling process into the worker of a function.

    `order`: folder, environment, memory_mb, disk_mb, cgroups (files to join). `data_kb`: VmData at the fork.
    """
    for file in order["cgroups"]:
        with open(file, "w") as group:  # noqa: PTH123
            group.write("0")
    set_name("faas-worker")
    _limit(resource.RLIMIT_NOFILE, FILES_MAX)
    _limit(resource.RLIMIT_FSIZE, order["disk_mb"] << 20)
    # Only a backstop: the pool measures. Not RLIMIT_AS, with which TensorFlow cannot map its library.
    _limit(resource.RLIMIT_DATA, (data_kb << 10) + ((order["memory_mb"] + DATA_HEADROOM_MB) << 20))
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(order["environment"])
    folder = order["folder"] = os.path.abspath(order["folder"])  # noqa: PTH100 - the zygote's cwd is the pool's
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # the folder is shared and not ours to change
    random.seed()
    if "numpy" in sys.modules:  # else every worker of this zygote would draw the same numbers
        sys.modules["numpy"].random.seed()


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (value, value))


def _streams(stdout: int, stderr: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    # Line by line, so that the log of an activation that is killed holds what was printed before.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
