"""Ports of this machine, and whether they are free for the experiment."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import psutil

from fedkeeper import service
from fedkeeper.config import Experiment, Learning, host_and_port
from fedkeeper.wiring.doctor.findings import Finding, missing, note, ok

_FABRIC: Final = "fabric"
_GUARD: Final = "guard"


def ports(experiment: Experiment | None) -> Iterator[Finding]:
    """A port of the kernel's choice, and each one that the config names."""
    problem = _taken("127.0.0.1", 0)
    if problem:
        yield missing("ports", f"nothing can listen on 127.0.0.1: {problem}", "is the loopback device up?")
    else:
        yield ok("ports", "127.0.0.1 has free ones")
    if experiment is None:
        return
    embedded = experiment.embedded
    if embedded.fabric_port and any(one.embedded for one in experiment.clusters().values()):
        told = service.find(embedded.data_dir / _FABRIC, _FABRIC)
        ours = told is not None and str(told["url"]).endswith(f":{embedded.fabric_port}")
        yield _configured("embedded.fabric_port", "127.0.0.1", embedded.fabric_port, ours=ours)
    for scenario in experiment.scenarios.values():
        if isinstance(scenario, Learning) and scenario.mongo_config.embedded and scenario.mongo_config.port:
            told = service.find(embedded.data_dir / "mongo", _GUARD)
            ours = told is not None and told["port"] == scenario.mongo_config.port
            yield _configured("mongo_config.port", "127.0.0.1", scenario.mongo_config.port, ours=ours)
    if not experiment.keepers.embedded:
        yield from _keepers(experiment)


def _keepers(experiment: Experiment) -> Iterator[Finding]:
    """Ports of those keepers whose addresses are this machine's: in use is what a running keeper's are."""
    mine = _addresses()
    for name, member in experiment.keepers.members.items():
        host, port = host_and_port(member.raft)
        if not _is_mine(host, mine):
            continue
        bind_host, bind_port = host_and_port(member.raft_bind) if member.raft_bind else (host, port)
        key = f"keepers.members.{name}.raft"
        problem = _taken(bind_host, bind_port)
        if problem:
            yield note(key, f"{bind_host}:{bind_port}: {problem}", f"fine if keeper {name} runs already")
        else:
            yield ok(key, f"{bind_host}:{bind_port} is free")


def _configured(key: str, host: str, port: int, *, ours: bool) -> Finding:
    if ours:
        return ok(key, f"{host}:{port} is served by this experiment's own service")
    problem = _taken(host, port)
    if problem:
        return missing(key, f"{host}:{port}: {problem}", f"set {key} to a free port, or to 0 for any")
    return ok(key, f"{host}:{port} is free")


def _taken(host: str, port: int) -> str:
    """Why nothing can listen there; empty if something can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def _addresses() -> set[str]:
    return {one.address for found in psutil.net_if_addrs().values() for one in found}


def _is_mine(host: str, mine: set[str]) -> bool:
    with suppress(OSError):
        return any(str(found[4][0]) in mine for found in socket.getaddrinfo(host, None))
    return False
