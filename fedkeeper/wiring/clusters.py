"""From the config's clusters to providers: real ones by their addresses, embedded ones by the fabric's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog
from pydantic import SecretStr

from fedkeeper.clock import SystemClock
from fedkeeper.config import Experiment
from fedkeeper.config.providers import AnyCluster, GoogleCluster, OpenWhiskCluster
from fedkeeper.errors import ConfigError
from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Provider
from fedkeeper.providers.registry import provider_class
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.wiring.keeping import keep_alive, keep_open

log = structlog.get_logger(__name__)


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
        if isinstance(cluster, OpenWhiskCluster) and not cluster.tls_verify:
            log.warning("TLS certificates of this cluster are not verified", cluster=name)
        if isinstance(cluster, OpenWhiskCluster):
            providers[name], access[name] = await _openwhisk(experiment, name, cluster, fabric, stack)
        else:
            providers[name], access[name] = await _google(experiment, name, cluster, fabric, stack)
    return Clusters(providers=providers, access=access)


async def _open_fabric(
    experiment: Experiment, clusters: Mapping[str, AnyCluster], stack: AsyncExitStack
) -> FabricAddress | None:
    embedded = {name: cluster for name, cluster in clusters.items() if cluster.embedded}
    if not embedded:
        return None
    settings = experiment.embedded
    fabric = await open_fabric(
        settings.data_dir / "fabric",
        port=settings.fabric_port,
        namespaces=[name for name, cluster in embedded.items() if isinstance(cluster, OpenWhiskCluster)],
        projects=[cluster.project_id for cluster in embedded.values() if isinstance(cluster, GoogleCluster)],
        memory_mb=settings.memory_mb,
        linger_s=settings.linger_s,
        start_timeout_s=settings.start_timeout_s,
    )
    stack.push_async_callback(fabric.close)
    keep_open(stack, keep_alive("fabric", fabric.ensure, SystemClock()))
    return fabric.address


async def _openwhisk(
    experiment: Experiment,
    name: str,
    cluster: OpenWhiskCluster,
    fabric: FabricAddress | None,
    stack: AsyncExitStack,
) -> tuple[Provider, ClientAccess]:
    if cluster.embedded:
        assert fabric is not None
        api_host, auth, namespace = fabric.url, fabric.openwhisk_auth[name], name
    else:
        api_host, auth, namespace = cluster.host, cluster.auth.ow_auth or SecretStr(""), cluster.namespace
    register_secret(auth)
    provider = await stack.enter_async_context(
        provider_class("openwhisk").open(
            name,
            api_host=api_host,
            auth=auth,
            namespace=namespace,
            tls_verify=cluster.tls_verify,
            ca_file=cluster.ca_file,
            requests_in_flight_max=experiment.in_flight_max(name),
            read_timeout_s=experiment.limits.request_timeout_s,
            deploy_timeout_s=experiment.limits.deploy_timeout_s,
        )
    )
    access = ClientAccess(
        platform="openwhisk",
        auth=auth.get_secret_value(),
        tls_verify=cluster.tls_verify,
        ca_pem=cluster.ca_file.read_text() if cluster.ca_file else "",
    )
    return provider, access


async def _google(
    experiment: Experiment,
    name: str,
    cluster: GoogleCluster,
    fabric: FabricAddress | None,
    stack: AsyncExitStack,
) -> tuple[Provider, ClientAccess]:
    project = cluster.project_id
    if cluster.embedded:
        assert fabric is not None
        account, endpoint = dict(fabric.service_accounts[project]), fabric.url
    else:
        account, endpoint = cluster.auth.service_account(), cluster.api_endpoint
    if not project:
        raise ConfigError(
            f"providers.google.{name}: which project?", hint="write its project, or auth.project_id"
        )
    if "private_key" in account:
        register_secret(SecretStr(str(account["private_key"])))
    provider = await stack.enter_async_context(
        provider_class("google").open(
            name,
            project=project,
            region=cluster.region,
            service_account=account or None,
            api_endpoint=endpoint,
            requests_in_flight_max=experiment.limits.deployments_in_flight_max,
            calls_in_flight_max=experiment.in_flight_max(name),
            request_timeout_s=experiment.limits.request_timeout_s,
            deploy_timeout_s=experiment.limits.deploy_timeout_s,
        )
    )
    return provider, ClientAccess(platform="google", service_account=account)
