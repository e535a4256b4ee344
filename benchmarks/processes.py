"""What processes cost: processor time and memory of a process and of all that descends from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import psutil


class Meter:
    """Processor time and memory of several parts, each a process with its descendants."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        """`roots`: the part's name and its process id."""
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self.peak_mb: dict[str, float] = {}

    def pid_of(self, name: str) -> int:
        """Of the part's own process."""
        return int(self._roots[name].pid)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, those of ended children included."""
        return {name: _cpu(root) for name, root in self._roots.items()}

    def look(self) -> None:
        """Remember the largest process of each part (USS, MB)."""
        for name, root in self._roots.items():
            for one in _tree(root):
                try:
                    memory = one.memory_full_info().uss / 2**20
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), memory)


def split_cpu(root: int) -> dict[str, float]:
    """CPU seconds so far of a process itself, and of all that it has started."""
    process = psutil.Process(root)
    own = process.cpu_times()
    return {"own": own.user + own.system, "below": _cpu(process) - own.user - own.system}


def _cpu(root: psutil.Process) -> float:
    while True:
        try:
            return sum(sum(one.cpu_times()[:4]) for one in _tree(root))
        except psutil.NoSuchProcess:  # ended meanwhile: its parent has its seconds now
            continue


def _tree(root: psutil.Process) -> Iterator[psutil.Process]:
    yield root
    try:
        yield from root.children(recursive=True)
    except psutil.NoSuchProcess:
        return
