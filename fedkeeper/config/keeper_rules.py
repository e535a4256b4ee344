"""Rules of the section `keepers`: at load, and again for the one keeper that is to be started here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fedkeeper.config.faults import AtFaultItself, Fault
from fedkeeper.config.keepers import KEEPERS_MAX, Member, host_and_port
from fedkeeper.config.providers import LOOPBACK, on_this_machine
from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS

if TYPE_CHECKING:
    from fedkeeper.config.experiment import Experiment

_SECRET_MIN = 16
_KEEPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def keepers_are_here_or_elsewhere(config: Any) -> Iterator[Fault]:
    """Embedded, or on hosts of their own; not both nor neither."""
    keepers = config.keepers
    if keepers.embedded and keepers.members:
        yield Fault("keepers.members", "are given, and embedded: true as well; keep one of the two")
    if not keepers.embedded and not keepers.members:
        yield Fault(
            "keepers.members",
            "is empty; write `k1: {raft: host:port, api: https://host:port}`, or embedded: true",
        )
    if len(keepers.members) > KEEPERS_MAX:
        yield Fault(
            "keepers.members",
            f"are {len(keepers.members)}; write at most {KEEPERS_MAX}: more of them are slower, not safer",
        )
    for name in keepers.members:
        if not _KEEPER.fullmatch(name):
            yield Fault(
                f"keepers.members.{name}",
                "names a keeper: use letters, digits, '_' and '-', at most 32 of them",
            )


def keepers_have_their_own_addresses(config: Any) -> Iterator[Fault]:
    """Two keepers at one address are one."""
    for key in ("raft", "api"):
        seen: dict[str, str] = {}
        for name, member in config.keepers.members.items():
            with contextlib.suppress(AtFaultItself):
                address = getattr(member, key)
                if address in seen:
                    yield Fault(
                        f"keepers.members.{name}.{key}",
                        f"is that of {seen[address]} as well; each needs its own",
                    )
                seen.setdefault(address, name)


def tokens_travel_encrypted(config: Any) -> Iterator[Fault]:
    """Off loopback the API is https."""
    for name, member in config.keepers.members.items():
        with contextlib.suppress(AtFaultItself):
            if member.api.startswith("http://") and not on_this_machine(member.api):
                yield Fault(
                    f"keepers.members.{name}.api",
                    "is http:// off this machine: anybody in between reads the tokens; write https://,"
                    " and keepers.api.cert_file and key_file",
                )


def secrets_are_long(config: Any) -> Iterator[Fault]:
    """A secret that proves something cannot be guessed."""
    keepers = config.keepers
    for section, at, key in (
        (keepers, "keepers", "secret"),
        (keepers.api, "keepers.api", "reader_token"),
        (keepers.api, "keepers.api", "operator_token"),
    ):
        with contextlib.suppress(AtFaultItself):
            value = getattr(section, key)
            if value is not None and len(value.get_secret_value()) < _SECRET_MIN:
                yield Fault(
                    f"{at}.{key}",
                    f"is shorter than {_SECRET_MIN} characters; make one with: openssl rand -hex 32",
                )
    reader, operator = keepers.api.reader_token, keepers.api.operator_token
    if (
        reader is not None
        and operator is not None
        and reader.get_secret_value() == operator.get_secret_value()
    ):
        yield Fault("keepers.api.reader_token", "is the operator_token as well: readers could do everything")


def rotation_has_a_measure(config: Any) -> Iterator[Fault]:
    """Something says when the next keeper's turn is."""
    keepers = config.keepers
    if keepers.placement == "rotate" and not keepers.rotate_s and not keepers.rotate_rounds:
        yield Fault(
            "keepers.rotate_rounds",
            "is 0, and rotate_s as well; write after how many rounds the next conducts",
        )


def hosts_share_their_services(config: Any) -> Iterator[Fault]:
    """Keepers on several hosts need platforms and a store that all of them can reach."""
    far = []
    for name, member in config.keepers.members.items():
        with contextlib.suppress(AtFaultItself):
            if not _loopback(member.raft):
                far.append(name)
    if not far:
        return
    for platform in PLATFORMS:
        for name, cluster in getattr(config.providers, platform).items():
            with contextlib.suppress(AtFaultItself):
                if cluster.embedded:
                    yield Fault(
                        f"providers.{platform}.{name}.embedded",
                        f"a platform on one machine's loopback cannot be reached from {', '.join(far)};"
                        " write a cluster that all keepers reach",
                    )
    for name, scenario in config.scenarios.items():
        with contextlib.suppress(AtFaultItself):
            mongo = getattr(scenario, "mongo_config", None)
            if mongo is not None and mongo.embedded:
                yield Fault(
                    f"scenarios.{name}.mongo_config.embedded",
                    f"a mongod on one machine's loopback cannot be reached from {', '.join(far)}; write url",
                )


KEEPER_RULES = (
    keepers_are_here_or_elsewhere,
    keepers_have_their_own_addresses,
    tokens_travel_encrypted,
    secrets_are_long,
    rotation_has_a_measure,
    hosts_share_their_services,
)


def unwise(experiment: Experiment) -> Iterator[str]:
    """What is allowed and should be known each time."""
    keepers = experiment.keepers
    count, key = len(keepers.names()), "keepers.count" if keepers.embedded else "keepers.members"
    if count == 2:
        yield f"{key}: 2 keepers stop as soon as either is away; 1 is simpler and 3 are safer"
    elif count % 2 == 0:
        yield f"{key}: {count} keepers survive the loss of {count // 2 - 1}, as {count - 1} do"
    if keepers.fsync == "off":
        yield "keepers.fsync: off: a power cut may lose what was acknowledged"


def member_to_start(experiment: Experiment, name: str) -> Member | None:
    """The member `name`, found safe to start on this host; None if it is an embedded keeper.

    Raises:
        ConfigError: no such keeper, or every reason why starting it would not be safe.
    """
    keepers = experiment.keepers
    if name not in keepers.names():
        known = ", ".join(keepers.names())
        raise ConfigError(f"{experiment.path.name} has no keeper {name!r}", hint=f"its keepers are: {known}")
    if keepers.embedded:
        return None
    member = keepers.members[name]
    faults = [*_unsafe(experiment, name, member), *_unreadable(experiment, member)]
    if faults:
        many = "s" * (len(faults) > 1)
        title = f"keeper {name} is not started: {experiment.path.name} has {len(faults)} fault{many}"
        raise ConfigError(
            "\n  ".join([title, *map(str, faults)]), hint="docs/keepers.md has an example for several hosts"
        )
    return member


def _unsafe(experiment: Experiment, name: str, member: Member) -> Iterator[Fault]:
    keepers, at = experiment.keepers, f"keepers.members.{name}"
    listens = member.raft_bind or member.raft
    if not (_loopback(listens) and _loopback(member.raft)) and not (keepers.secret or keepers.tls):
        yield Fault(
            "keepers.secret",
            f"is missing, and {listens} is not loopback: anybody could be a keeper; write secret, or tls",
        )
    where = urlsplit(member.api)
    listens = member.api_bind or where.netloc
    far = not (on_this_machine(member.api) and _loopback(listens))
    if far and where.scheme != "https":
        yield Fault(f"{at}.api", f"is http://, and {listens} is not loopback; write https://")
    if far and keepers.api.operator_token is None:
        yield Fault(
            "keepers.api.operator_token",
            f"is missing, and {listens} is not loopback: anybody could command",
        )
    if far or where.scheme == "https":
        for key in ("cert_file", "key_file"):
            if getattr(keepers.api, key) is None:
                yield Fault(
                    f"keepers.api.{key}", f"is missing, and {member.api} needs it; write the PEM file"
                )


def _unreadable(experiment: Experiment, member: Member) -> Iterator[Fault]:
    """Files that are for this host."""
    keepers = experiment.keepers
    files = {f"keepers.api.{key}": getattr(keepers.api, key) for key in ("cert_file", "key_file", "ca_file")}
    if not member.api.startswith("https:"):
        files.clear()
    if keepers.tls is not None:
        files |= {
            f"keepers.tls.{key}": getattr(keepers.tls, key) for key in ("ca_file", "cert_file", "key_file")
        }
    for key, path in files.items():
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as exc:
            yield Fault(key, f"cannot read {path}: {exc.strerror}; write the path of a file you may read")


def _loopback(address: str) -> bool:
    try:
        host, _ = host_and_port(address)
    except ValueError:  # of a URL without a port
        host = address.strip("[]")
    return host in LOOPBACK or host.startswith("127.")
