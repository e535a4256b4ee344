"""An OpenFaaS provider before a canned gateway, and what it is asked to do."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from fedkeeper.clock import FakeClock
from fedkeeper.providers.base import Package
from fedkeeper.providers.openfaas.provider import OpenFaas

PASSWORD = "geheim-0123456789abcdef"
START_MS = 1_800_000_020_000


def open_to(url: str, **options: Any) -> Any:
    """A provider with short limits."""
    limits = {
        "connect_timeout_s": 2.0,
        "read_timeout_s": 5.0,
        "deploy_timeout_s": 10.0,
        "clock": FakeClock(START_MS),
    }
    return OpenFaas.open("edge", gateway=url, password=SecretStr(PASSWORD), **{**limits, **options})


def status(**changes: Any) -> dict[str, Any]:
    """The FunctionStatus of `package`."""
    notes = {"fedkeeper-function": "client_3", "fedkeeper-digest": "d" * 40}
    return {
        "name": "client-3",
        "namespace": "openfaas-fn",
        "image": "lab/fl_client:1",
        "replicas": 1,
        "availableReplicas": 1,
        "annotations": notes,
        "limits": {"memory": "512Mi"},
        **changes,
    }


def package(**changes: Any) -> Package:
    """A package with an image and a secret."""
    values: dict[str, Any] = {
        "function": "client_3",
        "source": "fl_client",
        "archive": b"zip",
        "digest": "d" * 40,
        "image": "lab/fl_client:1",
        "environment": {"STORE": SecretStr("geheim")},
        "timeout_s": 1.5,
        "memory_mb": 512,
    }
    return Package(**{**values, **changes})
