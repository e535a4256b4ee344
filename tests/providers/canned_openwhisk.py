"""An OpenWhisk provider before a canned platform, and what it is asked to do."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from fedkeeper.clock import FakeClock
from fedkeeper.providers.base import Package
from fedkeeper.providers.openwhisk.provider import OpenWhisk

KEY = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"


def open_to(url: str, **options: Any) -> Any:
    """A provider with short limits."""
    limits = {"connect_timeout_s": 2.0, "read_timeout_s": 5.0, "clock": FakeClock(1_800_000_020_000)}
    return OpenWhisk.open("ow", api_host=url, auth=SecretStr(KEY), **{**limits, **options})


def error(text: str) -> dict[str, str]:
    """OpenWhisk's error body."""
    return {"error": text, "code": "tid_1"}


def package(**changes: Any) -> Package:
    """A package with a secret."""
    values: dict[str, Any] = {
        "function": "client_3",
        "source": "fl_client",
        "archive": b"zip",
        "digest": "d" * 40,
        "environment": {"STORE": SecretStr("geheim")},
        "timeout_s": 1.5,
        "memory_mb": 512,
    }
    return Package(**{**values, **changes})
