"""Cloud Functions in the config: projects, how functions are deployed there."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt, SecretStr

from fedkeeper.config import functions, providers
from fedkeeper.config.base import ConfigPath, Name, Number, Section, Text, empty
from fedkeeper.config.functions import Seconds
from fedkeeper.config.providers import ApiHost, Route
from fedkeeper.providers.google.quotas import READS_PER_MINUTE, WRITES_PER_MINUTE


class Auth(Section):
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
    anonymous: bool = Field(
        default=False, description="no credentials at all: for an emulator that asks for none"
    )

    def service_account(self) -> dict[str, Any]:
        """The service account's JSON as Google's libraries take it, secret included; {} if there is none."""
        if self.private_key is None:
            return {}
        plain = self.model_dump(
            exclude={"private_key", "private_key_file", "service_account_file", "anonymous"},
            exclude_none=True,
        )
        # A key pasted on one line has its line ends written out.
        key = self.private_key.get_secret_value().replace("\\n", "\n")
        token_uri = self.token_uri or "https://oauth2.googleapis.com/token"
        return {**plain, "type": "service_account", "private_key": key, "token_uri": token_uri}


class Cluster(providers.Cluster):
    """`providers.google.<name>`: one project and region of Google Cloud Functions."""

    platform: ClassVar[str] = "google"
    project: Name | None = Field(default=None, description="Google Cloud project; default: auth.project_id")
    region: Name = Field(default="us-central1", description="region of the functions")
    auth: Auth = Field(
        default_factory=empty,
        description="service account; leave out for application default credentials, or if embedded",
    )
    api_endpoint: ApiHost = Field(
        default="https://cloudfunctions.googleapis.com", description="address of the Cloud Functions API"
    )
    reads_per_minute: Annotated[PositiveInt, Number] = Field(
        default=READS_PER_MINUTE,
        description="requests that only ask the API (count per minute): the project's quota in that region",
    )
    writes_per_minute: Annotated[PositiveInt, Number] = Field(
        default=WRITES_PER_MINUTE, description="requests that deploy or remove (count per minute), likewise"
    )
    route: Route = Field(
        default="invoker",
        description="as for OpenWhisk; the default keeps the store's password off the clients",
    )

    @property
    def project_id(self) -> str:
        """The project, from either place; `fedkeeper` if embedded without one, else empty."""
        return self.project or self.auth.project_id or ("fedkeeper" if self.embedded else "")


class Function(functions.Function):
    """`functions.<function>.google`."""

    timeout: Annotated[Seconds, Field(ge=1, le=3600)] = Field(
        default=300.0, description="time limit of one request: a number of seconds, or 300s, 5m"
    )
    entry_point: Text = Field(
        default="main", alias="entry-point", description="the function in main.py that is called"
    )
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="requests at once in one instance (count)"
    )
    runtime: Text = Field(default="", description="the platform's runtime; default `python312`")

    @property
    def entry(self) -> str:
        """The Python function that is called."""
        return self.entry_point


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
    return {key: value for key, value in plain.items() if key in Auth.model_fields and isinstance(value, str)}
