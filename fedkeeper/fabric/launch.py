"""Joining the embedded fabric of a folder, or starting it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from pydantic import SecretStr

from fedkeeper import service
from fedkeeper.errors import ServiceError
from fedkeeper.fabric.credentials import Credentials, Settings, read_credentials, write_settings
from fedkeeper.fabric.front import SERVICE

_NAME: Final = "fabric"  # as in serve.py, which is not imported: it brings the whole server along
_CALL_TIMEOUT_S: Final = 10.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricAddress:
    """How to reach the fabric's platforms, and how to prove oneself to them."""

    url: str  # "http://127.0.0.1:PORT": OpenWhisk's API host and Cloud Functions' API endpoint
    openwhisk_auth: Mapping[str, SecretStr]  # namespace -> "uuid:key"
    service_accounts: Mapping[str, Mapping[str, Any]] = field(repr=False)  # project -> its JSON key file
    openfaas_password: SecretStr  # of the gateway's user, admin, in all its namespaces

    def login(self, platform: str, tenant: str) -> Any:
        """What proves us to the embedded `platform` as `tenant`: a SecretStr, or a service account's JSON."""
        logins: Mapping[str, Mapping[str, Any]] = {
            "openwhisk": self.openwhisk_auth,
            "google": self.service_accounts,
        }
        return self.openfaas_password if platform == "openfaas" else logins[platform][tenant]


class OpenFabric:
    """A fabric that runs for as long as this is open, and as its `linger_s` after a crash of ours."""

    def __init__(self, address: FabricAddress, running: service.Running) -> None:
        self.address = address
        self.started = running.started  # by us, rather than joined
        self._running = running

    def alive(self) -> bool:
        """Whether the fabric's process lives."""
        return self._running.alive()

    async def ensure(self) -> bool:
        """Start the fabric again if it has died, on its port and with all its functions; True if it had."""
        return await self._running.ensure()

    async def close(self) -> None:
        """Give up our use of it; the last user's end is the fabric's end."""
        await self._running.close()


async def open_fabric(
    folder: Path,
    *,
    port: int = 0,
    namespaces: Sequence[str],
    projects: Sequence[str],
    memory_mb: int = 8192,
    queue_max: int = 10_000,
    connections_max: int = 0,
    payload_mb_max: int = 512,
    share_workers: bool = True,
    workers_busy_max: int = 0,
    invocations_per_minute: int = 1_000_000,
    images: Mapping[str, str] | None = None,
    linger_s: float = 60,
    start_timeout_s: float = 30,
) -> OpenFabric:
    """Join the fabric of `folder`, or start it; it offers at least `namespaces` and `projects`.

    `port` 0: the port of the last time, if it is free. `connections_max` 0: `queue_max` + 1024.
    `workers_busy_max` 0: processors + 2. `images`: OpenWhisk image -> kind that stands in for it. Of a fabric
    that runs already, all but the names stays as it was, and what differs is logged.

    Raises:
        PortTaken: `port` is in use by another program.
        ServiceError: it did not start, runs on another port, or a name or kind cannot be used.
    """
    settings = Settings(
        namespaces=tuple(namespaces),
        projects=tuple(projects),
        port=port,
        memory_mb=memory_mb,
        queue_max=queue_max,
        connections_max=connections_max,
        payload_mb_max=payload_mb_max,
        share_workers=share_workers,
        workers_busy_max=workers_busy_max,
        invocations_per_minute=invocations_per_minute,
        images=dict(images or {}),
        linger_s=linger_s,
    )
    folder = _prepare(folder, settings)
    argv, environment = service.module_command("fedkeeper.fabric.serve", str(folder))
    limit = time.monotonic() + start_timeout_s
    while True:
        left = max(0.1, limit - time.monotonic())
        running = await service.attach(folder, _NAME, argv, start_timeout_s=left, environment=environment)
        try:
            credentials = await _introduce(folder, str(running.info["url"]), settings)
            break
        except _Dying as exc:  # killed this moment, its lock not yet free: start another
            await running.close()
            if time.monotonic() > limit:
                raise ServiceError(str(exc)) from exc
            await asyncio.sleep(0.05)
        except BaseException:
            await running.close()
            raise
    if not running.started:
        _warn_if_others(running.info, settings, folder)
    address = FabricAddress(
        url=str(running.info["url"]),
        openwhisk_auth={name: SecretStr(credentials.openwhisk[name]) for name in namespaces},
        service_accounts={name: credentials.accounts[name] for name in projects},
        openfaas_password=SecretStr(credentials.openfaas),
    )
    return OpenFabric(address, running)


def _warn_if_others(info: Mapping[str, Any], settings: Settings, folder: Path) -> None:
    """Log what a fabric that was joined does otherwise than these settings say."""
    known = info.get("settings", {})
    differing = sorted(key for key, value in settings.fixed().items() if known.get(key, value) != value)
    if differing:
        log.warning(
            "the embedded fabric runs already, with other settings; they change when it has ended",
            folder=str(folder),
            settings=differing,
        )


def _prepare(folder: Path, settings: Settings) -> Path:
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_settings(folder, settings)
    return folder


class _Dying(Exception):
    """What has announced itself does not listen any more."""


async def _introduce(folder: Path, url: str, settings: Settings) -> Credentials:
    """Make sure that it is a fabric that answers, and that it knows our namespaces and projects."""
    if settings.port and not url.endswith(f":{settings.port}"):
        raise ServiceError(
            f"the embedded fabric of {folder} is running already, at {url} and not on port {settings.port}",
            hint="end the run that uses it, or configure the same port",
        )
    timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(f"{url}/health") as answer:
                told = await answer.json()
            if not isinstance(told, dict) or told.get("name") != SERVICE:
                raise ServiceError(f"what answers at {url} is not the embedded fabric")
            credentials = read_credentials(folder)
            wanted = {"namespaces": list(settings.namespaces), "projects": list(settings.projects)}
            if all(name in credentials.openwhisk for name in settings.namespaces) and all(
                name in credentials.accounts for name in settings.projects
            ):
                return credentials
            headers = {"Authorization": f"Bearer {credentials.admin}"}
            async with session.post(f"{url}/admin/reload", json=wanted, headers=headers) as answer:
                if answer.status != 200:
                    raise ServiceError(f"the embedded fabric refused new names: {await answer.text()}")
        return read_credentials(folder)
    except aiohttp.ClientConnectorError as exc:
        raise _Dying(f"the embedded fabric at {url} does not answer: {exc!r}") from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise ServiceError(f"the embedded fabric at {url} does not answer: {exc!r}") from exc
