"""What an experiment asks of the machine that it is run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedkeeper.config import Experiment, Learning

MONGOD_MB = 250  # its cache's floor and itself, while it works
KEEPER_MB = 80
BASE_MB = 600  # the process that has imported TensorFlow, which workers are forked from, and the command
MONGOD_DISK_MB = 2000  # its journal may grow to 2 GB between two checkpoints
LOGS_DISK_MB = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Megabytes are MiB. The defaults are those of no experiment at all."""

    fabric: bool = False  # embedded platforms
    fabric_mb: int = 0  # embedded.memory_mb
    largest_mb: int = 0  # limit of the largest function on an embedded platform
    at_once_mb: int = 0  # limits of all clients that train in a round on embedded platforms, at most
    at_once: int = 0  # how many those are
    tensorflow: bool = False  # functions that train run here
    google: bool = False
    mongod: bool = False
    keepers: int = 0  # embedded ones
    files: int = 256  # open at once, in one process
    folder: Path = Path()  # of the embedded services' data
    logs: Path = Path()

    @property
    def memory_mb(self) -> int:
        """Without which nothing can be begun: one function, and what is around it."""
        here = self.fabric or self.mongod or bool(self.keepers)
        services = self.mongod * MONGOD_MB + self.keepers * KEEPER_MB
        return here * (BASE_MB + services) + self.largest_mb

    @property
    def disk_mb(self) -> int:
        """In the folder of the embedded services' data."""
        return self.mongod * MONGOD_DISK_MB + LOGS_DISK_MB


NOTHING = Needs()


def needs_of(experiment: Experiment) -> Needs:
    """What `experiment` needs here; of an experiment without learning, what its functions do."""
    clusters = experiment.clusters()
    here = {name: cluster.platform for name, cluster in clusters.items() if cluster.embedded}
    sizes, clients = _embedded_functions(experiment, here)
    learns = any(isinstance(one, Learning) for one in experiment.scenarios.values())
    per_round = experiment.learning.clients_info.num_clients_per_round if learns else 0
    at_once = sorted(clients, reverse=True)[:per_round]
    in_flight = sum(experiment.in_flight_max(name) for name in clusters)
    return Needs(
        fabric=bool(here),
        fabric_mb=experiment.embedded.memory_mb,
        largest_mb=max((*sizes, *clients), default=0),
        at_once_mb=sum(at_once),
        at_once=len(at_once),
        tensorflow=bool(clients)
        or (learns and experiment.learning.server_config.server_cluster_name in here),
        google=any(cluster.platform == "google" for cluster in clusters.values()),
        mongod=learns and experiment.learning.mongo_config.embedded,
        keepers=experiment.keepers.count if learns and experiment.keepers.embedded else 0,
        # A connection per invocation in flight on either side, streams of the API, files of the services.
        files=256 + 2 * in_flight + experiment.keepers.api.streams_max,
        folder=experiment.embedded.data_dir,
        logs=experiment.logs.folder,
    )


def _embedded_functions(experiment: Experiment, here: dict[str, str]) -> tuple[list[int], list[int]]:
    """Memory (MB) of functions and of clients on embedded platforms."""
    sizes: list[int] = []
    clients: list[int] = []
    for name, scenario in experiment.scenarios.items():
        for function, places in scenario.functions.items():
            for platform in set(here.values()):
                if places.on(platform) is not None:
                    sizes.append(experiment.function(name, function, platform).memory)
        if not isinstance(scenario, Learning):
            continue
        server = scenario.server_config
        if server.server_cluster_name in here:
            platform = here[server.server_cluster_name]
            sizes += [
                experiment.function(name, one, platform).memory for one in server.server_manager_functions
            ]
        clients += [
            experiment.function(name, scenario.client_function, here[place.cluster]).memory
            for place in experiment.placements()
            if place.cluster in here
        ]
    return sizes, clients
