"""nodeinfo: where does a function run? The standard library is enough."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path


def describe() -> dict[str, str | int | float | None]:
    """Facts of the machine (or container) that runs this; None for what it does not tell.

    cpus: those this process may use; memory: bytes of the machine, and of the container where it has a
    limit; uptime: seconds since the machine started.
    """
    return {
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "system": platform.system(),
        "arch": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_total_bytes": _memory_total(),
        "memory_available_bytes": _memory_available(),
        "memory_limit_bytes": _memory_limit(),
        "uptime_s": _uptime(),
        "python": platform.python_version(),
    }


def _memory_total() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _memory_available() -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _memory_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(path).strip()
        if text.isdigit() and int(text) < 1 << 60:  # cgroup v1 says "no limit" with a huge number
            return int(text)
    return None


def _uptime() -> float | None:
    text = _text("/proc/uptime").split()
    return float(text[0]) if text else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""  # not Linux, or not for us to see
