"""Which functions on which clusters the options of `deploy.py` mean. Wrong names suggest the near one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedkeeper.deployment import Target
from fedkeeper.errors import ConfigError
from fedkeeper.platforms import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What the config offers. clusters: name -> platform; scenarios: name -> function -> its platforms."""

    clusters: Mapping[str, str]
    scenarios: Mapping[str, Mapping[str, frozenset[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the options say; empty is "not said"."""

    all_clusters: bool = False
    clusters: Mapping[str, Sequence[str]] = field(default_factory=dict)  # platform -> names
    scenario: str = ""
    functions: Sequence[str] = ()


def select(inventory: Inventory, choice: Choice) -> dict[str, tuple[Target, ...]]:
    """By scenario, every chosen function on every chosen cluster that it is written for.

    Without a scenario those of all scenarios are meant; without functions all of them. ConfigError on a
    wrong name, or when one function is in several of the scenarios.
    """
    clusters = chosen_clusters(inventory, choice)
    platforms = {inventory.clusters[cluster] for cluster in clusters}
    functions = _functions(inventory, choice)
    for name in choice.functions:
        written_for = inventory.scenarios[functions[name]][name]
        if not written_for & platforms:
            raise ConfigError(
                f"function {name!r} has no entry for {' or '.join(sorted(platforms))}",
                hint=f"it is written for {', '.join(sorted(written_for)) or 'no platform'}",
            )
    chosen: dict[str, list[Target]] = {}
    for name, scenario in functions.items():
        written_for = inventory.scenarios[scenario][name]
        chosen.setdefault(scenario, []).extend(
            Target(cluster=cluster, function=name)
            for cluster in clusters
            if inventory.clusters[cluster] in written_for
        )
    return {scenario: tuple(targets) for scenario, targets in chosen.items() if targets}


def chosen_clusters(inventory: Inventory, choice: Choice) -> tuple[str, ...]:
    """The clusters that are meant, in the order given; of the config with -a."""
    if choice.all_clusters:
        return tuple(inventory.clusters)
    chosen: dict[str, None] = {}
    for platform, names in choice.clusters.items():
        of_platform = [name for name, its in inventory.clusters.items() if its == platform]
        for name in names:
            other = inventory.clusters.get(name, platform)
            if other != platform:
                is_one = describe(other)
                raise ConfigError(
                    f"cluster {name!r} is {is_one.a_cluster}", hint=f"name it with {is_one.option[0]}"
                )
            if name not in of_platform:
                raise unknown(f"{platform} cluster", name, of_platform)
            chosen[name] = None
    return tuple(chosen)


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not there, with the near one as its hint."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return ConfigError(f"unknown {what} {name!r}", hint=hint)


def _functions(inventory: Inventory, choice: Choice) -> dict[str, str]:
    """The chosen functions, and the scenario of each."""
    if choice.scenario and choice.scenario not in inventory.scenarios:
        raise unknown("scenario", choice.scenario, inventory.scenarios)
    scenarios = [choice.scenario] if choice.scenario else list(inventory.scenarios)
    owners: dict[str, list[str]] = {}
    for scenario in scenarios:
        for name in inventory.scenarios[scenario]:
            owners.setdefault(name, []).append(scenario)
    for name in choice.functions:
        if name not in owners:
            raise unknown(
                f"function in scenario {choice.scenario}:" if choice.scenario else "function", name, owners
            )
    wanted = list(dict.fromkeys(choice.functions)) or list(owners)
    for name in wanted:
        if len(owners[name]) > 1:
            raise ConfigError(
                f"function {name!r} is in several scenarios: {', '.join(owners[name])}",
                hint="say which one with -s",
            )
    return {name: owners[name][0] for name in wanted}
