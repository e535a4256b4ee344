"""Functions under names of their own on a cluster that several experiments share: `function_prefix`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedkeeper.providers.base import (
    Activation,
    Deployed,
    Package,
    PlatformLimits,
    Progress,
    Provider,
    untold,
)


@dataclass(slots=True)
class Prefixed:
    """A Provider: "client_0" here is PREFIXclient_0 there, and functions without the prefix are not seen."""

    inner: Provider
    prefix: str
    cluster: str = field(init=False)
    platform: str = field(init=False)

    def __post_init__(self) -> None:
        self.cluster, self.platform = self.inner.cluster, self.inner.platform

    async def check(self) -> None:
        """As the inner one."""
        await self.inner.check()

    async def limits(self) -> PlatformLimits:
        """As the inner one."""
        return await self.inner.limits()

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        """As the inner one."""
        theirs = replace(package, function=self.prefix + package.function)
        return self._ours(await self.inner.deploy(theirs, progress))

    async def remove(self, function: str) -> bool:
        """As the inner one."""
        return await self.inner.remove(self.prefix + function)

    async def list(self) -> tuple[Deployed, ...]:
        """Those with the prefix."""
        found = await self.inner.list()
        return tuple(self._ours(one) for one in found if one.function.startswith(self.prefix))

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """As the inner one."""
        return await self.inner.invoke(self.prefix + function, payload, key=key, timeout_s=timeout_s)

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """As the inner one."""
        found = await self.inner.ended(activation_ids, since_ms=since_ms)
        return {name: self._of_ours(one) for name, one in found.items()}

    async def activation(self, activation_id: str) -> Activation | None:
        """As the inner one."""
        found = await self.inner.activation(activation_id)
        return None if found is None else self._of_ours(found)

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """As the inner one."""
        found = await self.inner.activations(activation_ids, since_ms=since_ms)
        return {name: self._of_ours(one) for name, one in found.items()}

    async def close(self) -> None:
        """As the inner one."""
        await self.inner.close()

    def _ours(self, found: Deployed) -> Deployed:
        return replace(found, function=found.function.removeprefix(self.prefix))

    def _of_ours(self, found: Activation) -> Activation:
        return replace(found, function=found.function.removeprefix(self.prefix))
