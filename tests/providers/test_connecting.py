"""How long a platform that takes no connection is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from fedkeeper.errors import ProviderUnavailable
from fedkeeper.platforms import part
from fedkeeper.providers.base import Opening


@pytest.fixture
def silent() -> Iterator[str]:
    """Where a port is open and nobody takes a connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


CLUSTERS: dict[str, Any] = {
    "openwhisk": lambda url: {"auth": {"ow_api_host": url, "ow_auth": SecretStr("u:k")}},
    "openfaas": lambda url: {"gateway": url},
}


@pytest.mark.parametrize("platform", CLUSTERS)
async def test_the_connection_has_a_limit_of_its_own(silent: str, platform: str) -> None:
    """`limits.connect_timeout_s` ends the wait, however long an answer may take; nothing was sent."""
    cluster = part(platform, "config").Cluster.model_validate(CLUSTERS[platform](silent))
    opening = Opening(
        name="far",
        cluster=cluster,
        in_flight_max=2,
        deployments_in_flight_max=2,
        connect_timeout_s=0.2,
        request_timeout_s=3600,
        deploy_timeout_s=3600,
    )
    async with part(platform, "opening").open_cluster(opening) as (provider, _):
        with pytest.raises(ProviderUnavailable, match="not sent") as caught:
            async with asyncio.timeout(60):
                await provider.check()
    assert caught.value.definite
