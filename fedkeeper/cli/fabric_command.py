"""`fedkeeper fabric`: the embedded platforms by themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from fedkeeper import logs
from fedkeeper.cli.failures import reported
from fedkeeper.cli.interrupts import Interrupts, execute
from fedkeeper.cli.options import CONTEXT, json_option, verbose_option

USUAL_FOLDER: Final = Path(".fedkeeper/fabric")
USUAL_NAMESPACE: Final = "guest"
USUAL_PROJECT: Final = "fedkeeper"


def _image(pair: str) -> tuple[str, str]:
    image, equals, kind = pair.partition("=")
    if not equals:
        raise click.BadParameter(f"{pair!r} is not IMAGE=KIND, e.g. me/tf:1=python:default")
    return image, kind


@click.command("fabric", context_settings=CONTEXT)
@click.option(
    "--data-dir",
    default=USUAL_FOLDER,
    show_default=True,
    type=click.Path(path_type=Path, resolve_path=True),
    help="Folder of functions, activations and credentials.",
)
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65_535),
    help="Port on 127.0.0.1 [default: that of the last time if it is free, else any].",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help=f"OpenWhisk namespace; may be repeated [default: {USUAL_NAMESPACE}].",
)
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="NAME",
    help=f"Google Cloud project; may be repeated [default: {USUAL_PROJECT}].",
)
@click.option(
    "--memory-mb",
    default=8192,
    show_default=True,
    type=click.IntRange(min=512),
    help="Sum of the memory limits of all function instances alive at once (MB).",
)
@click.option(
    "--share-workers/--no-share-workers",
    default=True,
    show_default=True,
    help="OpenWhisk actions that are alike in code, parameters, limits and version share worker processes.",
)
@click.option(
    "--workers-busy-max",
    default=0,
    type=click.IntRange(min=0),
    help="Most workers of one OpenWhisk action that run at once [default: processors + 2].",
)
@click.option(
    "--queue-max",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most requests to functions that run or wait for a worker; more are answered 429.",
)
@click.option(
    "--invocations-per-minute",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most invocations in one OpenWhisk namespace in a minute of the clock; more are answered 429.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="IMAGE=KIND",
    callback=lambda _ctx, _param, pairs: dict(_image(pair) for pair in pairs),
    help="OpenWhisk image that a runtime of this machine stands in for, e.g. me/tf:1=python:default; may be"
    " repeated. Others are answered as if they could not be pulled.",
)
@click.option(
    "--connections-max",
    default=0,
    type=click.IntRange(min=0),
    help="Most open connections; for more, the one that has waited longest for its client is closed"
    " [default: queue-max + 1024].",
)
@click.option(
    "--payload-mb-max",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="What callers sent and that arrives, waits or is worked on (MB); more is answered 429.",
)
@json_option
@verbose_option
def fabric_command(
    *,
    data_dir: Path,
    port: int,
    namespaces: Sequence[str],
    projects: Sequence[str],
    memory_mb: int,
    share_workers: bool,
    workers_busy_max: int,
    queue_max: int,
    invocations_per_minute: int,
    images: Mapping[str, str],
    connections_max: int,
    payload_mb_max: int,
    plain: bool,
    verbose: bool,
) -> None:
    """Run the embedded OpenWhisk and Cloud Functions here until Ctrl-C or SIGTERM, without an experiment.

    Functions, activations and credentials stay in the folder for the next time. Credentials are written to
    files that are named at the start, and are never printed.
    """
    logs.set_up(verbose=verbose)
    try:
        with reported(verbose=verbose):
            # The whole server comes along, and no other command needs it.
            from fedkeeper.fabric import standing  # noqa: PLC0415
            from fedkeeper.fabric.credentials import Settings  # noqa: PLC0415

            settings = Settings(
                namespaces=tuple(namespaces) or (USUAL_NAMESPACE,),
                projects=tuple(projects) or (USUAL_PROJECT,),
                port=port,
                memory_mb=memory_mb,
                queue_max=queue_max,
                connections_max=connections_max,
                payload_mb_max=payload_mb_max,
                share_workers=share_workers,
                workers_busy_max=workers_busy_max,
                invocations_per_minute=invocations_per_minute,
                images=dict(images),
            )

            async def work(interrupts: Interrupts) -> None:
                stop = asyncio.Event()
                interrupts.graceful = stop.set
                interrupts.stopping = "the fabric is ending; its functions stay (again: at once)"
                async with standing.open_standing(data_dir, settings) as running:
                    click.echo(json.dumps(running.plain()) if plain else running.words())
                    await stop.wait()

            execute(work, say=lambda text: click.echo(text, err=True))
    finally:
        logs.tear_down()
