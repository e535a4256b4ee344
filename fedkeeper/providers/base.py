"""One protocol for every FaaS platform."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SecretStr


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A function, ready to be deployed: what the platform gets is `archive`, byte for byte."""

    function: str  # name on the platform as FedKeeper says it, e.g. "client_3"
    source: str  # folder under functions/, e.g. "fl_client"
    archive: bytes  # zip; the same inputs give the same bytes
    digest: str  # sha256 over archive, limits, runtime and environment (hashed); changes when any does
    entry: str = "main"
    runtime: str = ""  # platform's runtime name; empty: the provider's default
    image: str = ""  # that it runs in, where the platform's own is not meant
    memory_mb: int = 256
    timeout_s: float = 60.0
    concurrency: int = 1
    owner: str = ""  # mark of the experiment that it belongs to
    environment: Mapping[str, SecretStr] = field(default_factory=dict)  # seen by the function only
    extras: Mapping[str, Any] = field(default_factory=dict)  # what only this platform knows; JSON types
    ahead: bool = False  # a platform that can may have a worker ready before it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A function as the platform lists it."""

    function: str
    state: str  # active | deploying | failed
    version: str
    digest: str  # of the package it was made from; empty if FedKeeper did not deploy it
    url: str  # where it is invoked, without credentials
    updated_ms: int
    owner: str = ""  # the experiment that it belongs to (see `owner_mark`); empty: none that is known
    message: str = ""  # why it failed
    details: Mapping[str, Any] = field(default_factory=dict)  # the platform's own metadata, no secrets


def owner_mark(experiment: str) -> str:
    """An experiment's name as any platform can keep it, a label of Google's too: its beginning, and a hash.

    Lower-case letters, digits and hyphens, at most 49 of them.
    """
    start = re.sub("[^a-z0-9]+", "-", experiment.lower()).strip("-")[:32]
    return f"{start or 'x'}-{hashlib.sha256(experiment.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What the platform says of one activation that has ended."""

    activation_id: str
    function: str
    ok: bool
    status: str  # the platform's word, e.g. "application error"
    reason: str  # why it failed; empty if ok
    result: Mapping[str, Any]
    start_ms: int  # Unix ms
    end_ms: int
    billed_ms: int
    memory_mb: int
    cold: bool | None = None  # None: the platform does not say
    logs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a platform's `open_cluster` is told. Times in seconds."""

    name: str  # the cluster's
    cluster: Any  # its section of the config: the platform's `config.Cluster`
    embedded_url: str = ""  # of the embedded platforms, where the cluster is one of them
    embedded_login: Any = field(default=None, repr=False)  # and what proves us to it
    in_flight_max: int  # invocations on their way at once
    deployments_in_flight_max: int
    connect_timeout_s: float = 10.0
    request_timeout_s: float
    deploy_timeout_s: float
    busy_wait_s: float = 1.0  # before asking again whoever has no room and does not say for how long
    limits_fresh_s: float = 600.0  # the platform's own limits are read again after so long


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLimits:
    """What a platform tells of its limits, smallest and largest; None where it does not say."""

    per_minute: int | None = None  # invocations in a minute of the clock
    concurrent: int | None = None  # activations in flight
    memory_mb: tuple[int, int] | None = None  # of one function
    timeout_s: tuple[float, float] | None = None  # of one activation
    concurrency: tuple[int, int] | None = None  # activations at once in one instance
    runtimes: tuple[str, ...] = ()  # that may be used; empty: any


Progress = Callable[[str], None]  # takes what a person is to read while it lasts


def untold(text: str) -> None:
    """Progress that nobody reads."""


class Provider(Protocol):
    """One cluster of one platform. Nothing here is retried: whether to send again is the core's to say.

    Names go in and come out as FedKeeper says them ("client_3"); what a platform's naming rules ask for is
    the provider's own business. Errors are those of `fedkeeper.errors`: ProviderUnavailable (not sent),
    InvocationUnknown (sent, no answer), RequestRefused and its kinds (the platform said no).
    """

    cluster: str
    platform: str  # its name in fedkeeper.platforms

    async def check(self) -> None:
        """Return if the platform answers and takes the credentials."""
        ...

    async def limits(self) -> PlatformLimits:
        """What the platform tells of its limits; nothing, where there is no way to ask."""
        ...

    async def deploy(self, package: Package, progress: Progress = untold) -> Deployed:
        """Create the function, or update it in place; returns when it can be invoked.

        `progress` is told what the platform is at, where that takes long and the platform says it.
        """
        ...

    async def remove(self, function: str) -> bool:
        """Remove it; False if there was none."""
        ...

    async def list(self) -> tuple[Deployed, ...]:
        """Every function in the namespace or project, FedKeeper's or not."""
        ...

    async def invoke(self, function: str, payload: Mapping[str, Any], *, key: str, timeout_s: float) -> str:
        """Start an activation; return its ID when the platform has taken it, without waiting for its end.

        `timeout_s` bounds the activation where the platform ties it to the HTTP call (Cloud Functions);
        there the activation ID is chosen here, from `key`, and sent along.
        """
        ...

    async def ended(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """Those of `activation_ids`, all started at or after `since_ms`, that are known to have ended.

        In as few requests as the platform allows (OpenWhisk: pages of the activation list), without logs.
        Not being in the answer means running, or not known yet: never that it failed.
        """
        ...

    async def activation(self, activation_id: str) -> Activation | None:
        """One activation with its logs; None while it runs or where the platform keeps none."""
        ...

    async def activations(self, activation_ids: Collection[str], *, since_ms: int) -> dict[str, Activation]:
        """What `activation` would give of each, in as few requests as the platform allows."""
        ...

    async def close(self) -> None:
        """Give the connections back; activations go on."""
        ...
