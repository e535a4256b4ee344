"""OpenWhisk in the config: its clusters, and how functions are deployed on them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt, SecretStr

from fedkeeper.config import functions, providers
from fedkeeper.config.base import ConfigPath, ExistingPath, Number, Section, Text, empty
from fedkeeper.config.functions import Milliseconds
from fedkeeper.config.providers import ApiHost, Route


class Auth(Section):
    """How FedKeeper proves itself to an OpenWhisk cluster."""

    ow_api_host: ApiHost | None = Field(
        default=None, description="address of the API, `https://host[:port]` (APIHOST in ~/.wskprops)"
    )
    ow_auth: SecretStr | None = Field(
        default=None, description="`uuid:key` (AUTH in ~/.wskprops); better `${OW_AUTH}`"
    )
    ow_auth_file: ConfigPath | None = Field(
        default=None, description="file that holds `ow_auth`, instead of it"
    )


class Cluster(providers.Cluster):
    """`providers.openwhisk.<name>`: one Apache OpenWhisk."""

    platform: ClassVar[str] = "openwhisk"
    auth: Auth = Field(default_factory=empty, description="address and credentials; nothing if embedded")
    namespace: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_@.-]+$")] = Field(
        default="_", description="namespace of the functions; `_` is the default one of the credentials"
    )
    tls_verify: bool = Field(
        default=True, description="check the server's certificate; false is warned about"
    )
    ca_file: ExistingPath | None = Field(
        default=None, description="PEM file of the CA to trust, where the system's CAs do not know it"
    )
    route: Route = Field(
        default="direct",
        description="`direct`: clients read and write the store; `invoker`: fl_invoker_weights_update posts"
        " the weights to clients that hold no credentials",
    )


class Function(functions.Function):
    """`functions.<function>.openwhisk`."""

    timeout: Annotated[Milliseconds, Field(ge=0.1, le=86_400)] = Field(
        default=300.0,
        validate_default=False,  # it is in seconds already; a number in the file is milliseconds
        description="time limit of one activation: a number of milliseconds as in the ancestor, or 300s, 5m",
    )
    docker_image: Text = Field(
        default="", description="image to run in, with TensorFlow in it; none: the runtime as it is"
    )
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="activations at once in one container (count)"
    )
    runtime: Text = Field(
        default="",
        description="the platform's runtime; default `python:default`; `nodejs:default` for JavaScript",
    )

    @property
    def image(self) -> str:
        """The image that it runs in; empty: the platform's runtime."""
        return self.docker_image

    @property
    def requirements(self) -> bool:
        """OpenWhisk installs them at every cold start; an image of its own has them."""
        return not self.docker_image
