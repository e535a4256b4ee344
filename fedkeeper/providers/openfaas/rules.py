"""OpenFaaS in the config: rules between its keys, and what the ancestor's files say differently."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from fedkeeper.config.ancestor import Upgrade
from fedkeeper.config.experiment import place
from fedkeeper.config.faults import AtFaultItself, Fault
from fedkeeper.config.scenario import Learning


def address(cluster: Any) -> str:
    """Where the gateway is reached; empty if the file does not say."""
    return cluster.gateway or ""


def tenant(name: str, cluster: Any) -> str:
    """Whose functions an embedded cluster holds: a namespace, whose names are those of DNS."""
    del cluster
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63]


def gateway_can_be_reached(config: Any) -> Iterator[Fault]:
    """A gateway that is not ours needs an address; an embedded one has its own, and its own password."""
    for name, cluster in config.providers.openfaas.items():
        at = f"providers.openfaas.{name}"
        with contextlib.suppress(AtFaultItself):
            if cluster.embedded and cluster.gateway:
                yield Fault(
                    f"{at}.gateway",
                    "an embedded gateway has its own; leave it out, or set embedded: false",
                )
            elif not cluster.embedded and not cluster.gateway:
                yield Fault(f"{at}.gateway", "is missing; write https://host:port, or embedded: true above")
        with contextlib.suppress(AtFaultItself):
            if cluster.embedded and cluster.auth.password:
                yield Fault(
                    f"{at}.auth", "an embedded gateway makes its own; leave auth out, or set embedded: false"
                )


def callbacks_need_a_port(config: Any) -> Iterator[Fault]:
    """A host without a port, or callbacks of calls that answer anyway, would do nothing."""
    for name, cluster in config.providers.openfaas.items():
        at = f"providers.openfaas.{name}"
        with contextlib.suppress(AtFaultItself):
            if cluster.callback_host and cluster.callback_port is None and not cluster.embedded:
                yield Fault(
                    f"{at}.callback_port", "is missing, but callback_host is there; write both or neither"
                )
            elif cluster.callback_port is not None and cluster.invocation == "sync":
                yield Fault(
                    f"{at}.callback_port", "is for invocation: async; synchronous calls answer by themselves"
                )


def embedded_namespaces_differ(config: Any) -> Iterator[Fault]:
    """Two embedded gateways whose names become one namespace would share their functions."""
    first: dict[str, str] = {}
    for name, cluster in config.providers.openfaas.items():
        with contextlib.suppress(AtFaultItself):
            if cluster.embedded:
                other = first.setdefault(tenant(name, cluster), name)
                if other != name:
                    yield Fault(
                        f"providers.openfaas.{name}",
                        f"and {other} would be one namespace, {tenant(name, cluster)}; rename one of them",
                    )


def functions_have_images(config: Any) -> Iterator[Fault]:
    """What learning needs on a gateway that is not ours must have an image: it runs nothing else."""
    far = {name for name, cluster in config.providers.openfaas.items() if not cluster.embedded}
    for name, scenario in config.scenarios.items():
        if scenario.section_class is not Learning or not far:
            continue
        needed = set()
        if far & set(place(scenario.clients_info, config.providers)):
            needed |= set(scenario.clients_info.client_functions)
        if scenario.server_config.server_cluster_name in far:
            needed |= set(scenario.server_config.server_manager_functions)
        for function in sorted(needed):
            settings = getattr(scenario.functions.get(function), "openfaas", None)
            if settings is None or not settings.docker_image:
                yield Fault(
                    f"scenarios.{name}.functions.{function}.openfaas.docker_image",
                    "is missing, and a gateway runs nothing else; write registry/name:tag"
                    " (`deploy.py --images FOLDER` writes what to build it from)",
                )


def upgrade_cluster(upgrade: Upgrade, at: str, cluster: dict[Any, Any]) -> None:
    """The ancestor's files have no gateways."""


def upgrade_function(upgrade: Upgrade, at: str, settings: dict[Any, Any]) -> None:
    """Nothing but what all platforms have."""


RULES = (
    gateway_can_be_reached,
    callbacks_need_a_port,
    embedded_namespaces_differ,
    functions_have_images,
)
