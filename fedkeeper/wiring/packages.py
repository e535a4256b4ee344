"""Which functions an experiment consists of, and what is in their packages and environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from pydantic import SecretStr

from fedkeeper import packaging
from fedkeeper.config import Experiment
from fedkeeper.config.scenario import Learning
from fedkeeper.deployment import Target, Wanted
from fedkeeper.keeper.tasks import AGGREGATE_FUNCTION, FORWARD_FUNCTION
from fedkeeper.providers.base import Package, owner_mark
from fedkeeper.runtime.environment import (
    AHEAD_VARIABLE,
    CLIENTS_VARIABLE,
    DOWNLOADS_VARIABLE,
    STORE_VARIABLE,
    Ahead,
    ClientAccess,
    DownloadLimits,
    StoreAddress,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Builds packages, each archive once."""

    experiment: Experiment
    scenario: str
    store: StoreAddress | None = field(repr=False)
    access: Mapping[str, ClientAccess] = field(repr=False)
    clients: frozenset[str] = frozenset()  # of a run, where the config may have others by now
    _archives: dict[tuple[Path, str, bool, bool], bytes] = field(default_factory=dict, repr=False)

    def wanted(self, target: Target) -> Wanted:
        """The package of `target`. ConfigError if its function has no source for that platform."""
        source_name = self._source_of(target.function)
        cluster = self.experiment.cluster(target.cluster)
        platform = cluster.platform
        settings = self.experiment.function(self.scenario, source_name, platform)
        source = self.experiment.source(self.scenario, source_name, platform)
        # Embedded platforms install nothing; they see by it what to import ahead, in an image's place too.
        requirements = settings.requirements or cluster.embedded
        archive = self._archive(source, platform, requirements=requirements, node=settings.node)
        package = Package(
            function=target.function,
            source=source_name,
            archive=archive,
            digest="",
            entry=settings.entry,
            runtime=settings.runtime,
            image=settings.image,
            memory_mb=settings.memory,
            timeout_s=settings.timeout_s,
            concurrency=settings.concurrency,
            owner=owner_mark(self.experiment.name) if self._learning() is not None else "",
            environment=self._environment(target, source_name),
            extras=settings.extras,
            ahead=self._every_round(source_name),
        )
        digest = packaging.digest(
            archive,
            environment=package.environment,
            entry=package.entry,
            runtime=package.runtime,
            image=package.image,
            memory_mb=package.memory_mb,
            timeout_s=package.timeout_s,
            concurrency=package.concurrency,
            **({"extras": dict(package.extras)} if package.extras else {}),
        )
        return Wanted(cluster=target.cluster, package=replace(package, digest=digest))

    def _source_of(self, function: str) -> str:
        """A client's function is a copy of the client function; every other one is its own."""
        learning = self._learning()
        if learning is not None and (
            function in self.clients or function in {place.client for place in self.experiment.placements()}
        ):
            return learning.client_function
        return function

    def _every_round(self, source: str) -> bool:
        """Whether each round calls it, and waits for it."""
        learning = self._learning()
        return learning is not None and source in (learning.client_function, AGGREGATE_FUNCTION)

    def _learning(self) -> Learning | None:
        scenario = self.experiment.scenario(self.scenario)
        return scenario if isinstance(scenario, Learning) else None

    def _archive(self, source: Path, platform: str, *, requirements: bool, node: bool) -> bytes:
        wanted = (source, platform, requirements, node)
        if wanted not in self._archives:
            learning = self._learning()
            include = learning.data_sampling.include if learning is not None else ()
            self._archives[wanted] = packaging.build(
                source, platform, include=include, requirements=requirements, node=node
            )
        return self._archives[wanted]

    def _environment(self, target: Target, source: str) -> dict[str, SecretStr]:
        """What the function must know, and nothing more: clients of the invoker route get no credentials."""
        learning = self._learning()
        if learning is None or self.store is None:
            return {}
        client = source == learning.client_function
        if not client and source not in learning.server_config.server_manager_functions:
            return {}
        limits = DownloadLimits(
            timeout_s=learning.limits.download_timeout_s, bytes_max=learning.limits.download_bytes_max
        )
        # Only where they differ: every function that is deployed already would be another one.
        environment = {DOWNLOADS_VARIABLE: _secret(limits)} if limits != DownloadLimits() else {}
        if client:
            training = learning.training_spec()
            environment[AHEAD_VARIABLE] = _secret(
                Ahead(
                    model=learning.model_spec(),
                    optimizer=training.optimizer,
                    proximal_mu=training.proximal_mu,
                    batch_size=training.batch_size,
                )
            )
        if client and self.experiment.cluster(target.cluster).route == "invoker":
            return environment
        environment[STORE_VARIABLE] = _secret(self.store)
        if source == FORWARD_FUNCTION:
            forwarded = {place.cluster for place in self.experiment.placements() if place.route == "invoker"}
            access = {name: one for name, one in sorted(self.access.items()) if name in forwarded}
            environment[CLIENTS_VARIABLE] = _secret(access)
        return environment


def learning_targets(experiment: Experiment) -> tuple[Target, ...]:
    """Every client under its name on its cluster, the server functions on the server's cluster."""
    server = experiment.learning.server_config
    forwarding = any(place.route == "invoker" for place in experiment.placements())
    functions = [name for name in server.server_manager_functions if forwarding or name != FORWARD_FUNCTION]
    return (
        *(Target(cluster=server.server_cluster_name, function=name) for name in functions),
        *(Target(cluster=place.cluster, function=place.client) for place in experiment.placements()),
    )


def embedded_clusters(experiment: Experiment) -> frozenset[str]:
    """Clusters of this machine: what another experiment has left there is in nobody's way."""
    return frozenset(name for name, cluster in experiment.clusters().items() if cluster.embedded)


def _secret(value: object) -> SecretStr:
    return SecretStr(msgspec.json.encode(value, order="sorted").decode())
