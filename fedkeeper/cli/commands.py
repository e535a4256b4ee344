"""`main.py`, `deploy.py` and the `fedkeeper` console script: options in, an action out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from fedkeeper.cli import actions, running
from fedkeeper.cli.actions import Opened
from fedkeeper.cli.doctor_command import doctor_command
from fedkeeper.cli.fabric_command import fabric_command
from fedkeeper.cli.failures import reported
from fedkeeper.cli.interrupts import Interrupts
from fedkeeper.cli.keeper_commands import COMMANDS
from fedkeeper.cli.opening import (
    Act,
    ActOnCluster,
    Job,
    chosen_only,
    hosting,
    learning,
    with_keepers,
    writing_images,
)
from fedkeeper.cli.options import (
    CONTEXT,
    SAMPLE,
    config_option,
    detach_option,
    fresh_option,
    new_option,
    verbose_option,
)
from fedkeeper.cli.selection import Choice
from fedkeeper.cli.show import Screen
from fedkeeper.config import shipped
from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS, describe

ActOn = Callable[[Opened, Screen], Awaitable[None]]
F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = ", ".join(["-a", *(describe(platform).option[0] for platform in PLATFORMS)])
_SAY_WHERE = "say where: -a (all clusters), " + ", ".join(
    f"{describe(platform).option[0]} A,B ({describe(platform).title})" for platform in PLATFORMS
)


def selection_options(command: F) -> F:
    """The options that choose clusters, scenario and functions."""
    for option in reversed(
        (
            click.option("-a", "--all_providers", is_flag=True, help="All clusters."),
            *(
                click.option(*one.option, metavar="A,B", help=f"These {one.these_clusters}.")
                for one in map(describe, PLATFORMS)
            ),
            click.option(
                "-s", "--scenario_name", default="", metavar="NAME", help="Scenario [default: all of them]."
            ),
            click.option(
                "-f",
                "--functions_list",
                metavar="F,G",
                help="Functions, each under its own name [default: all of the scenario].",
            ),
        )
    ):
        command = option(command)
    return command


@click.command(context_settings=CONTEXT)
@config_option
@click.option("-d", "--deploy", "deploys", is_flag=True, help="Deploy the experiment's functions.")
@click.option("-r", "--remove", "removes", is_flag=True, help="Remove them.")
@click.option("-s", "--start_fl", "starts", is_flag=True, help="Deploy what is missing; learn, or resume.")
@click.option("-k", "--keeper", default="", metavar="NAME", help="Be this keeper, until SIGTERM.")
@fresh_option
@new_option
@detach_option
@verbose_option
@click.pass_context
def main(
    ctx: click.Context,
    configfile: Path,
    deploys: bool,
    removes: bool,
    starts: bool,
    keeper: str,
    fresh: bool,
    new: bool,
    detach: bool,
    verbose: bool,
) -> None:
    """Federated learning over FaaS platforms: deploy an experiment's functions, remove them, or learn."""
    if deploys + removes + starts + bool(keeper) != 1:
        raise click.UsageError("say one of: -d (deploy), -r (remove), -s (start), -k NAME (be a keeper)")
    for name, given in (("--fresh", fresh), ("--new", new), ("--detach", detach)):
        if given and not starts:
            raise click.UsageError(f"{name} goes with -s")
    job = Job(config=configfile, verbose=verbose)
    if keeper:
        hosting(ctx, job, keeper, until_unused=False)
    elif starts:
        with_keepers(ctx, job, _starting(fresh=fresh, new=new, detach=detach), reach="start")
    else:
        learning(ctx, job, _on_platforms(actions.deploy if deploys else actions.remove))


@click.command(context_settings=CONTEXT)
@config_option
@selection_options
@click.option("-d", "--deploy", "deploys", is_flag=True, help="Deploy them.")
@click.option("-r", "--remove", "removes", is_flag=True, help="Remove them.")
@click.option("-m", "--get_meta_data", "describes", is_flag=True, help="Save their metadata as JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="File for -m [default: under logs/].")
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write what images must be built from, where a platform runs nothing else (OpenFaaS).",
)
@verbose_option
@click.pass_context
def deploy(
    ctx: click.Context,
    /,
    configfile: Path,
    deploys: bool,
    removes: bool,
    describes: bool,
    output: Path | None,
    images: Path | None,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Deploy, remove or describe functions on chosen clusters, each under its own name.

    A test of the platforms: `deploy.py -a -d` brings every function of the config to every cluster that it
    is written for. The clients of an experiment (client_0, ...) are deployed by `main.py -d`.
    """
    actions_given = deploys + removes + describes
    if (images is None) == (not actions_given) or (removes and actions_given > 1):
        raise click.UsageError(
            "say what to do: -d (deploy), -r (remove), -m (metadata), -d -m, or --images FOLDER"
        )
    choice = _choice(**chosen)
    if choice is None:
        raise click.UsageError(_SAY_WHERE)
    if images is not None:
        writing_images(ctx, Job(config=configfile, verbose=verbose), choice, images)
        return

    async def act(opened: Opened, screen: Screen, _: Interrupts) -> None:
        if deploys:
            await actions.deploy(opened, screen)
        if removes:
            await actions.remove(opened, screen)
        if describes:
            usual = opened.experiment.logs.folder / f"functions-{opened.experiment.name}.json"
            await actions.describe(opened, screen, save=output or usual)

    chosen_only(ctx, Job(config=configfile, verbose=verbose), choice, act)


@click.group(context_settings=CONTEXT)
def fedkeeper() -> None:
    """Federated learning where every client is a function."""


for command in (*COMMANDS, fabric_command, doctor_command):
    fedkeeper.add_command(command)


@fedkeeper.command("run", context_settings=CONTEXT)
@config_option
@fresh_option
@new_option
@detach_option
@verbose_option
@click.pass_context
def run_command(
    ctx: click.Context, configfile: Path, fresh: bool, new: bool, detach: bool, verbose: bool
) -> None:
    """Deploy what is missing, then learn, or resume an unfinished run (as `main.py -s`)."""
    job = Job(config=configfile, verbose=verbose)
    with_keepers(ctx, job, _starting(fresh=fresh, new=new, detach=detach), reach="start")


@fedkeeper.command("deploy", context_settings=CONTEXT)
@config_option
@selection_options
@verbose_option
@click.pass_context
def deploy_command(ctx: click.Context, /, configfile: Path, verbose: bool, **chosen: Any) -> None:
    """Deploy the experiment's functions (`main.py -d`), or with -a, -o, -g … plain ones (`deploy.py -d`)."""
    _either(ctx, Job(config=configfile, verbose=verbose), chosen, actions.deploy)


@fedkeeper.command("remove", context_settings=CONTEXT)
@config_option
@selection_options
@verbose_option
@click.pass_context
def remove_command(ctx: click.Context, /, configfile: Path, verbose: bool, **chosen: Any) -> None:
    """Remove the experiment's functions (`main.py -r`), or with -a, -o, -g … plain ones (`deploy.py -r`)."""
    _either(ctx, Job(config=configfile, verbose=verbose), chosen, actions.remove)


@fedkeeper.command("functions", context_settings=CONTEXT)
@config_option
@selection_options
@click.option("--output", type=click.Path(path_type=Path), help="Save the metadata to this JSON file too.")
@verbose_option
@click.pass_context
def functions_command(
    ctx: click.Context, /, configfile: Path, output: Path | None, verbose: bool, **chosen: Any
) -> None:
    """List what is deployed of the experiment's functions, or with -a, -o, -g … of plain ones."""

    _either(ctx, Job(config=configfile, verbose=verbose), chosen, partial(actions.describe, save=output))


@fedkeeper.command("invoke", context_settings=CONTEXT)
@config_option
@selection_options
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for each answer.")
@verbose_option
@click.pass_context
def invoke_command(
    ctx: click.Context, /, configfile: Path, timeout: float, verbose: bool, **chosen: Any
) -> None:
    """Invoke deployed functions without arguments and print what they answer, e.g. -a -s test -f nodeinfo."""
    choice = _choice(**chosen)
    if choice is None:
        raise click.UsageError(_SAY_WHERE)

    async def act(opened: Opened, screen: Screen, _: Interrupts) -> None:
        await actions.invoke(opened, screen, timeout_s=timeout)

    chosen_only(ctx, Job(config=configfile, verbose=verbose), choice, act)


@fedkeeper.command("sample", context_settings=CONTEXT)
@click.argument("file", default=SAMPLE, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def sample_command(file: Path, force: bool) -> None:
    """Write an experiment that runs as it is to FILE [default: config-sample.yaml]."""
    with reported(verbose=False):
        if file.exists() and not force:
            raise ConfigError(f"{file} is there already", hint="--force replaces it")
        try:
            file.write_bytes(shipped(SAMPLE).read_bytes())
        except OSError as exc:
            raise ConfigError(f"{file}: cannot be written ({exc})") from exc
        click.echo(f"wrote {file}; try: fedkeeper run -c {file}")


def _starting(*, fresh: bool, new: bool, detach: bool) -> ActOnCluster:
    if fresh and new:
        raise click.UsageError("--fresh abandons the unfinished run, --new leaves it alone: say one of them")

    return partial(running.start, fresh=fresh, new=new, detach=detach)


def _on_platforms(act: ActOn) -> Act:
    async def on(opened: Opened, screen: Screen, _: Interrupts) -> None:
        await act(opened, screen)

    return on


def _either(ctx: click.Context, job: Job, chosen: dict[str, Any], act: ActOn) -> None:
    """The experiment's own functions, or plain ones where clusters were chosen."""
    choice = _choice(**chosen)

    if choice is None:
        learning(ctx, job, _on_platforms(act))
    else:
        chosen_only(ctx, job, choice, _on_platforms(act))


def _choice(
    *, all_providers: bool, scenario_name: str, functions_list: str | None, **lists: str | None
) -> Choice | None:
    """What the options choose; None if they name no cluster. `lists`: clusters by their platform's option."""
    named = {
        platform: lists[describe(platform).option[1].removeprefix("--")]
        for platform in PLATFORMS
        if lists[describe(platform).option[1].removeprefix("--")] is not None
    }
    if all_providers and named:
        options = " and ".join(describe(platform).option[0] for platform in PLATFORMS)
        raise click.UsageError(f"-a means all clusters: leave out {options}")
    if not all_providers and not named:
        if scenario_name or functions_list is not None:
            raise click.UsageError(f"-s and -f choose functions; say on which clusters as well: {_OPTIONS}")
        return None
    return Choice(
        all_clusters=all_providers,
        clusters={platform: _names(describe(platform).option[0], text) for platform, text in named.items()},
        scenario=scenario_name,
        functions=_names("-f", functions_list),
    )


def _names(option: str, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise click.UsageError(f"{option} wants names separated by commas, and one of them is empty")
    return names
