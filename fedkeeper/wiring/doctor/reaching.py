"""What is elsewhere: platforms, MongoDB, keepers. Only the store's indexes are made there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from fedkeeper.config import Experiment, Learning
from fedkeeper.errors import (
    ConfigError,
    FedKeeperError,
    ProviderUnavailable,
    RequestRefused,
    StoreUnavailable,
)
from fedkeeper.packaging import build
from fedkeeper.weights.mongo import MongoUpdates
from fedkeeper.wiring.cluster import open_cluster
from fedkeeper.wiring.clusters import open_clusters
from fedkeeper.wiring.doctor.findings import Finding, missing, note, ok
from fedkeeper.wiring.doctor.limits import asked_of, refusals

CODE_BYTES_MAX: Final = 48 * 2**20  # of a function's zip in base64, on OpenWhisk


async def platforms(experiment: Experiment, *, timeout_s: float) -> AsyncIterator[Finding]:
    """Each cluster that is not embedded: does it answer, take the credentials, and allow what is asked?"""
    elsewhere = [name for name, cluster in experiment.clusters().items() if not cluster.embedded]

    async def ask(name: str) -> list[Finding]:
        async with AsyncExitStack() as stack:
            provider = (await open_clusters(experiment, [name], stack)).providers[name]
            await provider.check()
            found = [ok(f"cluster {name}", "answers, and takes the credentials")]
            try:
                limits = await provider.limits()
            except RequestRefused as exc:  # an old release, or a key that may not ask
                return [*found, note(f"cluster {name}", f"does not tell its limits: {exc}")]
        return [*found, *refusals(experiment, name, limits)]

    way_out = "is the platform up, and reachable from this machine?"
    for one in asyncio.as_completed(
        [_settled(f"cluster {n}", ask, n, timeout_s, way_out) for n in elsewhere]
    ):
        for found in await one:
            yield found


async def store(experiment: Experiment, *, timeout_s: float) -> AsyncIterator[Finding]:
    """The MongoDB of the config, if it is not embedded: its answer, its credentials, the format in it."""
    for scenario in experiment.scenarios.values():
        if not isinstance(scenario, Learning) or scenario.mongo_config.embedded:
            continue
        wait_s = min(scenario.mongo_config.wait_s, timeout_s)
        address = replace(scenario.mongo_config.address(), wait_s=wait_s)

        async def ask(_: str, address=address) -> list[Finding]:  # type: ignore[no-untyped-def]
            updates = MongoUpdates(address)
            try:
                await updates.ping()
            finally:
                await updates.close()
            return [ok("MongoDB", f"{address.hosts} answers, and takes the credentials")]

        way_out = "is it up, and mongo_config.url right?"
        for found in await _settled("MongoDB", ask, "", wait_s + 5, way_out):
            yield found


async def keepers(experiment: Experiment, *, timeout_s: float) -> AsyncIterator[Finding]:
    """Keepers on hosts of their own: how many answer. None has to, before they are started."""
    if experiment.keepers.embedded or not any(
        isinstance(one, Learning) for one in experiment.scenarios.values()
    ):
        return
    names = experiment.keepers.names()

    async def ask(_: str) -> list[Finding]:
        async with open_cluster(experiment, reach="look") as cluster:
            answers = (await cluster.views())[0]
        answered = len(answers)
        found = f"{answered} of {len(names)} answer"
        if answered == len(names):
            return [ok("keepers", found)]
        silent = next((name for name in names if name not in answers), names[0])
        way_out = f"start each on its host: main.py -c {experiment.path.name} -k {silent}"
        return [note("keepers", found, way_out)]

    for one in await _settled("keepers", ask, "", timeout_s, "are the addresses right?"):
        yield one


def functions(experiment: Experiment) -> list[Finding]:
    """Whether every function can be packaged, and is within what OpenWhisk takes. Blocking: reads files."""
    found: list[Finding] = []
    built = 0
    for scenario, function, platform in sorted(_wanted(experiment)):
        topic = f"function {function}"
        settings = experiment.function(scenario, function, platform)
        learning = experiment.scenario(scenario)
        include = learning.data_sampling.include if isinstance(learning, Learning) else ()
        try:
            source = experiment.source(scenario, function, platform)
            archive = build(
                source, platform, include=include, requirements=settings.requirements, node=settings.node
            )
        except ConfigError as exc:
            found.append(missing(topic, str(exc), exc.hint or "is its folder there?"))
            continue
        built += 1
        size = len(archive) * 4 // 3  # as base64
        if platform == "openwhisk" and size > CODE_BYTES_MAX:
            way_out = "put what is large into a docker_image, or take it out of data_sampling.include"
            found.append(
                missing(topic, f"{size >> 20} MB of code, OpenWhisk takes {CODE_BYTES_MAX >> 20}", way_out)
            )
    return [*found, ok("functions", f"{built} packages can be made")] if built else found


def _wanted(experiment: Experiment) -> set[tuple[str, str, str]]:
    """Scenario, function and platform of everything that `-d` would deploy."""
    return {
        (asked.scenario, asked.function, cluster.platform)
        for name, cluster in experiment.clusters().items()
        for asked in asked_of(experiment, name)
    }


async def _settled(
    topic: str, ask: Callable[[str], Awaitable[list[Finding]]], name: str, timeout_s: float, way_out: str
) -> list[Finding]:
    """What `ask` says, or in words why it could not."""
    try:
        async with asyncio.timeout(timeout_s):
            return await ask(name)
    except TimeoutError:
        return [missing(topic, f"no answer in {timeout_s:g} s", way_out)]
    except (ProviderUnavailable, StoreUnavailable) as exc:
        return [missing(topic, str(exc), exc.hint or way_out)]
    except FedKeeperError as exc:
        return [missing(topic, str(exc), exc.hint or "the text is the platform's")]
