"""What the commands do with the keepers themselves, and with their dictionary. Nothing here knows click."""

from __future__ import annotations

import json

from fedkeeper.cli.cluster_view import Overview, as_json, headline, keepers_table, runs_table
from fedkeeper.cli.progress import outcome
from fedkeeper.cli.reached import Reached
from fedkeeper.errors import ApiError, ConfigError, NoLeader
from fedkeeper.keeper.client import Json


async def status(at: Reached, *, plain: bool) -> None:
    """Keepers, leader, conductor, runs; NoLeader (exit 1) if no keeper answers, or they have no majority."""
    overview = await _overview(at)
    if plain:
        at.screen.text(json.dumps(as_json(overview, at.experiment.name), indent=1))
    else:
        for line, bad in headline(overview, at.experiment.name):
            at.screen.line(line, "bold red" if bad else "")
        at.screen.show(keepers_table(overview))
        if (runs := runs_table(overview)) is not None:
            at.screen.show(runs)
    if overview.best is None:
        raise NoLeader(f"no keeper of {at.experiment.name} runs", hint=at.cluster.how_to_start())
    if not overview.leader:
        raise NoLeader(
            "there is no majority of keepers: runs pause until there is one again",
            hint="start those that are away: " + at.cluster.how_to_start(),
        )


async def stop_run(at: Reached, *, run: str) -> None:
    """End a run before its end."""
    reason = "stopped by a user"
    ended = await at.cluster.stop_run(run, reason)
    if ended.reason == reason:
        at.screen.line(f"run {run} is stopped, in round {ended.round} of at most {ended.spec.rounds_max}")
    else:
        at.screen.line(f"run {run} had ended already: {outcome(ended)}")


async def forget_run(at: Reached, *, run: str) -> None:
    """Drop a run that has ended."""
    await at.cluster.forget_run(run)
    at.screen.line(f"run {run} is forgotten: its weights are no longer in the store")


async def handover(at: Reached, *, keeper: str) -> None:
    """Choose the conductor by hand, or (empty) let the placement choose again."""
    await at.cluster.handover(keeper)
    best = (await _overview(at)).best
    if best is None:
        raise ApiError("the handover is done, and now no keeper answers", hint="fedkeeper status")
    how = "by hand, until it is lost or --auto" if best.pinned else f"by placement: {best.conductor_why}"
    at.screen.line(f"{best.conductor} conducts ({how}), epoch {best.epoch}")


async def add_keeper(at: Reached, *, name: str, address: str) -> None:
    """Take a keeper in, that runs already with a config that has it as a member."""
    await at.cluster.add_keeper(name, address)
    at.screen.line(f"keeper {name} is a member; write it into {at.experiment.path} on every host")


async def remove_keeper(at: Reached, *, name: str) -> None:
    """Let a keeper go."""
    await at.cluster.remove_keeper(name)
    at.screen.line(f"keeper {name} is no member any more; take it out of {at.experiment.path} on every host")


async def get_value(at: Reached, *, name: str, stale: bool) -> None:
    """Print a value, as JSON."""
    at.screen.text(json.dumps((await at.cluster.get(name, stale=stale)).value))


async def set_value(at: Reached, *, name: str, value: str, expected: int | None) -> None:
    """Set it. What is not JSON is taken as a text."""
    version = await at.cluster.put(name, as_value(value), expected=expected)
    at.screen.line(f"{name}: version {version}")


async def delete_value(at: Reached, *, name: str, expected: int | None) -> None:
    """Take it away."""
    await at.cluster.delete(name, expected=expected)
    at.screen.line(f"{name}: deleted")


async def list_values(at: Reached, *, prefix: str, stale: bool, plain: bool) -> None:
    """Every entry whose name begins so: its version and value."""
    entries = await at.cluster.entries(prefix, stale=stale)
    if plain:
        found = {name: {"value": one.value, "version": one.version} for name, one in entries.items()}
        at.screen.text(json.dumps(found, indent=1))
        return
    for name, one in entries.items():
        at.screen.line(f"{name} (version {one.version}): {json.dumps(one.value)}")


async def _overview(at: Reached) -> Overview:
    answers, silent = await at.cluster.views()
    return Overview(answers=answers, silent=silent)


def as_value(text: str) -> Json:
    """`text` if it is JSON, else as a text. ConfigError for what is a number and no JSON."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(text: str) -> None:
    raise ConfigError(f"{text} is no JSON", hint="put the text in quotes, if it is meant as one")
