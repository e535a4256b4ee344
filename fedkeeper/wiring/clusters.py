"""From the config's clusters to providers: real ones by their addresses, embedded ones by the fabric's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fedkeeper.clock import SystemClock
from fedkeeper.config import Cluster, Experiment
from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.platforms import part
from fedkeeper.providers.base import Opening, Provider
from fedkeeper.providers.prefixed import Prefixed
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.wiring.keeping import keep_alive, keep_open


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """The opened clusters, and how the forwarding function reaches their clients (secret)."""

    providers: Mapping[str, Provider]
    access: Mapping[str, ClientAccess] = field(repr=False)


async def open_clusters(experiment: Experiment, names: Collection[str], stack: AsyncExitStack) -> Clusters:
    """Open the clusters `names`; an embedded fabric is started if one of them needs it."""
    clusters = {name: experiment.cluster(name) for name in names}
    fabric = await _open_fabric(experiment, clusters, stack)
    providers: dict[str, Provider] = {}
    access: dict[str, ClientAccess] = {}
    for name, cluster in clusters.items():
        opening = Opening(
            name=name,
            cluster=cluster,
            embedded_url=fabric.url if fabric and cluster.embedded else "",
            embedded_login=_login(fabric, name, cluster) if fabric and cluster.embedded else None,
            in_flight_max=experiment.in_flight_max(name),
            deployments_in_flight_max=experiment.limits.deployments_in_flight_max,
            connect_timeout_s=experiment.limits.connect_timeout_s,
            request_timeout_s=experiment.limits.request_timeout_s,
            deploy_timeout_s=experiment.limits.deploy_timeout_s,
            busy_wait_s=experiment.limits.busy_wait_s,
            limits_fresh_s=experiment.limits.platform_limits_fresh_s,
        )
        open_cluster = part(cluster.platform, "opening").open_cluster
        provider, access[name] = await stack.enter_async_context(open_cluster(opening))
        providers[name] = provider
        if experiment.function_prefix:
            providers[name] = Prefixed(provider, experiment.function_prefix)
    return Clusters(providers=providers, access=access)


async def _open_fabric(
    experiment: Experiment, clusters: Mapping[str, Cluster], stack: AsyncExitStack
) -> FabricAddress | None:
    embedded = {name: cluster for name, cluster in clusters.items() if cluster.embedded}
    if not embedded:
        return None
    settings = experiment.embedded
    fabric = await open_fabric(
        settings.data_dir / "fabric",
        port=settings.fabric_port,
        namespaces=_tenants(embedded, "openwhisk"),
        projects=_tenants(embedded, "google"),
        memory_mb=settings.memory_mb,
        queue_max=settings.queue_max,
        connections_max=settings.connections_max,
        payload_mb_max=settings.payload_mb_max,
        share_workers=settings.share_workers,
        workers_busy_max=settings.workers_busy_max,
        invocations_per_minute=settings.invocations_per_minute,
        images=settings.images,
        linger_s=settings.linger_s,
        start_timeout_s=settings.start_timeout_s,
    )
    stack.push_async_callback(fabric.close)
    keep_open(stack, keep_alive("fabric", fabric.ensure, SystemClock()))
    return fabric.address


def _tenants(clusters: Mapping[str, Cluster], platform: str) -> list[str]:
    """What the embedded platform must know of: namespaces of OpenWhisk, projects of Google …"""
    tenant = part(platform, "rules").tenant
    return [tenant(name, one) for name, one in clusters.items() if one.platform == platform]


def _login(fabric: FabricAddress, name: str, cluster: Cluster) -> Any:
    """What proves us to the embedded platform of `cluster`."""
    tenant = part(cluster.platform, "rules").tenant(name, cluster)
    return fabric.login(cluster.platform, tenant)
