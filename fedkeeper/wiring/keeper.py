"""One keeper process: its log, store, platforms, API and engine, opened and closed in one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import structlog
from pydantic import SecretStr

from fedkeeper import logs
from fedkeeper.clock import SystemClock
from fedkeeper.config import Experiment
from fedkeeper.core.conducting import Placement, Policy
from fedkeeper.errors import StoreUnavailable
from fedkeeper.keeper.api.app import open_api
from fedkeeper.keeper.api.server import listen
from fedkeeper.keeper.api.settings import ApiSettings
from fedkeeper.keeper.belonging import Belonging
from fedkeeper.keeper.conducting import CANNOT_S, Conducting
from fedkeeper.keeper.engine import Tools
from fedkeeper.keeper.invoking import Invoker
from fedkeeper.keeper.measuring import Measuring
from fedkeeper.keeper.node import Keeper, KeeperControl
from fedkeeper.keeper.watching import Pace
from fedkeeper.replication.raft.base import Network, Resolve
from fedkeeper.replication.raft.cluster import RaftLog
from fedkeeper.replication.raft.network import PeerNetwork
from fedkeeper.replication.raft.network.channels import Credentials, Unprotected
from fedkeeper.replication.raft.network.secret import SharedSecret
from fedkeeper.replication.raft.network.tls import MutualTls
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.base import UpdateStore
from fedkeeper.weights.mongo import MongoUpdates
from fedkeeper.wiring.clusters import Clusters, open_clusters
from fedkeeper.wiring.deploying import RunDeployer
from fedkeeper.wiring.keeping import keep_open
from fedkeeper.wiring.probing import Probing, open_probing
from fedkeeper.wiring.reporting import RunReports
from fedkeeper.wiring.session import open_store_address
from fedkeeper.wiring.submitting import Submission, check_submission, submission

__all__ = ["Keeper", "Submission", "open_keeper", "submission"]

ORPHANS_OLDER_THAN_S: Final = 86_400.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_keeper(
    experiment: Experiment,
    name: str,
    *,
    secret: SecretStr | None,
    resolve: Resolve,
    raft_bind: tuple[str, int],
    api_bind: tuple[str, int],
    api_url: str = "",
) -> AsyncIterator[Keeper]:
    """Keeper `name`, working for as long as the block runs. Both its ports listen when the block begins.

    Args:
        experiment: the config; its rules for starting a keeper here have been checked.
        name: one of `keepers`.
        secret: proves one keeper to the other; None: mutual TLS as configured, or loopback without anything.
        resolve: where the other keepers' Raft ports are.
        raft_bind: host and port to listen on for the other keepers; port 0: any.
        api_bind: the same for the API.
        api_url: where others reach the API; empty: where it listens.

    Raises:
        PortTaken, ConfigError, ServiceError: it cannot be opened; JournalError: its files are damaged, …
    """
    async with AsyncExitStack() as stack:
        folder = experiment.keepers_folder / name
        logs.to_folders(experiment.logs.folder, own=folder / "events.jsonl", keeper=name)
        listener = listen(*api_bind)
        stack.callback(listener.close)
        raft_log, raft_address = await _open_log(
            experiment, name, secret=secret, resolve=resolve, bind=raft_bind, stack=stack
        )
        address, clusters = await _open_services(experiment, stack)
        tools = _tools(experiment, address, clusters, stack)
        conducting = Conducting(
            keeper=name,
            log=raft_log,
            tools=tools,
            policy=_policy(experiment),
            lease_s=experiment.keepers.lease_s,
            cannot_s=(CANNOT_S, experiment.keepers.cannot_conduct_max_s),
        )
        control = KeeperControl(
            log=raft_log,
            conducting=conducting,
            store=tools.store,
            check=lambda spec, fingerprint: check_submission(experiment, spec, fingerprint),
            config=experiment.redacted(),
            clock=tools.clock,
        )
        api = await stack.enter_async_context(
            open_api(raft_log, control, listener, settings=_api_settings(experiment), clock=tools.clock)
        )
        keep_open(stack, _prepare_store(tools.store))
        probing = await stack.enter_async_context(open_probing(experiment, name))
        keeper = Keeper(
            name=name,
            log=raft_log,
            conducting=conducting,
            measuring=_measuring(experiment, name, raft_log, tools, probing),
            belonging=Belonging(log=raft_log, ask=partial(probing.said, raft_log), clock=tools.clock),
            clock=tools.clock,
            api_url=(api_url or api.url).rstrip("/"),
            raft_address=raft_address,
        )
        keeper.start()
        stack.push_async_callback(keeper.close)
        yield keeper


def _tools(experiment: Experiment, address: StoreAddress, clusters: Clusters, stack: AsyncExitStack) -> Tools:
    """What this keeper acts with when it conducts."""
    limits, clock = experiment.limits, SystemClock()
    store = MongoUpdates(address)
    stack.push_async_callback(store.close)
    return Tools(
        store=store,
        invoker=Invoker(
            providers=clusters.providers,
            store=store,
            clock=clock,
            in_flight_max=experiment.in_flight_max,
            platform_wait_s=limits.platform_wait_s,
            platform_pause_max_s=limits.platform_pause_max_s,
            look_again_s=limits.look_again_s,
        ),
        deployer=RunDeployer(experiment=experiment, clusters=clusters, store=address),
        reports=RunReports(experiment=experiment, providers=clusters.providers),
        clock=clock,
        pace=Pace(
            poll_min_s=limits.poll_interval_s,
            poll_max_s=limits.poll_interval_max_s,
            follow_s=limits.activations_interval_s,
            keep_rounds=limits.keep_rounds,
        ),
    )


def _measuring(
    experiment: Experiment, name: str, raft_log: RaftLog, tools: Tools, probing: Probing
) -> Measuring:
    return Measuring(
        keeper=name,
        log=raft_log,
        providers=tools.invoker.providers,
        probe=probing.healthy,
        every_s=experiment.keepers.measure_s,
        eager=experiment.keepers.placement == "latency",
        clock=tools.clock,
    )


async def _open_services(experiment: Experiment, stack: AsyncExitStack) -> tuple[StoreAddress, Clusters]:
    """Store and platforms, both at once: embedded ones take a while to start."""
    stacks = [await stack.enter_async_context(AsyncExitStack()) for _ in range(2)]
    try:
        async with asyncio.TaskGroup() as group:
            address = group.create_task(open_store_address(experiment, stacks[0]))
            clusters = group.create_task(open_clusters(experiment, tuple(experiment.clusters()), stacks[1]))
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from None
    return address.result(), clusters.result()


async def _open_log(
    experiment: Experiment,
    name: str,
    *,
    secret: SecretStr | None,
    resolve: Resolve,
    bind: tuple[str, int],
    stack: AsyncExitStack,
) -> tuple[RaftLog, str]:
    """The log, and where its port listens."""
    keepers = experiment.keepers
    made: list[PeerNetwork] = []

    def network(where: Resolve) -> Network:
        made.append(
            PeerNetwork(
                name,
                bind=bind,
                resolve=where,
                credentials=_credentials(experiment, secret),
                source_host=bind[0] if bind[0].startswith("127.") else "",
            )
        )
        return made[0]

    raft_log = await stack.enter_async_context(
        RaftLog.open(
            name,
            experiment.keepers_folder / name,
            {one: keepers.members[one].raft if one in keepers.members else "" for one in keepers.names()},
            network=network,
            resolve=resolve,
            timing=keepers.timing,
            fsync=keepers.fsync == "group",
            snapshot_every=keepers.snapshot_every,
            timeout_s=keepers.propose_timeout_s,
        )
    )
    host, port = made[0].address
    return raft_log, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _credentials(experiment: Experiment, secret: SecretStr | None) -> Credentials:
    tls = experiment.keepers.tls
    if tls is not None:
        return MutualTls(tls)
    return SharedSecret(secret) if secret is not None else Unprotected()


def _policy(experiment: Experiment) -> Policy:
    keepers = experiment.keepers
    return Policy(
        placement=Placement(keepers.placement),
        gain=keepers.latency_gain,
        every_s=keepers.rotate_s,
        every_rounds=keepers.rotate_rounds,
    )


def _api_settings(experiment: Experiment) -> ApiSettings:
    api = experiment.keepers.api
    reader, operator = api.reader_token, api.operator_token
    return ApiSettings(
        cert_file=api.cert_file,
        key_file=api.key_file,
        reader_token=None if reader is None else reader.get_secret_value(),
        operator_token=None if operator is None else operator.get_secret_value(),
        requests_in_flight_max=api.requests_in_flight_max,
        body_bytes_max=api.body_bytes_max,
        value_bytes_max=api.value_bytes_max,
        kv_bytes_max=experiment.keepers.kv_bytes_max,
        header_bytes_max=api.header_bytes_max,
        connections_max=api.connections_max,
        idle_s=api.idle_s,
        request_timeout_s=api.request_timeout_s,
        streams_max=api.streams_max,
        events_s=api.events_s,
        keep_alive_s=api.keep_alive_s,
        stall_s=api.stall_s,
    )


async def _prepare_store(store: UpdateStore) -> None:
    """Connect, so that a takeover need not; and tidy up. A store that is away is waited for, not died of."""
    while True:
        try:
            await store.ping()
            orphans = await store.sweep(older_than_s=ORPHANS_OLDER_THAN_S)
        except StoreUnavailable as exc:
            log.warning("the store does not answer yet", problem=str(exc))
            continue  # after the store's own patience
        if orphans:
            log.info("removed blobs that a killed upload left", blobs=orphans)
        return
