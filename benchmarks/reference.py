"""What this machine gives at the moment, beside which a measurement stands: others may be using it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_PIECES = 300
_VALUE = {"name": "load/1", "value": "x" * 100, "numbers": list(range(20))}


def syncs_per_s(folder: Path, size: int, *, seconds: float = 1.0) -> float:
    """Appends of `size` bytes, each with its own fdatasync."""
    file = os.open(folder / "alone", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        os.write(file, b"x" * size)
        os.fdatasync(file)
        count += 1
    os.close(file)
    return count / seconds


def piece_us() -> float:
    """Processor time of a small piece of Python (a JSON round trip): more on a slow or shared core."""
    begun = time.thread_time()
    for _ in range(_PIECES):
        json.loads(json.dumps(_VALUE))
    return (time.thread_time() - begun) / _PIECES * 1e6
