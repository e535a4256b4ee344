"""Being a keeper: one of an experiment's, in this process, embedded or on a host of its own."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import structlog

from fedkeeper import service
from fedkeeper.config import Experiment, Member, host_and_port, member_to_start
from fedkeeper.errors import FedKeeperError, ServiceError
from fedkeeper.logs import register_secret
from fedkeeper.replication.raft.base import Resolve
from fedkeeper.wiring.embedded import (
    API,
    CONFIG,
    RAFT,
    address_of,
    config_digest,
    service_name,
    shared_secret,
)
from fedkeeper.wiring.keeper import Keeper, open_keeper

ANY_PORT = ("127.0.0.1", 0)

log = structlog.get_logger(__name__)


async def host_keeper(experiment: Experiment, name: str, *, until_unused: bool, stop: asyncio.Event) -> None:
    """Be keeper `name` until `stop` is set; with `until_unused` until SIGTERM, or nobody uses it any more.

    Raises:
        ConfigError: there is no such keeper, or it would not be safe to start it.
        ServiceError: it runs already.
        FedKeeperError: why it does not start, or has stopped by itself.
    """
    member = member_to_start(experiment, name)
    folder, called = experiment.keepers_folder, service_name(name)
    secret = shared_secret(experiment) if member is None else experiment.keepers.secret
    if secret is not None:
        register_secret(secret)
    with service.own(folder, called):
        announced = False
        try:
            async with open_keeper(
                experiment,
                name,
                secret=secret,
                resolve=_resolver(experiment),
                raft_bind=ANY_PORT if member is None else host_and_port(member.raft_bind or member.raft),
                api_bind=ANY_PORT if member is None else _api_bind(member),
                api_url="" if member is None else member.api,
            ) as keeper:
                told = {API: keeper.api_url, RAFT: keeper.raft_address, CONFIG: config_digest(experiment)}
                service.announce(folder, called, told)
                announced = True
                log.info("keeper is up", keeper=name, api=keeper.api_url, raft=keeper.raft_address)
                await _until_end(experiment, keeper, called, until_unused=until_unused, stop=stop)
        except FedKeeperError as exc:
            if not announced:
                service.report_failure(folder, called, _for_who_starts_it(exc))
            log.error("keeper has stopped", keeper=name, problem=str(exc))
            raise
        log.info("keeper has ended", keeper=name)


async def _until_end(
    experiment: Experiment, keeper: Keeper, called: str, *, until_unused: bool, stop: asyncio.Event
) -> None:
    waiting = {asyncio.ensure_future(keeper.stopped()), asyncio.ensure_future(stop.wait())}
    if until_unused:
        unused = service.wait_until_unused(
            experiment.keepers_folder, called, linger_s=experiment.embedded.linger_s, busy=keeper.busy
        )
        waiting.add(asyncio.ensure_future(unused))
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _resolver(experiment: Experiment) -> Resolve:
    members = experiment.keepers.members

    def resolve(name: str) -> tuple[str, int] | None:
        if experiment.keepers.embedded:
            return address_of(experiment, name)
        return host_and_port(members[name].raft) if name in members else None

    return resolve


def _api_bind(member: Member) -> tuple[str, int]:
    if member.api_bind:
        return host_and_port(member.api_bind)
    url = urlsplit(member.api)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _for_who_starts_it(error: FedKeeperError) -> ServiceError:
    return error if isinstance(error, ServiceError) else ServiceError(str(error), hint=error.hint)
