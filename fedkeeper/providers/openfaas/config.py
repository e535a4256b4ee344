"""OpenFaaS in the config: its gateways, and how functions are deployed behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr

from fedkeeper.config import functions, providers
from fedkeeper.config.base import ConfigPath, ExistingPath, Number, Section, Text, empty
from fedkeeper.config.functions import Seconds
from fedkeeper.config.providers import ApiHost, Route

_QUANTITY = r"^(\d+(\.\d+)?m?)?$"  # Kubernetes: CPUs, or thousandths of one
_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


class Auth(Section):
    """The gateway's basic authentication."""

    username: Text = Field(default="admin", description="the gateway's user")
    password: SecretStr | None = Field(
        default=None, description="the user's password; better `${OPENFAAS_PASSWORD}` or `password_file`"
    )
    password_file: ConfigPath | None = Field(
        default=None, description="file that holds `password`, instead of it"
    )


class Cluster(providers.Cluster):
    """`providers.openfaas.<name>`: one OpenFaaS gateway."""

    platform: ClassVar[str] = "openfaas"
    gateway: ApiHost | None = Field(
        default=None, description="address of the gateway, `https://host[:port]` (OPENFAAS_URL)"
    )
    auth: Auth = Field(default_factory=empty, description="the gateway's user; nothing if embedded")
    namespace: Annotated[Text, Field(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = Field(
        default="", description="namespace of the functions; default: the gateway's own"
    )
    tls_verify: bool = Field(
        default=True, description="check the server's certificate; false is warned about"
    )
    ca_file: ExistingPath | None = Field(
        default=None, description="PEM file of the CA to trust, where the system's CAs do not know it"
    )
    invocation: Literal["async", "sync"] = Field(
        default="async",
        description="`async`: calls are queued, and bounded by the queue's own time limit alone; `sync`: each"
        " holds a connection to its end, and the gateway's time limits (upstream_timeout) cut it off",
    )
    callback_port: Annotated[NonNegativeInt, Number, Field(le=65_535)] | None = Field(
        default=None,
        description="port here at which the gateway tells how asynchronous calls ended; 0: any free one;"
        " none: only the store tells. Embedded ones always have one",
    )
    callback_host: Text = Field(
        default="",
        description="this machine's name or address as the gateway reaches it; default: the one that"
        " connections to the gateway come from",
    )
    route: Route = Field(
        default="invoker",
        description="as for OpenWhisk; the default keeps the store's password off the clients",
    )


class Function(functions.Function):
    """`functions.<function>.openfaas`."""

    docker_image: Text = Field(
        default="",
        description="image `registry/name:tag`, built from what `deploy.py --images` writes; embedded"
        " gateways need none",
    )
    timeout: Annotated[Seconds, Field(ge=1, le=86_400)] = Field(
        default=300.0,
        description="time limit of one request (exec_timeout): a number of seconds, or 300s, 5m",
    )
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="requests worked on at once in one replica (count); further ones wait"
    )
    max_inflight: Annotated[NonNegativeInt, Number] = Field(
        default=0, description="requests in one replica beyond which it answers 429 (count); 0: no limit"
    )
    cpu: Annotated[Text, Field(pattern=_QUANTITY)] = Field(
        default="", description="limit of CPU of one replica (CPUs, or `500m`: thousandths); none: no limit"
    )
    memory_request: functions.Memory | None = Field(
        default=None, description="memory that a replica is given a place by (MB, or 512Mi); none: `memory`"
    )
    cpu_request: Annotated[Text, Field(pattern=_QUANTITY)] = Field(
        default="", description="CPU that a replica is given a place by (CPUs, or `500m`); none: `cpu`"
    )
    secrets: tuple[Annotated[Text, Field(pattern=_NAME)], ...] = Field(
        default=(), description="names of the gateway's secrets that the function finds as files"
    )
    constraints: tuple[Text, ...] = Field(
        default=(), description="where replicas may run, in the words of the gateway's provider"
    )

    @property
    def image(self) -> str:
        """The image that it runs in; empty: its package, on an embedded gateway."""
        return self.docker_image

    @property
    def extras(self) -> Mapping[str, Any]:
        """What goes into the deployment beside what all platforms have."""
        return {
            "max_inflight": self.max_inflight,
            "cpu": self.cpu,
            "memory_request_mb": self.memory_request or 0,
            "cpu_request": self.cpu_request,
            "secrets": list(self.secrets),
            "constraints": list(self.constraints),
        }
