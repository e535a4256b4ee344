"""Starts keepers in a moment: a process that has imported what they need, and forks.

A keeper that was killed is back as soon as it has read its files; what Python needs to start is not measured.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

PARTS = ("fedkeeper.cli", "fedkeeper.wiring.hosting", "fedkeeper.wiring.keeper", "fedkeeper.wiring.models")


class Forked:
    """As a subprocess.Popen, of what the starter has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    def poll(self) -> int | None:
        """None while it runs. How it ended is not known."""
        return None if self._process is not None and self._process.is_running() else 0

    def send_signal(self, number: int) -> None:
        """If it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Until it has ended; subprocess.TimeoutExpired."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)


class Starter:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.starter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, arguments: list[str], *, folder: Path, output: Path) -> Forked:
        """`main.py` with these arguments, in that folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = json.dumps({"arguments": arguments, "folder": str(folder), "output": str(output)})
        self._process.stdin.write(told.encode() + b"\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()))

    def close(self) -> None:
        """What it has forked goes on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def main() -> None:
    """Fork for every line."""
    for part in PARTS:
        importlib.import_module(part)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin.buffer:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be(told["arguments"], Path(told["folder"]), Path(told["output"]))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _be(arguments: list[str], folder: Path, output: Path) -> None:
    from fedkeeper.cli import main as command  # noqa: PLC0415 - imported already, by the starter

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, out), (2, out)):
        os.dup2(file, number)
    try:
        command(arguments, prog_name="main.py")
    except SystemExit as exc:
        os._exit(exc.code if isinstance(exc.code, int) else 1)
    os._exit(0)


if __name__ == "__main__":
    main()
