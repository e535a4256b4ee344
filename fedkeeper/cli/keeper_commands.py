"""The sub-commands that speak to keepers: runs, the cluster, its members, its dictionary."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from fedkeeper.cli import keeping, running
from fedkeeper.cli.opening import Job, hosting, with_keepers
from fedkeeper.cli.options import CONTEXT, config_option, json_option, verbose_option

stale_option = click.option(
    "--stale", is_flag=True, help="As the next keeper has it: quicker, works without a majority, may be old."
)
expected_option = click.option(
    "--expected", type=int, metavar="VERSION", help="Only if it has this version (0: is not there)."
)


@click.command("attach", context_settings=CONTEXT)
@click.argument("run", default="")
@config_option
@verbose_option
@click.pass_context
def attach_command(ctx: click.Context, run: str, configfile: Path, verbose: bool) -> None:
    """Follow RUN [default: the latest] to its end, or show how it ended. Ctrl-C leaves it alone."""
    act = partial(running.attach, run=run)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@click.command("stop", context_settings=CONTEXT)
@click.argument("run")
@config_option
@verbose_option
@click.pass_context
def stop_command(ctx: click.Context, run: str, configfile: Path, verbose: bool) -> None:
    """End RUN before its end. Its model so far stays."""
    act = partial(keeping.stop_run, run=run)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@click.command("forget", context_settings=CONTEXT)
@click.argument("run")
@config_option
@verbose_option
@click.pass_context
def forget_command(ctx: click.Context, run: str, configfile: Path, verbose: bool) -> None:
    """Drop RUN, which has ended, and its weights in the store. Its logs stay."""
    act = partial(keeping.forget_run, run=run)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@click.command("export", context_settings=CONTEXT)
@click.argument("run", default="")
@config_option
@click.option("--output", type=click.Path(path_type=Path), help="File [default: logs/RUN/model.safetensors].")
@verbose_option
@click.pass_context
def export_command(
    ctx: click.Context, run: str, configfile: Path, output: Path | None, verbose: bool
) -> None:
    """Write the model of RUN [default: the latest] to a safetensors file, from the weights store."""
    act = partial(running.export, run=run, output=output)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@click.command("status", context_settings=CONTEXT)
@config_option
@json_option
@verbose_option
@click.pass_context
def status_command(ctx: click.Context, configfile: Path, plain: bool, verbose: bool) -> None:
    """Show keepers, leader, conductor and runs. Exit 1 if no keeper answers or they have no majority."""
    act = partial(keeping.status, plain=plain)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="look")


@click.command("handover", context_settings=CONTEXT)
@click.argument("keeper", default="")
@click.option("--auto", is_flag=True, help="Let the placement choose again.")
@config_option
@verbose_option
@click.pass_context
def handover_command(ctx: click.Context, keeper: str, auto: bool, configfile: Path, verbose: bool) -> None:
    """Have KEEPER conduct, until it is lost. Runs go on where they are."""
    if bool(keeper) == auto:
        raise click.UsageError("name a keeper, or say --auto")
    act = partial(keeping.handover, keeper=keeper)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="look")


@click.group("keeper", context_settings=CONTEXT)
def keeper_group() -> None:
    """Run a keeper, add one to the cluster, remove one."""


@keeper_group.command("run", context_settings=CONTEXT)
@click.argument("name")
@config_option
@click.option("--until-unused", is_flag=True, hidden=True)  # as `-s` starts the embedded ones
@verbose_option
@click.pass_context
def run_command(ctx: click.Context, name: str, configfile: Path, until_unused: bool, verbose: bool) -> None:
    """Be keeper NAME of the config, in the foreground, until SIGTERM or Ctrl-C (as `main.py -k NAME`)."""
    hosting(ctx, Job(config=configfile, verbose=verbose), name, until_unused=until_unused)


@keeper_group.command("add", context_settings=CONTEXT)
@click.argument("name")
@click.argument("address", metavar="HOST:PORT")
@config_option
@verbose_option
@click.pass_context
def add_command(ctx: click.Context, name: str, address: str, configfile: Path, verbose: bool) -> None:
    """Take keeper NAME into the cluster, at HOST:PORT of its Raft port. It must run already."""
    act = partial(keeping.add_keeper, name=name, address=address)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="look")


@keeper_group.command("remove", context_settings=CONTEXT)
@click.argument("name")
@config_option
@verbose_option
@click.pass_context
def remove_command(ctx: click.Context, name: str, configfile: Path, verbose: bool) -> None:
    """Let keeper NAME go; it stops. The others need a majority without it."""
    act = partial(keeping.remove_keeper, name=name)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="look")


@click.group("dict", context_settings=CONTEXT)
def dict_group() -> None:
    """The replicated dictionary: small values of yours, that survive keepers. Values are JSON."""


@dict_group.command("get", context_settings=CONTEXT)
@click.argument("name")
@stale_option
@config_option
@verbose_option
@click.pass_context
def get_command(ctx: click.Context, name: str, stale: bool, configfile: Path, verbose: bool) -> None:
    """Print the value of NAME."""
    act = partial(keeping.get_value, name=name, stale=stale)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@dict_group.command("set", context_settings=CONTEXT)
@click.argument("name")
@click.argument("value")
@expected_option
@config_option
@verbose_option
@click.pass_context
def set_command(
    ctx: click.Context, name: str, value: str, expected: int | None, configfile: Path, verbose: bool
) -> None:
    """Set NAME to VALUE: JSON, or what is not JSON as a text."""
    act = partial(keeping.set_value, name=name, value=value, expected=expected)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@dict_group.command("delete", context_settings=CONTEXT)
@click.argument("name")
@expected_option
@config_option
@verbose_option
@click.pass_context
def delete_command(
    ctx: click.Context, name: str, expected: int | None, configfile: Path, verbose: bool
) -> None:
    """Take NAME away."""
    act = partial(keeping.delete_value, name=name, expected=expected)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


@dict_group.command("list", context_settings=CONTEXT)
@click.argument("prefix", default="")
@stale_option
@json_option
@config_option
@verbose_option
@click.pass_context
def list_command(
    ctx: click.Context, prefix: str, stale: bool, plain: bool, configfile: Path, verbose: bool
) -> None:
    """List all entries, or those whose name begins with PREFIX."""
    act = partial(keeping.list_values, prefix=prefix, stale=stale, plain=plain)
    with_keepers(ctx, Job(config=configfile, verbose=verbose), act, reach="join")


COMMANDS = (
    attach_command,
    stop_command,
    forget_command,
    export_command,
    status_command,
    handover_command,
    keeper_group,
    dict_group,
)
