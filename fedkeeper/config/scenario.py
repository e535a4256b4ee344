"""`scenarios`: what is learned, by whom, from which data; and scenarios that only have functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from fedkeeper.config.base import DOTTED, ExistingPath, Number, Section, Text, empty, size_bytes
from fedkeeper.config.files import find
from fedkeeper.config.mongo import Mongo
from fedkeeper.config.places import ClientCounts, FunctionPlaces
from fedkeeper.runtime import wire

Count = Annotated[PositiveInt, Number]
Bytes = Annotated[PositiveInt, BeforeValidator(size_bytes)]
Seconds = Annotated[PositiveFloat, Number]

SERVER_FUNCTIONS = ("fl_server_init", "fl_server_aggregator", "fl_invoker_weights_update")


class ServerConfig(Section):
    """`server_config`: where the managing functions run."""

    server_cluster_name: Text = Field(
        description="the cluster, of any platform, that runs the server functions"
    )
    server_manager_functions: tuple[Text, ...] = Field(
        default=SERVER_FUNCTIONS,
        description="the server functions; the last is only needed by clients of route `invoker`",
    )


class ClientsInfo(ClientCounts):  # type: ignore[misc]
    """`clients_info`: how many clients there are, and where they run."""

    total_num_clients: Annotated[Count, Field(le=10_000)] = Field(description="clients in all (count)")
    num_clients_per_round: Count = Field(
        description="clients that train in a round (count), drawn anew each round"
    )
    clients_per_cluster: Mapping[str, Annotated[NonNegativeInt, Number]] = Field(
        default_factory=dict,
        description="clients of each cluster by its name (count), instead of the counts above",
    )
    client_functions: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1)] = Field(
        default=("fl_client",), description="the function of which every client is a copy (one)"
    )


def _model(value: str) -> str:
    if value not in {"cnn", "mnistnn"} and not DOTTED.fullmatch(value):
        raise ValueError("no such model; write cnn, mnistnn, or module:function that returns a Keras model")
    return value


class DataSampling(Section):
    """`data_sampling`: the shape of the data and the model that fits it."""

    input_size: Count = Field(
        default=784, description="numbers per sample: input_shape_x * input_shape_y * input_channels"
    )
    hidden_size: Count = Field(default=500, description="units of mnistnn's hidden layer (count)")
    output_size: Annotated[Count, Field(ge=2)] = Field(default=10, description="classes (count)")
    input_shape_x: Count = Field(default=28, description="width of an image (pixels)")
    input_shape_y: Count = Field(default=28, description="height of an image (pixels)")
    input_channels: Count = Field(default=1, description="colour channels of an image (count)")
    batch_size: Count = Field(default=10, description="samples per training step (count)")
    model: Annotated[Text, AfterValidator(_model)] = Field(
        default="cnn", description="`cnn`, `mnistnn`, or `module:function` that returns a Keras model"
    )
    include: tuple[ExistingPath, ...] = Field(
        default=(),
        description="files or folders of yours for the functions' packages, e.g. the module of your model",
    )


class Partition(Section):
    """`partition`: how the training rows are dealt to the clients."""

    scheme: Literal["iid", "shards", "dirichlet"] = Field(
        default="iid",
        description="`iid`: at random; `shards`: each client gets shards of the rows sorted by label"
        " (McMahan et al.); `dirichlet`: each client's share of each label is drawn with `alpha`",
    )
    shards_per_client: Count = Field(default=2, description="for `shards` (count)")
    alpha: Annotated[PositiveFloat, Number] = Field(
        default=0.5, description="for `dirichlet`: small is uneven, large is even (no unit)"
    )


def _data_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name.lower()


def _data_url(value: str, info: ValidationInfo) -> str:
    """A usable address: relative paths become file:// URLs of what is beside the config, or was shipped."""
    if DOTTED.fullmatch(value):
        return value
    parts = urlsplit(value)
    if len(parts.scheme) > 1 and parts.scheme not in {"http", "https", "file"}:
        raise ValueError(
            "is not an address; write https://…, http://…, file:///…, a path, or module:function"
        )
    if "@" in parts.netloc:
        raise ValueError(
            "must not hold a user or password, as functions are told it openly; use a signed URL"
        )
    name = _data_name(value)
    if name.endswith((".obj", ".pkl", ".pickle", ".joblib", ".pt", ".pth")):
        raise ValueError(
            "is a pickle, and a pickle can run code; convert it to .npz (numpy.savez) and write that"
        )
    plain = name.removesuffix(".gz")
    if not (plain.endswith((".npz", ".npy", "ubyte")) or "idx" in plain):
        raise ValueError(
            "is of no known format; the name must end in .npz, .npy or be an idx file (.gz or not)"
        )
    if parts.scheme in {"http", "https"}:
        return value
    path = unquote(parts.path) if parts.scheme == "file" else value
    return find(path, folder=(info.context or {}).get("folder")).as_uri()


class DataSource(Section):
    """Where one array comes from. A plain text stands for its `url`."""

    text_key: ClassVar[str] = "url"
    # Not in the repr: an address may be a signed one.
    url: Annotated[Text, AfterValidator(_data_url)] = Field(
        repr=False,
        description="https://…, file:///…, a path relative to the config file, or `module:function`; .npz,"
        " .npy or idx (.gz), never a pickle",
    )
    array: Text = Field(
        default="",
        description="array's name in a .npz; default x_train, y_train, x_test, y_test as fits the key",
    )
    sha256: Annotated[Text, Field(pattern="^([0-9a-f]{64})?$")] = Field(
        default="", description="sha256 of the file (64 hex digits), checked after each download"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    def source(self, array: str) -> wire.Source:
        """As functions are told it; `array` is the default name within a .npz."""
        needs_name = _data_name(self.url).endswith(".npz")
        return wire.Source(
            url=self.url, array=self.array or (array if needs_name else ""), sha256=self.sha256
        )


class TrainingTestData(Section):
    """`training_test_data`: the four arrays of the experiment."""

    train_images_url: DataSource = Field(
        description="images (rows, height, width[, channels]), uint8 or 0..1"
    )
    train_labels_url: DataSource = Field(description="labels (rows), whole numbers from 0")
    test_images_url: DataSource = Field(description="images the aggregated model is tested on")
    test_labels_url: DataSource = Field(description="their labels")


class ModelParams(Section):
    """`model_params`: what a client does in a round."""

    lr: Annotated[PositiveFloat, Number] = Field(default=1e-3, description="learning rate (no unit)")
    optim: Literal["adam", "nadam", "sgd"] = Field(default="adam", description="the clients' optimiser")
    local_epochs: Annotated[Count, Field(le=1000)] = Field(
        default=1, description="passes over the client's rows per round (count)"
    )
    mu: Annotated[NonNegativeFloat, Number] = Field(
        default=0.0, description="FedProx's proximal term (no unit); 0 is FedAvg"
    )


class Stopping(Section):
    """`stopping`: when the run ends."""

    target_accuracy: Annotated[float, Number, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="end when a round's test accuracy reaches this (0..1); null: never for that reason",
    )
    rounds_max: Annotated[Count, Field(le=100_000)] = Field(
        default=50, description="end after this many rounds (count)"
    )


class Aggregation(Section):
    """`aggregation`: how the updates of a round become the next weights. Never what they become."""

    shards: Annotated[NonNegativeInt, Number, Field(le=256)] = Field(
        default=0,
        description="aggregators that share a round's work, each for a part of the weights (count); 0: as few"
        " as keep each of them below the two sizes that follow",
    )
    shard_bytes_max: Bytes = Field(
        default=128 * 1024 * 1024,
        description="weights of one aggregator (bytes; also 128MB); it needs memory for twice as much,"
        " and 64 MB",
    )
    shard_updates_bytes_max: Bytes = Field(
        default=4 * 1024 * 1024 * 1024,
        description="what one aggregator reads of all updates of a round (bytes; also 4GB)",
    )
    early_updates_min: Annotated[NonNegativeInt, Number] = Field(
        default=8,
        description="least number of updates that are added up while others are awaited (count); 0: never",
    )
    early_bytes_min: Annotated[NonNegativeInt, BeforeValidator(size_bytes)] = Field(
        default=256 * 1024 * 1024, description="least size of those updates together (bytes; also 256MB)"
    )


class Limits(Section):
    """`limits`: a bound on everything."""

    min_updates: Count | None = Field(
        default=None,
        description="updates without which a round fails the run (count); default: half of those asked",
    )
    attempts_max: Annotated[Count, Field(le=100)] = Field(
        default=3, description="invocations per client and round, and per server task (count)"
    )
    client_timeout_s: Seconds = Field(
        default=300.0, description="one attempt of one client, from its invocation (seconds)"
    )
    server_timeout_s: Seconds = Field(default=300.0, description="one attempt of a server function (seconds)")
    round_timeout_s: Annotated[NonNegativeFloat, Number] = Field(
        default=0.0, description="training phase of a round (seconds); 0: bounded by the attempts alone"
    )
    retry_backoff_s: Annotated[NonNegativeFloat, Number] = Field(
        default=1.0, description="pause before a second attempt (seconds); doubles with each further one"
    )
    poll_interval_s: Seconds = Field(
        default=0.05, description="shortest pause between two questions for outstanding updates (seconds)"
    )
    poll_interval_max_s: Seconds = Field(
        default=0.25, description="longest such pause, when nothing happens (seconds)"
    )
    platform_wait_s: Annotated[NonNegativeFloat, Number] = Field(
        default=30.0,
        description="wait for a platform that cannot be reached, before an attempt fails (seconds)",
    )
    platform_pause_max_s: Seconds = Field(
        default=4.0, description="longest pause in that wait before it is tried again (seconds)"
    )
    look_again_s: Seconds = Field(
        default=2.0,
        description="pause after an invocation that got no answer, before the store is asked whether it runs"
        " (seconds)",
    )
    busy_wait_s: Seconds = Field(
        default=1.0,
        description="pause before a platform that has no room is asked again, where it does not say how long"
        " (seconds); on OpenWhisk it doubles up to 8 times that while there is none",
    )
    platform_limits_fresh_s: Seconds = Field(
        default=600.0,
        description="how long an OpenWhisk's own limits are relied on before they are read again (seconds);"
        " a tenth of it after they could not be read",
    )
    activations_interval_s: Seconds = Field(
        default=1.0, description="pause between two looks at a platform's activation records (seconds)"
    )
    invocations_in_flight_max: Count = Field(
        default=100, description="invocations on their way at once, per cluster (count)"
    )
    deployments_in_flight_max: Count = Field(
        default=8, description="functions deployed or removed at once (count)"
    )
    request_timeout_s: Seconds = Field(
        default=30.0, description="one HTTP request to a platform's API (seconds)"
    )
    connect_timeout_s: Seconds = Field(default=10.0, description="a connection to a platform's API (seconds)")
    throttle_wait_s: Annotated[NonNegativeFloat, Number] = Field(
        default=180.0,
        description="how long a function's deployment waits in all for a platform that has had too many"
        " requests (seconds)",
    )
    download_timeout_s: Seconds = Field(
        default=300.0, description="one file of training or test data, fetched by a function (seconds)"
    )
    download_bytes_max: Bytes = Field(
        default=2 * 1024 * 1024 * 1024, description="largest such file (bytes; also 2GB)"
    )
    deploy_timeout_s: Seconds = Field(
        default=600.0,
        description="one function's deployment, and the wait for another program's of the same (seconds)",
    )
    keep_rounds: Count = Field(
        default=2, description="rounds whose weights and updates stay in the store (count)"
    )
    model_bytes_max: Bytes = Field(
        default=256 * 1024 * 1024,
        description="largest weights or update (bytes; also 256MB); larger ones are refused",
    )


class Scenario(Section):
    """A scenario that only has functions to deploy, e.g. `test`."""

    functions: Annotated[Mapping[str, FunctionPlaces], Field(min_length=1)] = Field(
        description="the functions by name, and how they are deployed on each platform"
    )


class Learning(Section):
    """A federated-learning scenario: one that has `clients_info`."""

    server_config: ServerConfig = Field(description="where the managing functions run")
    clients_info: ClientsInfo = Field(description="how many clients there are, and where they run")
    data_sampling: DataSampling = Field(default_factory=empty, description="shape of the data, and the model")
    partition: Partition = Field(default_factory=empty, description="how the rows are dealt to the clients")
    mongo_config: Mongo = Field(default_factory=empty, description="the weights store")
    training_test_data: TrainingTestData = Field(description="the four arrays of the experiment")
    model_params: ModelParams = Field(default_factory=empty, description="what a client does in a round")
    stopping: Stopping = Field(default_factory=empty, description="when the run ends")
    aggregation: Aggregation = Field(
        default_factory=empty, description="how the updates of a round become the next weights"
    )
    limits: Limits = Field(default_factory=empty, description="a bound on everything")
    seed: Annotated[int, Number, Field(ge=0, lt=2**31)] | None = Field(
        default=None,
        description="start of all chance in this scenario (whole number); default: the top-level seed",
    )
    functions: Mapping[str, FunctionPlaces] = Field(
        default_factory=dict, description="how the functions are deployed on each platform; all have defaults"
    )

    def model_spec(self) -> wire.ModelSpec:
        """The model, as functions are told it."""
        data = self.data_sampling
        return wire.ModelSpec(
            name=data.model,
            input_shape=(data.input_shape_y, data.input_shape_x, data.input_channels),
            hidden_size=data.hidden_size,
            output_size=data.output_size,
        )

    def data_spec(self) -> wire.DataSpec:
        """The four arrays, as functions are told them."""
        data = self.training_test_data
        return wire.DataSpec(
            train_images=data.train_images_url.source("x_train"),
            train_labels=data.train_labels_url.source("y_train"),
            test_images=data.test_images_url.source("x_test"),
            test_labels=data.test_labels_url.source("y_test"),
        )

    def training_spec(self) -> wire.TrainingSpec:
        """A client's work in a round, as functions are told it."""
        params = self.model_params
        return wire.TrainingSpec(
            optimizer=params.optim,
            learning_rate=params.lr,
            local_epochs=params.local_epochs,
            batch_size=self.data_sampling.batch_size,
            proximal_mu=params.mu,
        )

    def partition_spec(self) -> wire.PartitionSpec:
        """How the rows are dealt, as functions are told it."""
        return wire.PartitionSpec(
            scheme=self.partition.scheme,
            shards_per_client=self.partition.shards_per_client,
            alpha=self.partition.alpha,
        )

    @property
    def min_updates(self) -> int:
        """Updates without which a round fails the run: as configured, or half of those asked, rounded up."""
        return self.limits.min_updates or max(1, (self.clients_info.num_clients_per_round + 1) // 2)

    @property
    def client_function(self) -> str:
        """The function of which every client is a copy."""
        return self.clients_info.client_functions[0]


_LEARNING_KEYS = frozenset(Learning.model_fields) - frozenset(Scenario.model_fields)


def scenario_class(raw: Any) -> type[Learning] | type[Scenario]:
    """Which of the two a scenario in the file is meant to be."""
    return Learning if isinstance(raw, dict) and _LEARNING_KEYS & set(raw) else Scenario
