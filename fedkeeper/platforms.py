"""Which FaaS platforms there are: one line each. docs/adding-a-platform.md walks through one.

A platform is a folder under `fedkeeper/providers/` with

    __init__.py   PLATFORM, a Platform: what files, options and people call it
    config.py     Cluster and Function: its sections of the config
    rules.py      RULES between its keys; address, tenant; upgrade_cluster and upgrade_function of old files
    provider.py   its Provider
    opening.py    open_cluster: from a Cluster of the config to the opened Provider
    images.py     only where it runs images alone: write_contexts, what they are built from

and an adapter in every function that is to run there: `functions/<function>/<platform>/`. A part is imported
when it is asked for, so that an OpenWhisk run needs no Google SDK.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from fedkeeper.errors import ConfigError

PLATFORMS: Final = {
    "openwhisk": "fedkeeper.providers.openwhisk",
    "google": "fedkeeper.providers.google",
    "openfaas": "fedkeeper.providers.openfaas",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a platform is called, and where."""

    title: str  # "Google Cloud Functions"
    a_cluster: str  # "a Google cluster"
    these_clusters: str  # "Google clusters"
    count_key: str  # of clients_info in the config, e.g. "gcf_clients_count"
    option: tuple[str, str]  # of deploy.py, e.g. ("-g", "--gcf_providers_list")
    entry_file: str  # what the platform looks for in the package, e.g. "main.py"
    node_entry_file: str = ""  # the same in a package for Node.js; empty: none is made for this platform
    secret_keys: tuple[str, ...] = ()  # keys of its clusters' sections that hold secrets
    build_command: str = ""  # where it runs nothing but images: how they are built of what `images` writes


@functools.cache
def describe(name: str) -> Platform:
    """The platform called `name`. ConfigError suggests the near one."""
    if name not in PLATFORMS:
        near = difflib.get_close_matches(name, PLATFORMS, n=1)
        raise ConfigError(
            f"unknown platform {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PLATFORMS)}",
        )
    found = importlib.import_module(PLATFORMS[name]).PLATFORM
    assert isinstance(found, Platform)
    return found


def part(name: str, module: str) -> ModuleType:
    """The module `module` of the folder of platform `name`. ConfigError if there is no such platform."""
    describe(name)
    return importlib.import_module(f"{PLATFORMS[name]}.{module}")
