"""What an experiment asks of a platform, against what the platform says that it allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedkeeper.config import Experiment, Learning
from fedkeeper.config.functions import Function
from fedkeeper.fabric.credentials import Settings
from fedkeeper.providers.base import PlatformLimits
from fedkeeper.wiring.doctor.findings import Finding, missing, note
from fedkeeper.wiring.packages import learning_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A function that `-d` would deploy on a cluster."""

    scenario: str
    function: str  # its source, e.g. "fl_client"
    settings: Function


def refusals(experiment: Experiment, cluster: str, limits: PlatformLimits) -> Iterator[Finding]:
    """Deployments that the platform would refuse, and invocations of a round that would be held up."""
    found = experiment.cluster(cluster)
    platform, embedded = found.platform, found.embedded
    raising = "have the cluster's operator raise the limit"
    if embedded:
        raising = "raise embedded.invocations_per_minute"
    for asked in asked_of(experiment, cluster):
        at = f"scenarios.{asked.scenario}.functions.{asked.function}.{platform}"
        for key, wanted, allowed in _outside(asked.settings, limits):
            yield missing(
                f"cluster {cluster}",
                f"{asked.function} asks for {wanted}, and {allowed}: its deployment would be refused",
                f"change {at}.{key}" + ("" if embedded else f", or {raising}"),
            )
    at_once = _per_round(experiment, cluster)
    for allowed_count, what in (
        (limits.per_minute, "invocations per minute"),
        (limits.concurrent, "activations in flight"),
    ):
        if allowed_count is not None and at_once > allowed_count:
            yield note(
                f"cluster {cluster}",
                f"a round invokes {at_once} functions at once, and {allowed_count} {what} are allowed:"
                " the others wait",
                f"spread the clients over more clusters, or {raising}",
            )


def of_embedded(experiment: Experiment) -> Iterator[Finding]:
    """The same of embedded OpenWhisks, whose limits are known unasked; memory has a line of its own."""
    settings = Settings(invocations_per_minute=experiment.embedded.invocations_per_minute)
    bounds = settings.bounds()
    shortest, longest = bounds.timeout_ms
    limits = PlatformLimits(
        per_minute=bounds.invocations_per_minute,
        timeout_s=(shortest / 1000, longest / 1000),
        concurrency=bounds.concurrency,
    )
    for name, cluster in experiment.clusters().items():
        if cluster.embedded and cluster.platform == "openwhisk":
            yield from refusals(experiment, name, limits)


def asked_of(experiment: Experiment, cluster: str) -> tuple[Asked, ...]:
    """Every function, once, that `-d` would deploy on `cluster`."""
    platform = experiment.cluster(cluster).platform
    found: dict[tuple[str, str], Asked] = {}
    for name, scenario in experiment.scenarios.items():
        if isinstance(scenario, Learning):
            clients = {place.client for place in experiment.placements()}
            here = [one.function for one in learning_targets(experiment) if one.cluster == cluster]
            functions = [scenario.client_function if one in clients else one for one in here]
        else:
            functions = [one for one, places in scenario.functions.items() if places.on(platform) is not None]
        for function in functions:
            settings = experiment.function(name, function, platform)
            found.setdefault((name, function), Asked(scenario=name, function=function, settings=settings))
    return tuple(found.values())


def _outside(settings: Function, limits: PlatformLimits) -> Iterator[tuple[str, str, str]]:
    """Key, what is asked for, and what is allowed, of each limit that it is outside of."""
    for key, value, bounds, unit in (
        ("memory", settings.memory, limits.memory_mb, " MB"),
        ("timeout", settings.timeout_s, limits.timeout_s, " s"),
        ("concurrency", settings.concurrency, limits.concurrency, ""),
    ):
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            allowed = f"{bounds[0]:g} to {bounds[1]:g}{unit} are allowed"
            yield key, f"{key} {value:g}{unit}", allowed
    kind = "blackbox" if settings.image else settings.runtime
    family = kind.removesuffix("default") if kind.endswith(":default") else kind
    if kind and limits.runtimes and not any(one.startswith(family) for one in limits.runtimes):
        key = "docker_image" if settings.image else "runtime"
        yield key, f"runtime {kind}", f"only {', '.join(limits.runtimes)} are allowed"


def _per_round(experiment: Experiment, cluster: str) -> int:
    """Functions of `cluster` that the training of a round invokes at once, at most."""
    count = 0
    for scenario in experiment.scenarios.values():
        if not isinstance(scenario, Learning):
            continue
        per_round = scenario.clients_info.num_clients_per_round
        places = experiment.placements()
        count += min(per_round, sum(place.cluster == cluster for place in places))
        if scenario.server_config.server_cluster_name == cluster:  # one forwards to each such client
            count += min(per_round, sum(place.route == "invoker" for place in places))
    return count
