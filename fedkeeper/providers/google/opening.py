"""From a Google Cloud project of the config to its provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from fedkeeper.errors import ConfigError
from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Opening, Provider
from fedkeeper.providers.google.config import Cluster
from fedkeeper.providers.google.provider import Google
from fedkeeper.runtime.environment import ClientAccess


@asynccontextmanager
async def open_cluster(opening: Opening) -> AsyncIterator[tuple[Provider, ClientAccess]]:
    """The provider, closed at the end, and what the forwarding function proves itself with to the clients.

    Raises ConfigError (no project, a broken account's JSON) or AuthenticationRefused (no credentials).
    """
    cluster: Cluster = opening.cluster
    project = cluster.project_id
    if cluster.embedded:
        account, endpoint = dict(opening.embedded_login), opening.embedded_url
    else:
        account, endpoint = cluster.auth.service_account(), cluster.api_endpoint
    if not project:
        raise ConfigError(
            f"providers.google.{opening.name}: which project?", hint="write its project, or auth.project_id"
        )
    if "private_key" in account:
        register_secret(SecretStr(str(account["private_key"])))
    async with Google.open(
        opening.name,
        project=project,
        region=cluster.region,
        service_account=account or None,
        anonymous=cluster.auth.anonymous,
        api_endpoint=endpoint,
        requests_in_flight_max=opening.deployments_in_flight_max,
        calls_in_flight_max=opening.in_flight_max,
        connect_timeout_s=opening.connect_timeout_s,
        request_timeout_s=opening.request_timeout_s,
        deploy_timeout_s=opening.deploy_timeout_s,
        busy_wait_s=opening.busy_wait_s,
        # the embedded fabric has no quotas
        reads_per_minute=0 if cluster.embedded else cluster.reads_per_minute,
        writes_per_minute=0 if cluster.embedded else cluster.writes_per_minute,
    ) as provider:
        # without credentials its functions are called like those of any gateway
        how = "http" if cluster.auth.anonymous else "google"
        yield provider, ClientAccess(platform=how, service_account=account)
