"""From an OpenFaaS gateway of the config to its provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Opening, Provider
from fedkeeper.providers.openfaas.config import Cluster
from fedkeeper.providers.openfaas.provider import OpenFaas
from fedkeeper.providers.openfaas.rules import tenant
from fedkeeper.runtime.environment import ClientAccess


@asynccontextmanager
async def open_cluster(opening: Opening) -> AsyncIterator[tuple[Provider, ClientAccess]]:
    """The provider, closed at the end. Gateways let anybody call a function: the forwarder needs no login.

    Raises ConfigError if an address, ca_file or callback_port cannot be right.
    """
    cluster: Cluster = opening.cluster
    gateway, password = cluster.gateway or "", cluster.auth.password
    namespace, callback_port = cluster.namespace, cluster.callback_port
    if cluster.embedded:
        gateway, password = opening.embedded_url, opening.embedded_login
        namespace, callback_port = tenant(opening.name, cluster), callback_port or 0
    if password is not None:
        register_secret(password)
    async with OpenFaas.open(
        opening.name,
        gateway=gateway,
        username=cluster.auth.username,
        password=password,
        namespace=namespace,
        tls_verify=cluster.tls_verify,
        ca_file=cluster.ca_file,
        asynchronous=cluster.invocation == "async",
        callback_port=callback_port,
        callback_host=cluster.callback_host,
        store_images=cluster.embedded,
        requests_in_flight_max=opening.in_flight_max,
        calls_in_flight_max=opening.in_flight_max,
        connect_timeout_s=opening.connect_timeout_s,
        read_timeout_s=opening.request_timeout_s,
        deploy_timeout_s=opening.deploy_timeout_s,
        busy_wait_s=opening.busy_wait_s,
    ) as provider:
        yield (
            provider,
            ClientAccess(
                platform="openfaas",
                tls_verify=cluster.tls_verify,
                ca_pem=cluster.ca_file.read_text() if cluster.ca_file else "",
            ),
        )
