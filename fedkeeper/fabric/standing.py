"""The fabric in the foreground, for people: started by hand, ended by hand, joined by whoever wants to.

It is the same service of the same folder as the one that a run starts, so a run whose `embedded.data_dir`
has this folder uses it; and it counts itself among its users, so that no run ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedkeeper import service
from fedkeeper.errors import ServiceError
from fedkeeper.fabric.credentials import Credentials, Settings, check_settings, write_private, write_settings
from fedkeeper.fabric.openfaas_api import USER
from fedkeeper.fabric.serve import NAME, open_fabric_server

CLIENTS: Final = "clients"  # folder of the files that other programs read


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A fabric that runs, and where each client finds what it needs. It holds no secret."""

    url: str  # "http://127.0.0.1:PORT"
    folder: Path
    namespaces: dict[str, Path]  # OpenWhisk namespace -> .wskprops file
    projects: dict[str, Path]  # Google Cloud project -> service account's JSON file
    gateway: Path  # OpenFaaS: address, user and password, as variables of a shell

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "url": self.url,
            "pid": os.getpid(),
            "folder": str(self.folder),
            "openwhisk": {name: str(path) for name, path in self.namespaces.items()},
            "google": {name: str(path) for name, path in self.projects.items()},
            "openfaas": str(self.gateway),
        }

    def words(self) -> str:
        """For people."""
        lines = [
            f"the embedded fabric is at {self.url} (pid {os.getpid()}), its data in {self.folder}",
            "credentials, each in a file that only you can read:",
        ]
        lines += [f"  OpenWhisk namespace {name}: {path}" for name, path in self.namespaces.items()]
        lines += [f"  Google Cloud project {name}: {path}" for name, path in self.projects.items()]
        lines += [
            f"  OpenFaaS gateway: {self.gateway}",
            "docs/fabric.md says how wsk, the JavaScript client, Google's and faas-cli are pointed at it.",
            "Ctrl-C ends it; functions and activations stay.",
        ]
        return "\n".join(lines)


@asynccontextmanager
async def open_standing(folder: Path, settings: Settings) -> AsyncIterator[Standing]:
    """Run the fabric of `folder` (absolute) here for as long as the block runs.

    Functions and activations of an earlier time are there again, and so are its namespaces and projects.

    Raises:
        PortTaken: the port is in use by another program; nothing was started.
        ServiceError: another fabric has the folder, or the folder cannot be used.
    """
    check_settings(settings)
    with ExitStack() as stack:
        try:
            await asyncio.to_thread(_take, stack, folder)
            write_settings(folder, settings)
        except OSError as exc:
            raise ServiceError(
                f"{folder}: {exc.strerror}", hint="give a data folder that this user may write"
            ) from exc
        async with open_fabric_server(folder, settings, port_key="--port") as (front, credentials):
            standing = _told(folder, front.url, credentials)
            service.announce(folder, NAME, {"url": front.url, "settings": settings.fixed()})
            try:
                yield standing
            finally:
                service.withdraw(folder, NAME)


def _take(stack: ExitStack, folder: Path) -> None:
    """Own the folder, and be a user of it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        stack.enter_context(service.own(folder, NAME))
    except ServiceError as exc:
        raise _in_use(folder) from exc
    stack.enter_context(service.kept_in_use(folder, NAME))


def _in_use(folder: Path) -> ServiceError:
    told = service.find(folder, NAME)
    where = f" at {told['url']}" if told else ""
    pid = service.pid_of(folder, NAME)
    return ServiceError(
        f"a fabric of {folder} is running already{where}" + (f" (pid {pid})" if pid else ""),
        hint="use that one, end it" + (f" (kill {pid})" if pid else "") + ", or give another --data-dir",
    )


def _told(folder: Path, url: str, credentials: Credentials) -> Standing:
    """Write what other programs read, for this user only."""
    clients = folder / CLIENTS
    clients.mkdir(mode=0o700, exist_ok=True)
    namespaces, projects = {}, {}
    for name, key in credentials.openwhisk.items():
        namespaces[name] = clients / f"{name}.wskprops"
        write_private(namespaces[name], f"APIHOST={url}\nNAMESPACE={name}\nAUTH={key}\n")
    for name, account in credentials.accounts.items():
        projects[name] = clients / f"{name}.json"
        write_private(projects[name], json.dumps(account, indent=2) + "\n")
    gateway = clients / "openfaas.env"
    login = {
        "OPENFAAS_URL": url,
        "OPENFAAS_USERNAME": USER,
        "OPENFAAS_PASSWORD": credentials.openfaas,
    }
    write_private(gateway, "".join(f"{name}={value}\n" for name, value in login.items()))
    return Standing(url=url, folder=folder, namespaces=namespaces, projects=projects, gateway=gateway)
