"""What a function printed during one call, from /system/logs (openfaas/faas-provider, logs/logs.go)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from fedkeeper.providers.base import Activation

LINES_MAX: Final = 1000
_SLACK_MS: Final = 1000  # the machines' clocks differ, and lines are read a little after they are written


def since(start_ms: int) -> str:
    """RFC 3339, to the second, not after `start_ms`."""
    return datetime.fromtimestamp((start_ms - _SLACK_MS) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def lines(ndjson: bytes, ended: Activation) -> tuple[str, ...]:
    """The lines of the time in which `ended` ran; calls at one time share them."""
    first, last = ended.start_ms - _SLACK_MS, ended.end_ms + _SLACK_MS
    return tuple(text for at_ms, text in _messages(ndjson) if first <= at_ms <= last)


def _messages(ndjson: bytes) -> Iterator[tuple[float, str]]:
    for line in ndjson.splitlines():
        try:
            message = json.loads(line)
            at_ms = datetime.fromisoformat(message["timestamp"]).timestamp() * 1000
            yield at_ms, str(message["text"]).rstrip("\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut off
