"""What the clusters of all platforms have. Each platform's own keys are in its folder of `providers/`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveInt

from fedkeeper.config.base import Number, Section, Text

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
    route: Route  # each platform has its default
