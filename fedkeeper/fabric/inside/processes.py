"""The process table, from /proc: who descends from whom, and how much memory it holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


def parents() -> dict[int, int]:
    """Every process id of this machine and its parent's."""
    table = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - in the hot path, and names are all it needs
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123 - likewise
                # The name is in brackets and may itself hold brackets and blanks.
                table[int(entry)] = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue  # gone in the meantime
    return table


def parents_below(roots: Iterable[int]) -> dict[int, int]:
    """Of the same table, those that descend from `roots`, without a look at all others of the machine.

    One that is being forked this moment may be missing: for measuring, not for killing.
    """
    if not os.path.exists("/proc/thread-self/children"):  # noqa: PTH110 - a kernel without CONFIG_PROC_CHILDREN
        return parents()
    table: dict[int, int] = {}
    queue = list(roots)
    while queue:
        parent = queue.pop()
        for child in _children(parent):
            table[child] = parent
            queue.append(child)
    return table


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - of each thread its own
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except OSError:
        pass  # gone in the meantime
    return found


def descendants(roots: Iterable[int], table: dict[int, int]) -> list[int]:
    """All that descend from `roots`, without them, parents first."""
    children: dict[int, list[int]] = {}
    for pid, parent in table.items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = list(roots)
    while queue:
        mine = children.get(queue.pop(), [])
        found += mine
        queue += mine
    return found


def kill_marked(mark: str) -> None:
    """Kill every process of ours whose start-up environment holds `mark` ("NAME=value")."""
    for pid in parents():
        try:
            process = os.pidfd_open(pid)  # so that what is killed is what was looked at
        except OSError:
            continue
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                if mark.encode() in file.read().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
        except OSError:
            pass  # gone, or another user's
        finally:
            os.close(process)


def threads() -> int:
    """Number of threads of the calling process, those of native libraries too."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def anonymous_kb(pid: int) -> int:
    """Resident anonymous memory in KiB (RssAnon): what the process wrote, not the libraries it maps."""
    return _field_kb(f"/proc/{pid}/status", b"RssAnon:")


def data_kb(pid: int) -> int:
    """Size of the private writable mappings in KiB (VmData): what RLIMIT_DATA limits."""
    return _field_kb(f"/proc/{pid}/status", b"VmData:")


def proportional_kb(pid: int) -> int:
    """Anonymous memory in KiB, pages shared with n others counted 1/n (Pss_Anon). Costs some ms."""
    return _field_kb(f"/proc/{pid}/smaps_rollup", b"Pss_Anon:")


def _field_kb(path: str, name: bytes) -> int:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass  # the process is gone, or the kernel has no such file
    return 0
