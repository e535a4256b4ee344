"""The embedded keepers: services of this machine, joined or started, in parallel, and kept alive.

In `keepers_folder`: `secret`, made once; per keeper the files of its service (see `fedkeeper.service`) and a
folder with its data. Their ports are the kernel's choice; each announces them, and that is how they, and
the commands, find each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import SecretStr

import fedkeeper
from fedkeeper import service
from fedkeeper.clock import SystemClock
from fedkeeper.config import Experiment, host_and_port, secrets_of
from fedkeeper.errors import FedKeeperError, ServiceError
from fedkeeper.wiring.keeping import keep_alive, keep_open

SECRET: Final = "secret"  # noqa: S105 - a file's name
API: Final = "api"
RAFT: Final = "raft"
CONFIG: Final = "config"
WITH_THE_RUN: Final = {"partition", "training_test_data", "model_params", "stopping", "seed"}

log = structlog.get_logger(__name__)


def service_name(keeper: str) -> str:
    """What the service of a keeper is called, and its files."""
    return f"keeper-{keeper}"


def announced(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What each embedded keeper that runs announces: `api` (base URL), `raft` (host:port), `config`."""
    folder = experiment.keepers_folder
    found = {name: service.find(folder, service_name(name)) for name in experiment.keepers.names()}
    return {name: info for name, info in found.items() if info is not None}


def address_of(experiment: Experiment, keeper: str) -> tuple[str, int] | None:
    """Where the Raft port of a keeper of this machine was last; whoever listens there proves who it is."""
    info = service.last_announced(experiment.keepers_folder, service_name(keeper))
    return host_and_port(info[RAFT]) if info is not None else None


def shared_secret(experiment: Experiment) -> SecretStr:
    """What proves one keeper to the other: the config's, or this machine's, made at the first call."""
    if experiment.keepers.secret is not None:
        return experiment.keepers.secret
    folder = experiment.keepers_folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / SECRET
    if not path.exists():
        scratch = folder / f"{SECRET}.{os.getpid()}"
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w") as out:
            out.write(secrets.token_hex(32))
            out.flush()
            os.fsync(out.fileno())
        with suppress(FileExistsError):  # another process was first: its secret counts
            os.link(scratch, path)
        scratch.unlink()
    return SecretStr(path.read_text())


def config_digest(experiment: Experiment) -> str:
    """Tells whether two processes work with the same config, secrets and version; says nothing of them.

    Without what comes with each run: two runs with different numbers of rounds go on at once.
    """
    plain = experiment.model_dump(
        mode="json", exclude={"scenarios": {experiment.learning_name: WITH_THE_RUN}}
    )
    told = json.dumps(
        [
            fedkeeper.__version__,
            plain,
            [one.get_secret_value() for one in secrets_of(experiment)],
        ],
        sort_keys=True,
    )
    key = shared_secret(experiment).get_secret_value().encode()
    return hmac.new(key, told.encode(), hashlib.sha256).hexdigest()


@dataclass(slots=True)
class EmbeddedKeepers:
    """Leases on all embedded keepers of an experiment."""

    experiment: Experiment
    running: Mapping[str, service.Running]
    started: bool  # at least one of them was started by us
    stack: AsyncExitStack

    def urls(self) -> tuple[str, ...]:
        """Base URLs of their APIs, as of now: one that was started again has another port."""
        return tuple(info[API] for info in announced(self.experiment).values())

    async def shared(self) -> bool:
        """Whether another command uses one of them."""
        return any([await one.shared() for one in self.running.values()])

    async def close(self, *, end: bool) -> None:
        """Give them up; with `end` those that nobody else uses are ended, all at once, else they go on."""
        await self.stack.aclose()  # or keep_alive would start them again
        await asyncio.gather(*(one.close() if end else one.leave() for one in self.running.values()))


async def open_embedded_keepers(experiment: Experiment, *, any_config: bool = False) -> EmbeddedKeepers:
    """Join the embedded keepers of `experiment`, starting those that do not run.

    Keepers that run with another config are started anew, if nobody else uses them; not with `any_config`.

    Raises:
        ServiceError: one did not start (the text says why), or another command uses it with another config.
    """
    wanted = config_digest(experiment)
    keepers = await _attach(experiment)
    if not any_config and (others := _with_another_config(keepers, wanted)):
        log.info("keepers have another config: they are started anew", keepers=others)
        await keepers.close(end=True)
        keepers = await _attach(experiment)
        if others := _with_another_config(keepers, wanted):
            await keepers.close(end=False)
            raise ServiceError(
                f"the keepers of {experiment.name} ({', '.join(others)}) are used by another command, with"
                " another config",
                hint="end that command first, or give this experiment another name",
            )
    for name, running in keepers.running.items():
        keep_open(keepers.stack, keep_alive(f"keeper {name}", running.ensure, SystemClock()))
    return keepers


def _with_another_config(keepers: EmbeddedKeepers, wanted: str) -> list[str]:
    return [name for name, running in keepers.running.items() if running.info[CONFIG] != wanted]


async def _attach(experiment: Experiment) -> EmbeddedKeepers:
    names = experiment.keepers.names()
    path = os.path.abspath(experiment.path)  # noqa: PTH100, ASYNC240 - looks at no file
    results = await asyncio.gather(
        *(_attach_one(experiment.keepers_folder, name, path, experiment) for name in names),
        return_exceptions=True,
    )
    running = {
        name: one for name, one in zip(names, results, strict=True) if isinstance(one, service.Running)
    }
    failures = [one for one in results if isinstance(one, BaseException)]
    if failures:
        await asyncio.gather(*(one.close() for one in running.values()))
        known = [one for one in failures if isinstance(one, FedKeeperError)]
        raise (known or failures)[0]
    started = any(one.started for one in running.values())
    return EmbeddedKeepers(experiment, running, started, AsyncExitStack())


async def _attach_one(folder: Path, name: str, config: str, experiment: Experiment) -> service.Running:
    argv, environment = service.module_command(
        "fedkeeper", "keeper", "run", name, "--configfile", config, "--until-unused"
    )
    return await service.attach(
        folder,
        service_name(name),
        argv,
        start_timeout_s=experiment.embedded.start_timeout_s,
        environment=environment,
    )
