"""The platforms of one experiment, opened: to deploy, describe, invoke and remove functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from pydantic import SecretStr

from fedkeeper import deployment
from fedkeeper.clock import SystemClock
from fedkeeper.config import Experiment, Learning
from fedkeeper.deployment import Line, Progress, Target
from fedkeeper.logs import register_secret
from fedkeeper.providers.base import Provider
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.embedded import open_embedded_mongo
from fedkeeper.wiring.clusters import Clusters, open_clusters
from fedkeeper.wiring.keeping import keep_alive, keep_open
from fedkeeper.wiring.packages import Packages, embedded_clusters, learning_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSession:
    """What `open_experiment` gives."""

    experiment: Experiment
    clusters: Clusters
    packages: Packages

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The clusters that were asked for, by name."""
        return self.clusters.providers

    def targets(self) -> tuple[Target, ...]:
        """Where `main.py` deploys: each client under its name, server functions on the server's cluster."""
        return learning_targets(self.experiment)

    async def deploy(self, progress: Progress, targets: Sequence[Target] | None = None) -> tuple[Line, ...]:
        """Build and deploy `targets`, those of `targets()` if None. "client_3" is made from fl_client."""
        wanted = [self.packages.wanted(one) for one in (self.targets() if targets is None else targets)]
        return await deployment.deploy(
            wanted,
            self.providers,
            in_flight_max=self.experiment.limits.deployments_in_flight_max,
            progress=progress,
            patience=deployment.Patience.of(self.experiment.limits),
            take_over=embedded_clusters(self.experiment),
        )


@asynccontextmanager
async def open_experiment(
    experiment: Experiment,
    *,
    scenario: str | None = None,
    clusters: Collection[str] | None = None,
) -> AsyncIterator[ExperimentSession]:
    """Open the platforms; everything is closed in the reverse order, whatever happens.

    Args:
        experiment: the config, loaded.
        scenario: whose functions are deployed; the one that is learned if None. If it learns, its functions
            are told the store, which is opened for them.
        clusters: names of those to open; all if None.
    """
    chosen = experiment.learning_name if scenario is None else scenario
    async with AsyncExitStack() as stack:
        store = None
        if isinstance(experiment.scenario(chosen), Learning):
            store = await open_store_address(experiment, stack)
        names = tuple(experiment.clusters()) if clusters is None else tuple(clusters)
        opened = await open_clusters(experiment, names, stack)
        yield ExperimentSession(
            experiment=experiment,
            clusters=opened,
            packages=Packages(experiment=experiment, scenario=chosen, store=store, access=opened.access),
        )


async def open_store_address(experiment: Experiment, stack: AsyncExitStack) -> StoreAddress:
    """Where the store is; an embedded mongod is joined, or started, and runs until `stack` is closed."""
    mongo = experiment.learning.mongo_config
    if not mongo.embedded:
        address = mongo.address()
    else:
        opened = await open_embedded_mongo(
            experiment.embedded.data_dir / "mongo",
            port=mongo.port,
            database=mongo.db,
            collection=mongo.collection,
            cache_mb=mongo.cache_mb,
            linger_s=experiment.embedded.linger_s,
            start_timeout_s=experiment.embedded.start_timeout_s,
        )
        stack.push_async_callback(opened.close)
        keep_open(stack, keep_alive("mongod's guard", opened.running.ensure, SystemClock()))
        address = replace(opened.address, wait_s=mongo.wait_s)
    if address.password:
        register_secret(SecretStr(address.password))
    return address
