"""From an OpenWhisk cluster of the config to its provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Opening, Provider
from fedkeeper.providers.openwhisk.config import Cluster
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from fedkeeper.runtime.environment import ClientAccess


@asynccontextmanager
async def open_cluster(opening: Opening) -> AsyncIterator[tuple[Provider, ClientAccess]]:
    """The provider, closed at the end, and what the forwarding function proves itself with to the clients.

    Raises ConfigError if host, key or ca_file cannot be right.
    """
    cluster: Cluster = opening.cluster
    if cluster.embedded:
        api_host, auth, namespace = opening.embedded_url, opening.embedded_login, opening.name
    else:
        api_host, auth = cluster.auth.ow_api_host or "", cluster.auth.ow_auth or SecretStr("")
        namespace = cluster.namespace
    register_secret(auth)
    access = ClientAccess(
        platform="openwhisk",
        auth=auth.get_secret_value(),
        tls_verify=cluster.tls_verify,
        ca_pem=cluster.ca_file.read_text() if cluster.ca_file else "",
    )
    async with OpenWhisk.open(
        opening.name,
        api_host=api_host,
        auth=auth,
        namespace=namespace,
        tls_verify=cluster.tls_verify,
        ca_file=cluster.ca_file,
        requests_in_flight_max=opening.in_flight_max,
        connect_timeout_s=opening.connect_timeout_s,
        read_timeout_s=opening.request_timeout_s,
        deploy_timeout_s=opening.deploy_timeout_s,
        busy_wait_s=opening.busy_wait_s,
        limits_fresh_s=opening.limits_fresh_s,
    ) as provider:
        yield provider, access
