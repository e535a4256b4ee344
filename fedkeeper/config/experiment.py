"""The whole file, and the experiment that it describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
    Tag,
)

from fedkeeper.config.base import ConfigPath, Name, Number, Section, Text, empty, near
from fedkeeper.config.files import find
from fedkeeper.config.functions import Function
from fedkeeper.config.keepers import Keepers
from fedkeeper.config.places import Providers, default_function
from fedkeeper.config.providers import Cluster
from fedkeeper.config.redaction import Scrubber, without_query
from fedkeeper.config.scenario import ClientsInfo, Learning, Limits, Scenario, scenario_class
from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS, describe

T = TypeVar("T")
# What an embedded OpenWhisk runs an image's code with; which versions there are, the fabric knows.
Kind = Annotated[Text, StringConstraints(pattern=r"^(python|nodejs):(default|\d+(\.\d+)?)$")]


class Embedded(Section):
    """`embedded`: settings of the parts that run here, whichever are embedded."""

    data_dir: ConfigPath = Field(
        default=Path(".fedkeeper"), description="folder of mongod's, the fabric's and the keepers' data"
    )
    fabric_port: Annotated[NonNegativeInt, Number, Field(le=65_535)] = Field(
        default=0, description="port of the embedded platforms; 0: any free one"
    )
    memory_mb: Annotated[PositiveInt, Number, Field(ge=512)] = Field(
        default=8192,
        description="sum of the memory limits of all function instances alive at once (MB); they share"
        " TensorFlow, so that the memory really used is far less",
    )
    queue_max: Annotated[PositiveInt, Number] = Field(
        default=10_000,
        description="most requests to functions that run here or wait for a worker (count); more are"
        " answered 429",
    )
    connections_max: Annotated[NonNegativeInt, Number] = Field(
        default=0,
        description="open connections to the embedded platforms (count); for more, the one that has waited"
        " longest for its client is closed. 0: queue_max + 1024",
    )
    payload_mb_max: Annotated[PositiveInt, Number] = Field(
        default=512,
        description="what callers of the embedded platforms sent and that arrives, waits or is worked on"
        " (MB, as it was sent); more is answered 429",
    )
    share_workers: bool = Field(
        default=True,
        description="OpenWhisk actions of the same code, parameters, limits and version share worker"
        " processes (clients are one package under many names); false: workers of their own, as on a real"
        " cluster",
    )
    workers_busy_max: Annotated[NonNegativeInt, Number] = Field(
        default=0,
        description="most workers of one OpenWhisk action, or of those that share workers, that run at once"
        " (count); others wait. 0: the number of processors + 2",
    )
    invocations_per_minute: Annotated[PositiveInt, Number] = Field(
        default=1_000_000,
        description="most invocations in one OpenWhisk namespace in a minute of the clock (count); more are"
        " answered 429, as on a cluster",
    )
    images: Mapping[Text, Kind] = Field(
        default_factory=dict,
        description="OpenWhisk images that a runtime of this machine stands in for, each with its kind, e.g."
        " `{registry/tf:1: python:default}`; other images are answered as if they could not be pulled",
    )
    linger_s: Annotated[PositiveFloat, Number] = Field(
        default=60.0, description="how long embedded services outlive the last one who used them (seconds)"
    )
    start_timeout_s: Annotated[PositiveFloat, Number] = Field(
        default=60.0, description="how long an embedded service may take to start (seconds)"
    )


class Logs(Section):
    """`logs`: what is written down, and where."""

    folder: ConfigPath = Field(default=Path("logs"), description="folder with one folder per run")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is written"
    )


def _scenario_tag(raw: Any) -> str:
    kind = type(raw) if isinstance(raw, Learning | Scenario) else scenario_class(raw)
    return kind.__name__


AnyScenario = Annotated[
    Annotated[Learning, Tag("Learning")] | Annotated[Scenario, Tag("Scenario")], Discriminator(_scenario_tag)
]


def _known_version(value: Any) -> Any:
    if str(value) != "1":
        raise ValueError("is not a version that this FedKeeper reads; write 1")
    return 1


class Config(Section):
    """The file. Its shape is that of fl_faas_fabric's, with more keys."""

    version: Annotated[int, BeforeValidator(_known_version)] = Field(
        default=1, description="version of the file's shape: 1"
    )
    name: Name = Field(
        description="name of the experiment: its runs, logs and stored objects are called by it"
    )
    seed: Annotated[int, Number, Field(ge=0, lt=2**31)] = Field(
        default=0,
        description="start of all chance (whole number): the same config and seed give the same weights",
    )
    function_prefix: Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,18}_)?$")] = Field(
        default="",
        description="what all functions' names on the platforms begin with, e.g. `mine_`: lower-case letters,"
        " digits and _, at most 20, the last one _; for experiments that share a cluster",
    )
    embedded: Embedded = Field(
        default_factory=empty, description="settings of the parts that run on this machine"
    )
    logs: Logs = Field(default_factory=empty, description="what is written down, and where")
    keepers: Keepers = Field(
        default_factory=empty, description="the processes that keep the runs' state and conduct them"
    )
    providers: Providers = Field(description="the FaaS platforms and their clusters")
    scenarios: Annotated[Mapping[str, AnyScenario], Field(min_length=1)] = Field(
        description="what to do: the one with clients_info is learned, others only have functions"
    )


# What decides the outcome of a run, or was fixed when it was submitted (see core.model.RunSpec).
_DEFINING: Any = {
    "server_config": {"server_cluster_name"},
    "clients_info": {"total_num_clients", "num_clients_per_round"},
    "data_sampling": True,
    "partition": True,
    "training_test_data": True,
    "model_params": True,
    "stopping": True,
    "limits": True,
}
_DEFINING_LIMITS = (
    "attempts_max",
    "client_timeout_s",
    "server_timeout_s",
    "round_timeout_s",
    "retry_backoff_s",
    "model_bytes_max",
)


# As the ancestor named them.
_PARAMS = {
    "fl_server_init": "params/fl_server_init.json",
    "fl_server_aggregator": "params/usage_num_clients.json",
}


class Placement(NamedTuple):
    """A client and where it lives."""

    client: str  # "client_3"
    cluster: str
    route: str  # direct | invoker


class Experiment(Config):
    """A file that was read and found right. Made by `load`; its repr shows no value."""

    _path: Path = PrivateAttr(default=Path())
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _scrub: Scrubber = PrivateAttr(default_factory=Scrubber)

    def __repr__(self) -> str:
        return f"Experiment({self.name!r}, {str(self._path)!r})"

    __str__ = __repr__

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self._folder

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the file says that is outdated or unwise, and what to write instead."""
        return self._warnings

    @property
    def keepers_folder(self) -> Path:
        """Where the keepers of this experiment have their data, each in a folder of its name."""
        return (self.keepers.data_dir or self.embedded.data_dir / "keepers") / self.name

    def clusters(self) -> dict[str, Cluster]:
        """All clusters by name: platform by platform, each in the file's order."""
        return {name: one for platform in PLATFORMS for name, one in self.providers.of(platform).items()}

    def cluster(self, name: str) -> Cluster:
        """The cluster of that name. ConfigError suggests the near one."""
        return _pick("cluster", name, self.clusters())

    def scenario(self, name: str) -> Learning | Scenario:
        """The scenario of that name. ConfigError suggests the near one."""
        return _pick("scenario", name, self.scenarios)

    @property
    def learning_name(self) -> str:
        """Name of the scenario that is learned. ConfigError if the file has none."""
        names = [name for name, scenario in self.scenarios.items() if isinstance(scenario, Learning)]
        if not names:
            raise ConfigError(
                f"{self._path.name} has nothing to learn: no scenario has clients_info",
                hint="config-sample.yaml has one, `federated_learning`",
            )
        return names[0]

    @property
    def learning(self) -> Learning:
        """The scenario that is learned. ConfigError if the file has none."""
        found = self.scenarios[self.learning_name]
        assert isinstance(found, Learning)
        return found

    @property
    def learning_seed(self) -> int:
        """Start of all chance of the run: the scenario's seed, else the file's."""
        return self.seed if self.learning.seed is None else self.learning.seed

    def placements(self) -> tuple[Placement, ...]:
        """Every client with its cluster and route, `client_0` first, in the ancestor's order of platforms."""
        clusters = self.clusters()
        homes = place(self.learning.clients_info, self.providers)
        return tuple(
            Placement(f"client_{number}", home, clusters[home].route) for number, home in enumerate(homes)
        )

    def in_flight_max(self, cluster: str) -> int:
        """Most invocations on their way to this cluster at once."""
        return self.cluster(cluster).concurrency or self.limits.invocations_in_flight_max

    @property
    def limits(self) -> Limits:
        """The limits of the scenario that is learned; the defaults in a file that has none."""
        learned = [one.limits for one in self.scenarios.values() if isinstance(one, Learning)]
        return learned[0] if learned else Limits()

    def function(self, scenario: str, function: str, platform: str) -> Function:
        """How `function` is deployed on `platform`: as the file says, or by default."""
        places = self.scenario(scenario).functions.get(function)
        found = places.on(platform) if places else None
        return found or default_function(platform)

    def source(self, scenario: str, function: str, platform: str) -> Path:
        """The folder (or .py file) that `function` is made of. ConfigError if there is none."""
        configured = self.function(scenario, function, platform).func_path
        try:
            return configured or find(f"functions/{function}", folder=self._folder)
        except ValueError as exc:
            hint = f"write its folder as scenarios.{scenario}.functions.{function}.{platform}.func_path"
            raise ConfigError(f"function {function!r}: {exc}", hint=hint) from None

    def params_path(self, function: str, platform: str) -> Path:
        """Where the inputs of `function` are written for people: a .json file, for clients a folder."""
        learning = self.learning
        written = self.function(self.learning_name, function, platform).params_file_path
        usual = "params/clients/" if function == learning.client_function else _PARAMS[function]
        return self._folder / (written or usual)

    def redacted(self) -> dict[str, Any]:
        """The config as run, plain JSON types, no secret: nor what came from the environment."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        shown: dict[str, Any] = self._scrub.tree(plain)
        return shown

    def fingerprint(self) -> dict[str, str]:
        """Key path -> value of all that defines the experiment, for saying which keys of a run were changed.

        Left out: secrets, addresses, ports, paths, logs, and how functions are deployed: with other ones
        of those the same experiment goes on.
        """
        learning = self.learning
        plain = learning.model_dump(mode="json", include=_DEFINING)
        plain["limits"] = {key: plain["limits"][key] for key in _DEFINING_LIMITS}
        plain["limits"]["min_updates"] = learning.min_updates
        plain["data_sampling"].pop("include")
        for key, source in plain["training_test_data"].items():
            # What has a sha256 is known by it, wherever it comes from.
            url = self._scrub.text(without_query(source["url"])).replace(self._folder.as_uri() + "/", "")
            plain["training_test_data"][key] = {**source, "url": "" if source["sha256"] else url}
        mongo = learning.mongo_config
        facts = {
            "scenarios": {
                self.learning_name: {
                    **plain,
                    "mongo_config": {"db": mongo.db, "collection": mongo.collection},
                }
            },
            "name": self.name,
            "seed": self.learning_seed,
            "providers": {
                cluster.platform: {
                    cluster_name: {"route": cluster.route, "clients": self._clients_on(cluster_name)}
                }
                for cluster_name, cluster in self.clusters().items()
                if self._clients_on(cluster_name)
            },
        }
        return dict(sorted(_leaves(facts)))

    def digest(self) -> str:
        """sha256 of the fingerprint, hex."""
        return hashlib.sha256(json.dumps(self.fingerprint(), sort_keys=True).encode()).hexdigest()

    def _clients_on(self, cluster: str) -> str:
        return ",".join(p.client for p in self.placements() if p.cluster == cluster)


def place(clients: ClientsInfo, providers: Providers) -> tuple[str, ...]:
    """The cluster of each client, by its number: platform by platform, in blocks."""
    counts: dict[str, int] = {}
    for platform in PLATFORMS:
        names = getattr(providers, platform)
        if clients.clients_per_cluster:
            counts |= {name: clients.clients_per_cluster.get(name, 0) for name in names}
        else:
            counts |= _spread(getattr(clients, describe(platform).count_key), names)
    return tuple(name for name, count in counts.items() for _ in range(count))


def _spread(count: int, clusters: Iterable[str]) -> dict[str, int]:
    """Evenly, and the first clusters take what is left over: 7 on two clusters are 4 and 3."""
    names = tuple(clusters)
    return {name: count // len(names) + (number < count % len(names)) for number, name in enumerate(names)}


def _pick(what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise ConfigError(f"there is no {what} {name!r}", hint=near(name, known))
    return known[name]


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value if isinstance(value, str) else json.dumps(value)
