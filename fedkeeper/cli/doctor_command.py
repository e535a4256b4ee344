"""`fedkeeper doctor`: what this machine offers, and what an experiment lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.table import Table
from rich.text import Text

from fedkeeper import logs
from fedkeeper.cli.failures import reported
from fedkeeper.cli.interrupts import Interrupts, execute
from fedkeeper.cli.options import CONTEXT, json_option, verbose_option
from fedkeeper.cli.show import Screen, clean
from fedkeeper.cli.tables import table
from fedkeeper.config import Experiment, load, secrets_of
from fedkeeper.errors import ConfigError, FedKeeperError

if TYPE_CHECKING:
    from fedkeeper.wiring.doctor.findings import Finding

STYLES: Final = {"ok": "green", "note": "yellow", "missing": "bold red"}


@click.command("doctor", context_settings=CONTEXT)
@click.option(
    "-c", "--configfile", type=click.Path(path_type=Path), help="An experiment to examine the machine for."
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for each answer.",
)
@json_option
@verbose_option
def doctor_command(configfile: Path | None, timeout: float, plain: bool, verbose: bool) -> None:
    """Say what this machine offers and, with -c, what would be missing for an experiment.

    Exit 1 if it could not run here, 2 if its file is wrong. Nothing is deployed, and no service is started.
    """
    screen = Screen()
    logs.set_up(verbose=verbose)
    try:
        with reported(verbose=verbose):
            experiment, fault = _load(configfile)
            findings: list[Finding] = []

            async def work(_: Interrupts) -> None:
                from fedkeeper.wiring.doctor.examining import examine  # noqa: PLC0415 - brings every client

                async for found in examine(experiment, timeout_s=timeout):
                    findings.append(found)

            execute(work, say=screen.line)
            _show(screen, configfile, findings, fault, experiment, plain=plain)
    finally:
        logs.tear_down()


def _load(path: Path | None) -> tuple[Experiment | None, ConfigError | None]:
    """The experiment, or what is wrong with its file; neither where none was named."""
    if path is None:
        return None, None
    try:
        experiment = load(path)
    except ConfigError as exc:
        return None, exc
    for secret in secrets_of(experiment):
        logs.register_secret(secret)
    return experiment, None


def _show(
    screen: Screen,
    path: Path | None,
    findings: Sequence[Finding],
    fault: ConfigError | None,
    experiment: Experiment | None,
    *,
    plain: bool,
) -> None:
    lacking = [one for one in findings if one.verdict == "missing"]
    if plain:
        told = {
            "config": None if path is None else str(path),
            "runs": not lacking and fault is None,
            "fault": None if fault is None else logs.redact(str(fault)),
            "warnings": [] if experiment is None else list(experiment.warnings),
            "findings": [
                {
                    "topic": one.topic,
                    "verdict": str(one.verdict),
                    "found": logs.redact(one.found),
                    "way_out": logs.redact(one.way_out),
                }
                for one in findings
            ],
        }
        click.echo(json.dumps(told, indent=2))
    else:
        screen.show(_table(path, findings))
        for warning in () if experiment is None else experiment.warnings:
            screen.warning(warning)
    if fault is not None:
        raise fault
    if lacking:
        topics = ", ".join(one.topic for one in lacking)
        what = "this machine" if path is None else f"{path} here"
        raise FedKeeperError(f"{len(lacking)} missing for {what}: {topics}")


def _table(path: Path | None, findings: Sequence[Finding]) -> Table:
    shown = table("this machine" if path is None else f"this machine, for {path}")
    shown.add_column("what", overflow="fold")
    shown.add_column("verdict")
    shown.add_column("found", overflow="fold")
    for one in findings:
        way_out = f"\nway out: {one.way_out}" if one.way_out else ""
        # Text: words in brackets are no markup. What a platform said may not command the terminal.
        told = Text("\n".join(clean(part) for part in f"{one.found}{way_out}".splitlines()))
        shown.add_row(one.topic, Text(str(one.verdict), style=STYLES[str(one.verdict)]), told)
    return shown
