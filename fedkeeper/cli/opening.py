"""From options to an opened session: load, warn, register secrets, run on a loop, report what is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from fedkeeper import logs
from fedkeeper.cli import actions
from fedkeeper.cli.failures import reported
from fedkeeper.cli.interrupts import Interrupts, execute
from fedkeeper.cli.reached import Reached
from fedkeeper.cli.selection import Choice, Inventory, chosen_clusters, select
from fedkeeper.cli.session import Backend, Reach, real_backend
from fedkeeper.cli.show import Screen
from fedkeeper.config import Experiment, Learning, secrets_of
from fedkeeper.platforms import PLATFORMS, describe
from fedkeeper.providers.base import owner_mark
from fedkeeper.wiring.images import write_images

Act = Callable[[actions.Opened, Screen, Interrupts], Awaitable[None]]
ActOnCluster = Callable[[Reached], Awaitable[None]]
Work = Callable[[Experiment, Backend, Screen, Interrupts], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every command is told: which config, how talkative."""

    config: Path
    verbose: bool


def learning(ctx: click.Context, job: Job, act: Act) -> None:
    """Open the learning scenario on all its clusters, and act."""

    async def work(experiment: Experiment, backend: Backend, screen: Screen, interrupts: Interrupts) -> None:
        scenario = experiment.learning_name
        async with backend.open(experiment, scenario=scenario, clusters=None) as session:
            parts = ((session, session.targets()),)
            whole = actions.Opened(experiment=experiment, parts=parts, owner=owner_mark(experiment.name))
            await act(whole, screen, interrupts)

    _perform(ctx, job, work)


def chosen_only(ctx: click.Context, job: Job, choice: Choice, act: Act) -> None:
    """Open the chosen clusters, once per scenario, and act. A wrong name is said before anything starts."""

    async def work(experiment: Experiment, backend: Backend, screen: Screen, interrupts: Interrupts) -> None:
        known = inventory(experiment)
        clusters = chosen_clusters(known, choice)
        chosen = select(known, choice)
        async with AsyncExitStack() as stack:
            parts = [
                (
                    await stack.enter_async_context(
                        backend.open(experiment, scenario=scenario, clusters=clusters)
                    ),
                    targets,
                )
                for scenario, targets in chosen.items()
            ]
            await act(actions.Opened(experiment=experiment, parts=parts), screen, interrupts)

    _perform(ctx, job, work)


def with_keepers(ctx: click.Context, job: Job, act: ActOnCluster, *, reach: Reach) -> None:
    """Reach the keepers of the experiment, and act."""

    async def work(experiment: Experiment, backend: Backend, screen: Screen, interrupts: Interrupts) -> None:
        async with backend.connect(experiment, reach=reach) as cluster:
            await act(Reached(experiment=experiment, cluster=cluster, screen=screen, interrupts=interrupts))

    _perform(ctx, job, work)


def hosting(ctx: click.Context, job: Job, name: str, *, until_unused: bool) -> None:
    """Be keeper `name` until a signal; its events are on stderr."""

    async def work(experiment: Experiment, backend: Backend, screen: Screen, interrupts: Interrupts) -> None:
        stop = asyncio.Event()
        interrupts.graceful = stop.set
        interrupts.stopping = f"keeper {name} is stopping (again: at once)"
        await backend.host(experiment, name, until_unused=until_unused, stop=stop)

    _perform(ctx, job, work, events=True)


def writing_images(ctx: click.Context, job: Job, choice: Choice, folder: Path) -> None:
    """Write what the chosen functions' images are built from, and say how; nothing is opened or asked."""

    async def work(experiment: Experiment, backend: Backend, screen: Screen, interrupts: Interrupts) -> None:
        del backend, interrupts
        written = write_images(experiment, select(inventory(experiment), choice), folder)
        if not written:
            screen.line("none of these functions needs an image of yours")
        for one in written:
            for function, image in one.images.items():
                screen.line(f"{one.stack.parent / function}: what {image} is built from")
            screen.line(f"build and push them: {describe(one.platform).build_command.format(one.stack)}")

    _perform(ctx, job, work)


def inventory(experiment: Experiment) -> Inventory:
    """Names of clusters, scenarios and functions in the config."""
    scenarios: dict[str, dict[str, frozenset[str]]] = {}
    for name, scenario in experiment.scenarios.items():
        functions = {
            function: frozenset(one for one in PLATFORMS if places.on(one) is not None)
            for function, places in scenario.functions.items()
        }
        if isinstance(scenario, Learning):  # its functions have defaults, on every platform
            for function in (*scenario.server_config.server_manager_functions, scenario.client_function):
                functions.setdefault(function, frozenset(PLATFORMS))
        scenarios[name] = functions
    clusters = {name: cluster.platform for name, cluster in experiment.clusters().items()}
    return Inventory(clusters=clusters, scenarios=scenarios)


def _perform(ctx: click.Context, job: Job, work: Work, *, events: bool = False) -> None:
    """`events`: they are what this command has to say, so they go to stderr."""
    screen = Screen()
    logs.set_up(verbose=job.verbose)
    try:
        with reported(verbose=job.verbose):
            backend = ctx.obj if isinstance(ctx.obj, Backend) else real_backend()
            experiment = backend.load(job.config)
            for secret in secrets_of(experiment):
                logs.register_secret(secret)
            logs.set_up(verbose=job.verbose, people=events, level=experiment.logs.level)
            for warning in experiment.warnings:
                screen.warning(warning)
            execute(partial(work, experiment, backend, screen), say=screen.line)
    finally:
        logs.tear_down()
