"""`providers`: the clusters, by platform and any name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, SecretStr

from fedkeeper.config.base import ConfigPath, ExistingPath, Name, Number, Section, Text, empty

Route = Literal["direct", "invoker"]
LOOPBACK = ("localhost", "::1")


def api_host(value: str) -> str:
    """`https://host[:port]`; https where no scheme is given, nothing after the port is kept."""
    parts = urlsplit(value if "://" in value else f"https://{value}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has a port that is not a number; write https://host:port") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is not an address; write https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def on_this_machine(url: str) -> bool:
    """Whether an address is a loopback one."""
    host = urlsplit(url).hostname or ""
    return host in LOOPBACK or host.startswith("127.")


ApiHost = Annotated[Text, AfterValidator(api_host)]


class OpenWhiskAuth(Section):
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


class Cluster(Section):
    """What clusters of all platforms have."""

    platform: ClassVar[str]
    embedded: bool = Field(
        default=False, description="run this platform here, on loopback, with generated credentials"
    )
    concurrency: Annotated[PositiveInt, Number] | None = Field(
        default=None,
        description="most invocations in flight on this cluster (count); default:"
        " limits.invocations_in_flight_max",
    )


class OpenWhiskCluster(Cluster):
    """`providers.openwhisk.<name>`: one Apache OpenWhisk."""

    platform: ClassVar[str] = "openwhisk"
    auth: OpenWhiskAuth = Field(
        default_factory=empty, description="address and credentials; nothing if embedded"
    )
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

    @property
    def host(self) -> str:
        """`https://host[:port]`; empty if embedded."""
        return self.auth.ow_api_host or ""


class GoogleAuth(Section):
    """A service account, as in its JSON file. All absent: application default credentials."""

    type: Text | None = Field(default=None, description="always `service_account`")
    project_id: Text | None = Field(default=None, description="the service account's project")
    private_key_id: Text | None = Field(default=None, description="which of the account's keys it is")
    private_key: SecretStr | None = Field(
        default=None, description="PEM text; better `private_key_file` or `${NAME}`"
    )
    private_key_file: ConfigPath | None = Field(
        default=None, description="file that holds `private_key`, instead of it"
    )
    client_email: Text | None = Field(default=None, description="the service account's address")
    client_id: Text | None = Field(default=None, description="the service account's number")
    auth_uri: Text | None = Field(default=None, description="as in the account's JSON file")
    token_uri: Text | None = Field(default=None, description="as in the account's JSON file")
    auth_provider_x509_cert_url: Text | None = Field(
        default=None, description="as in the account's JSON file"
    )
    client_x509_cert_url: Text | None = Field(default=None, description="as in the account's JSON file")
    universe_domain: Text | None = Field(default=None, description="as in the account's JSON file")
    service_account_file: ConfigPath | None = Field(
        default=None, description="the account's JSON file as downloaded, instead of all keys above"
    )

    def service_account(self) -> dict[str, Any]:
        """The service account's JSON as Google's libraries take it, secret included; {} if there is none."""
        if self.private_key is None:
            return {}
        plain = self.model_dump(
            exclude={"private_key", "private_key_file", "service_account_file"}, exclude_none=True
        )
        # A key pasted on one line has its line ends written out.
        key = self.private_key.get_secret_value().replace("\\n", "\n")
        token_uri = self.token_uri or "https://oauth2.googleapis.com/token"
        return {**plain, "type": "service_account", "private_key": key, "token_uri": token_uri}


class GoogleCluster(Cluster):
    """`providers.google.<name>`: one project and region of Google Cloud Functions."""

    platform: ClassVar[str] = "google"
    project: Name | None = Field(default=None, description="Google Cloud project; default: auth.project_id")
    region: Name = Field(default="us-central1", description="region of the functions")
    auth: GoogleAuth = Field(
        default_factory=empty,
        description="service account; leave out for application default credentials, or if embedded",
    )
    api_endpoint: ApiHost = Field(
        default="https://cloudfunctions.googleapis.com", description="address of the Cloud Functions API"
    )
    route: Route = Field(
        default="invoker",
        description="as for OpenWhisk; the default keeps the store's password off the clients",
    )

    @property
    def project_id(self) -> str:
        """The project, from either place; `fedkeeper` if embedded without one, else empty."""
        return self.project or self.auth.project_id or ("fedkeeper" if self.embedded else "")


AnyCluster = OpenWhiskCluster | GoogleCluster


def _nothing_is_empty(value: Any) -> Any:
    return {} if value is None else value


class Providers(Section):
    """`providers`: any number of clusters each, with any names."""

    openwhisk: Annotated[Mapping[str, OpenWhiskCluster], BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=dict, description="Apache OpenWhisk clusters by name"
    )
    google: Annotated[Mapping[str, GoogleCluster], BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=dict, description="Google Cloud Functions projects by name"
    )


def read_service_account(text: str) -> dict[str, Any]:
    """The keys of a service account's JSON file. ValueError says what is wrong, without its content."""
    try:
        plain = json.loads(text)
    except ValueError:
        raise ValueError("is not JSON; download the service account's key again, as JSON") from None
    missing = {"private_key", "client_email", "project_id"} - set(plain if isinstance(plain, dict) else ())
    if missing or plain.get("type") != "service_account":
        raise ValueError(
            "is not a service account's key (its type must be service_account"
            + (f", and {', '.join(sorted(missing))} must be there)" if missing else ")")
        )
    return {
        key: value
        for key, value in plain.items()
        if key in GoogleAuth.model_fields and isinstance(value, str)
    }
