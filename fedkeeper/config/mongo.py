"""`mongo_config`: the weights store, a mongod of our own or somebody's."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from fedkeeper.config.base import ConfigPath, ExistingPath, Name, Number, Section, Text
from fedkeeper.runtime.environment import StoreAddress

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?")


def _hosts(value: str) -> str:
    hosts = value.split(",")
    if not all(_HOST.fullmatch(host) for host in hosts):
        raise ValueError("must be host:port[,host:port] or mongodb://host:port[,host:port]")
    return ",".join(host if re.search(r":\d+$", host) else f"{host}:27017" for host in hosts)


class Mongo(Section):
    """`mongo_config`: where weights, updates and data assignments are kept."""

    url: Annotated[Text, AfterValidator(_hosts)] | None = Field(
        default=None,
        description="your MongoDB: `host:port[,host:port]`, or a mongodb:// URL; none: the embedded one",
    )
    embedded: bool = Field(
        default_factory=lambda known: not known.get("url"),
        description="run a mongod here, on loopback, with generated credentials; true unless url is given",
    )
    port: Annotated[NonNegativeInt, Number, Field(le=65_535)] = Field(
        default=0, description="port of the embedded mongod; 0: any free one"
    )
    username: Text = Field(default="", description="user of your MongoDB")
    password: SecretStr | None = Field(default=None, description="its password; better `${MONGO_PASSWORD}`")
    password_file: ConfigPath | None = Field(
        default=None, description="file that holds `password`, instead of it"
    )
    auth_source: Text = Field(default="admin", description="database that knows the user")
    replica_set: Text = Field(default="", description="name of the replica set; empty: as found")
    tls: bool = Field(default=False, description="speak TLS")
    tls_verify: bool = Field(
        default=True, description="check the server's certificate; false is warned about"
    )
    ca_file: ExistingPath | None = Field(
        default=None, description="PEM file of the CA to trust, where the system's do not do"
    )
    db: Name = Field(default="flweights", description="database")
    collection: Name = Field(default="weights", description="prefix of all collections")
    wait_s: Annotated[PositiveFloat, Number] = Field(
        default=60.0, description="how long a store that is away is waited for (seconds)"
    )
    cache_mb: Annotated[PositiveInt, Number, Field(ge=64)] = Field(
        default=160, description="cache of the embedded mongod (MB)"
    )

    def address(
        self,
        *,
        hosts: str = "",
        username: str = "",
        password: SecretStr | None = None,
        replica_set: str = "",
        auth_source: str = "",
    ) -> StoreAddress:
        """What functions and keepers connect with; holds the secret. Arguments: the embedded mongod's own."""
        secret = password or self.password
        return StoreAddress(
            hosts=hosts or self.url or "",
            database=self.db,
            collection=self.collection,
            username=username or self.username,
            password=secret.get_secret_value() if secret else "",
            auth_source=auth_source or self.auth_source,
            replica_set=replica_set or self.replica_set,
            tls=self.tls,
            tls_verify=self.tls_verify,
            ca_pem=self.ca_file.read_text(encoding="utf-8") if self.ca_file else "",
            wait_s=self.wait_s,
        )
