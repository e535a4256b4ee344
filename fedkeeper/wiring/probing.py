"""What a keeper asks the others over their APIs: whether they are there, and what they say of the cluster."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import msgspec

from fedkeeper.config import Experiment
from fedkeeper.errors import ApiError
from fedkeeper.keeper.api.schemas import Status
from fedkeeper.replication.base import ClusterLog
from fedkeeper.wiring.embedded import API, announced

PROBE_S: Final = 2.0


@asynccontextmanager
async def open_probing(experiment: Experiment, name: str) -> AsyncIterator[Probing]:
    """For keeper `name`."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_S)) as session:
        yield Probing(experiment, name, session)


class Probing:
    """The token goes only where the config, or the replicated state, says that a keeper is."""

    def __init__(self, experiment: Experiment, name: str, session: aiohttp.ClientSession) -> None:
        api = experiment.keepers.api
        self._experiment = experiment
        self._name = name
        self._session = session
        self._tls = True if api.ca_file is None else ssl.create_default_context(cafile=str(api.ca_file))
        token = api.reader_token or api.operator_token
        self._headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}

    async def healthy(self, url: str) -> None:
        """Ask for its health, which needs no token. ApiError if nothing answers."""
        try:
            async with self._session.get(f"{url}/v1/health", ssl=self._tls) as answer:
                await answer.read()
        except aiohttp.ClientError as exc:
            raise ApiError(f"{url} does not answer: {exc}") from exc

    async def said(self, raft_log: ClusterLog) -> list[Status]:
        """What the other keepers say of the cluster, as far as they answer."""
        urls = self._urls(raft_log)
        answers = await asyncio.gather(
            *(self._status(url) for name, url in urls.items() if name != self._name)
        )
        return [one for one in answers if one is not None]

    def _urls(self, raft_log: ClusterLog) -> Mapping[str, str]:
        keepers = self._experiment.keepers
        if keepers.embedded:
            configured = {name: info[API] for name, info in announced(self._experiment).items()}
        else:
            configured = {name: member.api for name, member in keepers.members.items()}
        return configured | {name: one.api for name, one in raft_log.state.keepers.items() if one.api}

    async def _status(self, url: str) -> Status | None:
        try:
            async with self._session.get(
                f"{url}/v1/status", ssl=self._tls, headers=self._headers, allow_redirects=False
            ) as answer:
                return msgspec.json.decode(await answer.read(), type=Status) if answer.ok else None
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            return None
