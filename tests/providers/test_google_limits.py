"""How long the Google provider waits: for a connection, and for an answer; whatever the libraries would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from fedkeeper.errors import InvocationUnknown, ProviderUnavailable
from tests.providers.canned import Canned
from tests.providers.canned_google import account, act, function, open_to

PATIENT = {"request_timeout_s": 600.0, "deploy_timeout_s": 600.0}
SOON_S = 60  # far more than a connection gets in these tests, far less than an answer


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address that neither takes a connection nor refuses one: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


async def test_the_api_has_its_time_to_connect(nowhere: str, cloud: Canned) -> None:
    """Nothing was sent, so it is definite; an answer could take ten minutes all the same."""
    async with open_to(
        nowhere, service_account=account(cloud.url), connect_timeout_s=0.3, **PATIENT
    ) as provider:
        for what in ("check", "remove"):
            async with asyncio.timeout(SOON_S):
                with pytest.raises(ProviderUnavailable):
                    await act(provider, what)


@pytest.mark.parametrize("what", ["upload", "token", "function"])
async def test_whatever_is_called_has_its_time_to_connect(nowhere: str, cloud: Canned, what: str) -> None:
    """The archive's place, the token endpoint, the function itself."""
    place = {"uploadUrl": f"{nowhere}/upload", "storageSource": {"bucket": "b", "object": "o"}}
    cloud.when("POST", ":generateUploadUrl", 200, place)
    if what == "function":
        cloud.when("GET", "/functions/client-3", 200, function(nowhere))
    who = account(nowhere if what == "token" else cloud.url)
    async with open_to(cloud.url, service_account=who, connect_timeout_s=0.3, **PATIENT) as provider:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(ProviderUnavailable):
                await act(provider, "deploy" if what == "upload" else "invoke")


@pytest.mark.parametrize(
    ("held", "what", "kind"),
    [
        ("/v2/", "check", ProviderUnavailable),
        ("/v2/", "remove", InvocationUnknown),
        ("/token", "invoke", ProviderUnavailable),
    ],
)
async def test_an_answer_has_its_time(cloud: Canned, held: str, what: str, kind: type[Exception]) -> None:
    """Of the API and of the token endpoint; google-auth alone would wait two minutes for a token."""
    cloud.hold, cloud.held = asyncio.Event(), held
    async with open_to(cloud.url, request_timeout_s=0.3) as provider:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(kind):
                await act(provider, what)
