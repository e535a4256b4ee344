"""`keepers`: the processes that keep the FL state together, under Raft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from fedkeeper.config.base import ConfigPath, Name, Number, Section, Text, empty
from fedkeeper.config.providers import api_host

KEEPERS_MAX = 7
_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")


def host_and_port(value: str) -> tuple[str, int]:
    """`k1.example.org:7000` or `[::1]:7000` in its parts. ValueError says what to write."""
    found = _HOST_PORT.fullmatch(value)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise ValueError("is not an address; write host:port, e.g. k1.example.org:7000")
    return found[1].strip("[]"), int(found[2])


def _host_port(value: str) -> str:
    if value:
        host_and_port(value)
    return value


HostPort = Annotated[Text, AfterValidator(_host_port)]
ApiUrl = Annotated[Text, AfterValidator(api_host)]

# The files of these two are looked at when a keeper starts, and only there: one config serves all hosts.


class Tls(Section):
    """Certificates of one keeper: every side shows one, and trusts those that the CA signed."""

    ca_file: ConfigPath = Field(description="PEM file of the CA that signed all keepers' certificates")
    cert_file: ConfigPath = Field(description="PEM file of this keeper's certificate")
    key_file: ConfigPath = Field(description="PEM file of its private key")


class Member(Section):
    """A keeper on a host of its own."""

    raft: Annotated[HostPort, Field(min_length=3)] = Field(
        description="host:port that the other keepers reach it at"
    )
    raft_bind: HostPort = Field(default="", description="host:port to listen on; default: that of raft")
    api: ApiUrl = Field(description="base URL of its API, https://host:port, or http:// on loopback")
    api_bind: HostPort = Field(default="", description="host:port to listen on; default: that of api")


class Api(Section):
    """The HTTP API of each keeper. Off loopback it needs TLS and tokens."""

    cert_file: ConfigPath | None = Field(default=None, description="PEM file of this keeper's certificate")
    key_file: ConfigPath | None = Field(default=None, description="PEM file of its private key")
    ca_file: ConfigPath | None = Field(
        default=None, description="CA to trust when calling keepers, where the system's do not know it"
    )
    reader_token: SecretStr | None = Field(
        default=None, description="token of those who may read; better `${FEDKEEPER_TOKEN}`"
    )
    reader_token_file: ConfigPath | None = Field(
        default=None, description="file that holds `reader_token`, instead of it"
    )
    operator_token: SecretStr | None = Field(
        default=None, description="token of those who may also submit, stop, write and change members"
    )
    operator_token_file: ConfigPath | None = Field(
        default=None, description="file that holds `operator_token`, instead of it"
    )
    requests_in_flight_max: Annotated[PositiveInt, Number] = Field(
        default=256, description="requests worked on at once (count); further ones get 503"
    )
    body_bytes_max: Annotated[PositiveInt, Number] = Field(
        default=16 * 1024 * 1024, description="largest body of a request (bytes)"
    )
    value_bytes_max: Annotated[PositiveInt, Number] = Field(
        default=1024 * 1024, description="largest value of the dictionary, as JSON (bytes)"
    )
    header_bytes_max: Annotated[PositiveInt, Number] = Field(
        default=16 * 1024, description="longest line of a request's head (bytes)"
    )
    connections_max: Annotated[PositiveInt, Number] = Field(
        default=1024,
        description="open connections (count); for more, the one that has waited longest for its client is"
        " closed",
    )
    idle_s: Annotated[PositiveFloat, Number] = Field(
        default=75.0, description="a connection without a request for this long is closed (seconds)"
    )
    request_timeout_s: Annotated[PositiveFloat, Number] = Field(
        default=10.0, description="one request, the wait for a leader included (seconds)"
    )
    streams_max: Annotated[PositiveInt, Number] = Field(
        default=64, description="streams of events at once (count); further ones get 503"
    )
    events_s: Annotated[PositiveFloat, Number] = Field(
        default=0.1,
        description="least time between two events of a stream (seconds); changes between are one",
    )
    keep_alive_s: Annotated[PositiveFloat, Number] = Field(
        default=1.0, description="a stream without news says that it is there this often (seconds)"
    )
    stall_s: Annotated[PositiveFloat, Number] = Field(
        default=10.0, description="a reader of a stream that takes nothing for this long is dropped (seconds)"
    )


class Keepers(Section):
    """`keepers`: several processes that replicate the FL state; the death of any one costs nothing."""

    members: Mapping[Name, Member] = Field(
        default_factory=dict, description="keepers on hosts of their own, by name (1 to 7); not if embedded"
    )
    embedded: bool = Field(
        default_factory=lambda known: not known.get("members"),
        description="run them on this machine, started by `-s`, on loopback; true unless there are members",
    )
    count: Annotated[PositiveInt, Number, Field(le=KEEPERS_MAX)] = Field(
        default=3, description="embedded keepers, k1 and so on (count, 1 to 7); 1 is the lightest way"
    )
    data_dir: ConfigPath | None = Field(
        default=None, description="folder of the keepers' data; default: keepers below embedded.data_dir"
    )
    secret: SecretStr | None = Field(
        default=None, description="shared by all keepers, proves one to the other; generated if embedded"
    )
    secret_file: ConfigPath | None = Field(
        default=None, description="file that holds `secret`, instead of it"
    )
    tls: Tls | None = Field(default=None, description="mutual TLS between keepers, instead of the secret")
    api: Api = Field(default_factory=empty, description="the HTTP API of each keeper")
    placement: Literal["raft", "latency", "rotate"] = Field(
        default="raft",
        description="who conducts: `raft`: the leader; `latency`: the keeper nearest to the others and to the"
        " clusters; `rotate`: each in turn",
    )
    latency_gain: Annotated[PositiveFloat, Number, Field(le=1)] = Field(
        default=0.3,
        description="for `latency`: better by this part (0..1), another one takes over",
    )
    measure_s: Annotated[PositiveFloat, Number] = Field(
        default=10.0, description="pause between two measurements of the latencies (seconds)"
    )
    rotate_s: Annotated[float, Number, Field(ge=0)] = Field(
        default=0.0, description="for `rotate`: time that a keeper conducts (seconds); 0: no limit in time"
    )
    rotate_rounds: Annotated[NonNegativeInt, Number] = Field(
        default=1, description="for `rotate`: rounds that a keeper conducts (count); 0: no limit in rounds"
    )
    timing: Literal["fast", "steady", "patient"] = Field(
        default="steady",
        description="how soon a silent leader is replaced (elections after 50 to 100, 150 to 300 or 1000 to"
        " 2000 ms of silence); a dead one is replaced at once in any case",
    )
    lease_s: Annotated[PositiveFloat, Number] = Field(
        default=1.5,
        description="a conductor that has had no commit confirmed for this long stops acting (seconds)",
    )
    cannot_conduct_max_s: Annotated[PositiveFloat, Number] = Field(
        default=60.0,
        description="a keeper that cannot conduct (its store refuses it, say) leaves it to the others and"
        " tries again after 1 s, then after twice as long each time, at most after this (seconds)",
    )
    propose_timeout_s: Annotated[PositiveFloat, Number] = Field(
        default=10.0, description="a command, from proposal to confirmation (seconds)"
    )
    follow_wait_s: Annotated[PositiveFloat, Number] = Field(
        default=600.0,
        description="who follows a run gives up when no keeper has answered for this long (seconds)",
    )
    fsync: Literal["group", "off"] = Field(
        default="group",
        description="group: commands that arrive together share one fsync before they count; off: a power cut"
        " may lose what was acknowledged (only where that does not matter)",
    )
    snapshot_every: Annotated[PositiveInt, Number, Field(ge=100)] = Field(
        default=10_000, description="commands between two snapshots of the state (count)"
    )
    kv_bytes_max: Annotated[PositiveInt, Number] = Field(
        default=64 * 1024 * 1024, description="the users' dictionary in all (bytes)"
    )

    def names(self) -> tuple[str, ...]:
        """All keepers' names, `k1` first."""
        return (
            tuple(f"k{number + 1}" for number in range(self.count)) if self.embedded else tuple(self.members)
        )
