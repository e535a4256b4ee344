"""What a function is told by its environment, set when it is deployed. Secrets live here and nowhere else.

`FEDKEEPER_STORE`    JSON of StoreAddress; absent in clients of the invoker route
`FEDKEEPER_CLIENTS`  JSON: cluster -> ClientAccess; only in fl_invoker_weights_update
`FEDKEEPER_DOWNLOADS`  JSON of DownloadLimits; not secret
`FEDKEEPER_AHEAD`    JSON of Ahead: what a client can make ready before its first task; not secret
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fedkeeper.errors import TaskError
from fedkeeper.runtime.wire import ModelSpec

STORE_VARIABLE = "FEDKEEPER_STORE"
CLIENTS_VARIABLE = "FEDKEEPER_CLIENTS"
DOWNLOADS_VARIABLE = "FEDKEEPER_DOWNLOADS"
AHEAD_VARIABLE = "FEDKEEPER_AHEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """How to reach the weights store. `password` is left out of the repr."""

    hosts: str  # "host:port[,host:port]"
    database: str
    collection: str  # prefix of all collections
    username: str = ""
    password: str = field(default="", repr=False)
    auth_source: str = "admin"
    replica_set: str = ""
    tls: bool = False
    tls_verify: bool = True
    ca_pem: str = ""  # text of the CA certificates to trust, where the system's are not enough
    wait_s: float = 60.0  # how long a store that is away is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAccess:
    """How the forwarding function proves itself to the clients of one cluster."""

    platform: str  # its name in fedkeeper.platforms
    auth: str = field(default="", repr=False)  # openwhisk: "uuid:key"
    # google: the service account's JSON; empty: the function's own identity (metadata server)
    service_account: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls_verify: bool = True
    ca_pem: str = ""  # text of the CA certificates to trust, where the system's are not enough


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Bounds of one file of data that a function fetches."""

    timeout_s: float = 300.0
    bytes_max: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What of the tasks to come decides what is traced, as the config had it at the deployment."""

    model: ModelSpec
    optimizer: str
    proximal_mu: float
    batch_size: int


def ahead() -> Ahead | None:
    """None in a function that was not told."""
    text = os.environ.get(AHEAD_VARIABLE, "")
    return msgspec.json.decode(text, type=Ahead) if text else None


def download_limits() -> DownloadLimits:
    """As the experiment's config has them; the defaults in a function that was not told."""
    text = os.environ.get(DOWNLOADS_VARIABLE, "")
    return msgspec.json.decode(text, type=DownloadLimits) if text else DownloadLimits()


def store_address() -> StoreAddress:
    """The store's address from the environment. Raises TaskError if there is none."""
    text = os.environ.get(STORE_VARIABLE, "")
    if not text:
        raise TaskError(
            f"{STORE_VARIABLE} is not set: this function was deployed without access to the store"
        )
    return msgspec.json.decode(text, type=StoreAddress)


def client_access(cluster: str) -> ClientAccess:
    """Credentials for the clients of `cluster`. Raises TaskError if there are none."""
    text = os.environ.get(CLIENTS_VARIABLE, "")
    known = msgspec.json.decode(text, type=dict[str, ClientAccess]) if text else {}
    if cluster not in known:
        raise TaskError(
            f"no credentials for cluster {cluster!r} in {CLIENTS_VARIABLE}; known: {sorted(known)}"
        )
    return known[cluster]
