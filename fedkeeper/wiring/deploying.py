"""The functions of a run, brought to their platforms with this keeper's settings."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedkeeper import deployment
from fedkeeper.config import Experiment
from fedkeeper.core.model import RunSpec
from fedkeeper.deployment import Line, Target
from fedkeeper.errors import DeploymentFailed
from fedkeeper.keeper.ports import Before, Deployment
from fedkeeper.keeper.tasks import FORWARD_FUNCTION
from fedkeeper.providers.base import Provider
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.wiring.clusters import Clusters
from fedkeeper.wiring.packages import Packages, embedded_clusters

NAMED_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDeployer:
    """A `keeper.ports.Deployer` over the platforms of an experiment."""

    experiment: Experiment
    clusters: Clusters
    store: StoreAddress = field(repr=False)

    async def deploy(self, spec: RunSpec, before: Before) -> Deployment:
        """All functions of the run. DeploymentFailed names those that could not be, and why."""
        lines = await self._bring(spec, self._targets(spec), before)
        urls = {line.function: line.url for line in lines}
        states = Counter(str(line.state) for line in lines)
        return Deployment(
            urls={place.client: urls[place.client] for place in spec.clients if place.route == "invoker"},
            summary=", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        )

    async def redeploy(self, spec: RunSpec, cluster: str, function: str, before: Before) -> None:
        """One function that has vanished. DeploymentFailed says why it could not be put back."""
        await self._bring(spec, (Target(cluster=cluster, function=function),), before)

    def _targets(self, spec: RunSpec) -> tuple[Target, ...]:
        forwarding = any(place.route == "invoker" for place in spec.clients)
        server = self.experiment.learning.server_config.server_manager_functions
        return (
            *(
                Target(cluster=spec.server_cluster, function=name)
                for name in server
                if forwarding or name != FORWARD_FUNCTION
            ),
            *(Target(cluster=place.cluster, function=place.client) for place in spec.clients),
        )

    async def _bring(self, spec: RunSpec, targets: tuple[Target, ...], before: Before) -> tuple[Line, ...]:
        packages = Packages(  # made anew: the functions' sources may have been edited
            experiment=self.experiment,
            scenario=self.experiment.learning_name,
            store=self.store,
            access=self.clusters.access,
            clients=frozenset(place.client for place in spec.clients),
        )
        # Zips and digests take a while: on a thread, where heartbeats and commands do not wait for them.
        wanted = await asyncio.to_thread(lambda: [packages.wanted(target) for target in targets])
        lines = await deployment.deploy(
            wanted,
            self._providers,
            in_flight_max=self.experiment.limits.deployments_in_flight_max,
            progress=lambda _: None,
            patience=deployment.Patience.of(self.experiment.limits),
            take_over=embedded_clusters(self.experiment),
            before=before,
        )
        failed = deployment.failures(lines)
        if failed:
            await before()  # if this keeper conducts no more, that is the reason
            raise _failure(failed)
        return lines

    @property
    def _providers(self) -> Mapping[str, Provider]:
        return self.clusters.providers


def _failure(failed: tuple[Line, ...]) -> DeploymentFailed:
    first = failed[0]
    others = [f"{line.cluster}/{line.function}" for line in failed[1:NAMED_MAX]]
    more = f" and {len(failed) - NAMED_MAX} more" if len(failed) > NAMED_MAX else ""
    also = f" (also failed: {', '.join(others)}{more})" if others else ""
    return DeploymentFailed(first.cluster, first.function, f"{first.problem}{also}", hint=first.hint)
