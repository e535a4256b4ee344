"""What the commands do on the platforms, given opened sessions. Nothing here knows click."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from fedkeeper import deployment
from fedkeeper.cli.session import Session
from fedkeeper.cli.show import Screen
from fedkeeper.config import Experiment, Learning, Limits
from fedkeeper.deployment import Line, LineState, Target, failures
from fedkeeper.errors import FedKeeperError
from fedkeeper.providers.base import Provider
from fedkeeper.report import write_json

ASK_AGAIN_S = 0.1
NAMED_MAX = 5  # functions named in an error; all have their line above it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An experiment and its opened sessions, one per scenario, with the functions that are meant in each."""

    experiment: Experiment
    parts: Sequence[tuple[Session, Sequence[Target]]]
    owner: str = ""  # mark of the experiment, where it is dealt with as a whole

    @property
    def total(self) -> int:
        """How many functions."""
        return sum(len(targets) for _, targets in self.parts)

    @property
    def patience(self) -> deployment.Patience:
        """How long each of them waits for what a platform says will pass."""
        return deployment.Patience.of(self.experiment.limits)

    @property
    def in_flight_max(self) -> int:
        """How many functions may be worked on at one time."""
        found = [one.limits for one in self.experiment.scenarios.values() if isinstance(one, Learning)]
        return (found[0] if found else Limits()).deployments_in_flight_max


async def deploy(opened: Opened, screen: Screen, *, hidden: Collection[LineState] = ()) -> None:
    """Deploy the functions; FedKeeperError names what failed, after all were tried.

    `hidden`: states that are only counted, without a line for each function.
    """
    lines: list[Line] = []
    with screen.deploying("deploying", opened.total, hidden=hidden) as progress:
        for session, targets in opened.parts:
            lines += await session.deploy(progress, targets)
    _conclude(screen, lines, "deployed")


async def remove(opened: Opened, screen: Screen) -> None:
    """Remove the functions; FedKeeperError names what failed, after all were tried."""
    lines: list[Line] = []
    with screen.deploying("removing", opened.total) as progress:
        for session, targets in opened.parts:
            lines += await deployment.remove(
                targets,
                session.providers,
                in_flight_max=opened.in_flight_max,
                progress=progress,
                owner=opened.owner,
                patience=opened.patience,
            )
    _conclude(screen, lines, "removed")


async def describe(opened: Opened, screen: Screen, *, save: Path | None) -> None:
    """Print what is deployed, a line each; `save`: as JSON with the platforms' own metadata as well."""
    lines: list[Line] = []
    plain: list[dict[str, Any]] = []
    for session, targets in opened.parts:
        found = await deployment.describe(
            targets,
            session.providers,
            in_flight_max=opened.in_flight_max,
            patience=opened.patience,
        )
        lines += found
        plain += [_metadata(session, line) for line in found if line.deployed is not None]
    for line in lines:
        screen.found(line)
    if save is not None:
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        value = {"experiment": opened.experiment.name, "saved": saved, "functions": plain}
        if not write_json(save, value):
            raise FedKeeperError(f"{save}: not written", hint="is there space, and the right to write?")
        screen.line(f"saved {len(plain)} function(s) to {save}")
    _raise_failures(screen, lines)


async def invoke(opened: Opened, screen: Screen, *, timeout_s: float) -> None:
    """Invoke the functions, all at once, and print their answers; FedKeeperError if one fails."""
    pairs = [(session.providers[one.cluster], one) for session, targets in opened.parts for one in targets]
    answers = await asyncio.gather(*(_answer(provider, one, timeout_s) for provider, one in pairs))
    for (_, target), answer in zip(pairs, answers, strict=True):
        said = answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)
        screen.line(f"{target.cluster}/{target.function}: {said}")
    if failed := sum(isinstance(answer, str) for answer in answers):
        raise FedKeeperError(f"{failed} of {len(pairs)} function(s) gave no answer")


async def _answer(provider: Provider, target: Target, timeout_s: float) -> Mapping[str, Any] | str:
    """A function's result, or in words why there is none."""
    try:
        async with asyncio.timeout(timeout_s):
            key = f"invoke/{target.function}/{uuid.uuid4().hex}"
            activation_id = await provider.invoke(target.function, {}, key=key, timeout_s=timeout_s)
            while (activation := await provider.activation(activation_id)) is None:  # noqa: ASYNC110 - remote
                await asyncio.sleep(ASK_AGAIN_S)
    except TimeoutError:
        return f"no answer in {timeout_s:g} s"
    except FedKeeperError as exc:
        return str(exc)
    return activation.result if activation.ok else f"{activation.status}: {activation.reason}"


def _conclude(screen: Screen, lines: Sequence[Line], verb: str) -> None:
    count = {state: sum(line.state is state for line in lines) for state in LineState}
    said = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    screen.line(f"{len(lines)} function(s): {said}" if lines else f"nothing to be {verb}")
    _raise_failures(screen, lines)


def _raise_failures(screen: Screen, lines: Sequence[Line]) -> None:
    failed = failures(lines)
    if not failed:
        return
    screen.hints(failed)
    names = [f"{line.cluster}/{line.function}" for line in failed[:NAMED_MAX]]
    more = f" and {len(failed) - NAMED_MAX} more" if len(failed) > NAMED_MAX else ""
    raise FedKeeperError(
        f"{len(failed)} of {len(lines)} function(s) failed: {', '.join(names)}{more}",
        hint="what went well stands; the same command tries the others again",
    )


def _metadata(session: Session, line: Line) -> dict[str, Any]:
    """What the platform says of a function, as JSON."""
    found = line.deployed
    assert found is not None
    return {
        "cluster": line.cluster,
        "platform": session.providers[line.cluster].platform,
        "function": line.function,
        "state": found.state,
        "version": found.version,
        "digest": found.digest,
        "url": found.url,
        "updated": datetime.fromtimestamp(found.updated_ms / 1000, tz=UTC).isoformat(),
        "message": found.message,
        "details": dict(found.details),
    }
