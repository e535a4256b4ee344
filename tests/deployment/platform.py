"""A platform in memory, which does as it is told and counts what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from fedkeeper.deployment import Wanted
from fedkeeper.errors import FedKeeperError
from fedkeeper.providers.base import Activation, Deployed, Package, Progress, untold


def package(function: str, digest: str = "d1", owner: str = "") -> Package:
    """A package of nothing."""
    return Package(function=function, source=function, archive=b"", digest=digest, owner=owner)


def wanted(cluster: str, *functions: str, digest: str = "d1", owner: str = "") -> list[Wanted]:
    """Those functions on that cluster."""
    return [Wanted(cluster=cluster, package=package(function, digest, owner)) for function in functions]


class FakePlatform:
    """A Provider. `failures`: function -> errors raised one after another by deploy and remove."""

    def __init__(self, cluster: str, platform: str = "openwhisk") -> None:
        self.cluster = cluster
        self.platform = platform
        self.functions: dict[str, Deployed] = {}
        self.failures: dict[str, list[FedKeeperError]] = {}
        self.list_failures: list[FedKeeperError] = []
        self.listed = 0
        self.asked: list[str] = []
        self.in_flight = 0
        self.in_flight_seen = 0
        self.closed = False

    def put(self, function: str, *, digest: str = "d1", state: str = "active", owner: str = "") -> None:
        """Have a function there already."""
        self.functions[function] = Deployed(
            function=function,
            state=state,
            version="0.0.1",
            digest=digest,
            owner=owner,
            url=f"https://{self.cluster}.example/{function}",
            updated_ms=1_700_000_000_000,
            details={"memory": 256},
        )

    async def check(self) -> None:
        pass

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        await self._act(f"deploy {package.function}", package.function)
        self.put(package.function, digest=package.digest, owner=package.owner)
        return self.functions[package.function]

    async def remove(self, function: str) -> bool:
        await self._act(f"remove {function}", function)
        return self.functions.pop(function, None) is not None

    async def list(self) -> tuple[Deployed, ...]:
        self.listed += 1
        if self.list_failures:
            raise self.list_failures.pop(0)
        return tuple(self.functions.values())

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        raise NotImplementedError

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        return {}

    async def activation(self, activation_id: str) -> Activation | None:
        return None

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        return {}

    async def close(self) -> None:
        self.closed = True

    async def _act(self, what: str, function: str) -> None:
        self.asked.append(what)
        self.in_flight += 1
        self.in_flight_seen = max(self.in_flight_seen, self.in_flight)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if self.failures.get(function):
            raise self.failures[function].pop(0)
