"""The fabric's process: `python -m fedkeeper.fabric.serve FOLDER`. Started by `launch`, ends when unused.

`fedkeeper fabric` runs the same in the foreground (see `standing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from fedkeeper import service
from fedkeeper.connections import ConnectionBounds
from fedkeeper.errors import ServiceError
from fedkeeper.fabric.bodies import MEGABYTE
from fedkeeper.fabric.credentials import (
    Credentials,
    Settings,
    last_port,
    make_credentials,
    read_settings,
    remember_port,
)
from fedkeeper.fabric.front import Front, FrontSettings, listen, open_front
from fedkeeper.fabric.pool import Pool

NAME: Final = "fabric"
CONNECTIONS_SPARE: Final = 1024  # beside those whose requests are in workers or wait for one
FILES_MAX: Final = 65_536  # where this user may open as many as there are
FILES_KEPT: Final = 6144  # four per worker, and connections that are accepted while others are closed
log = structlog.get_logger(__name__)


async def serve(folder: Path) -> None:
    """Run the fabric of `folder` until SIGTERM, or until nobody has used it for its `linger_s`.

    Raises:
        PortTaken: the configured port is in use.
        ServiceError: settings or credentials cannot be read.
    """
    settings = read_settings(folder)
    async with open_fabric_server(folder, settings) as (front, _):
        service.announce(folder, NAME, {"url": front.url, "settings": settings.fixed()})
        log.info("fabric is up", url=front.url)
        await service.wait_until_unused(folder, NAME, linger_s=settings.linger_s, busy=front.busy)
    log.info("fabric has ended")


@contextlib.asynccontextmanager
async def open_fabric_server(
    folder: Path, settings: Settings, *, port_key: str = "fabric_port"
) -> AsyncIterator[tuple[Front, Credentials]]:
    """Listen, answer and run functions for as long as the block runs; the caller owns the service's lock.

    `port_key`: what an error about the port calls the setting. Raises PortTaken, ServiceError.
    """
    listener = listen(settings.port or last_port(folder), fallback=not settings.port, key=port_key)
    with listener:
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        changing = asyncio.Lock()

        async def offer(namespaces: Any, projects: Any) -> Credentials:
            async with changing:
                return await asyncio.to_thread(
                    make_credentials, folder, namespaces=namespaces, projects=projects, url=url
                )

        async def reload(body: Mapping[str, Any]) -> Credentials:
            asked = [body.get(key, []) for key in ("namespaces", "projects")]
            if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in asked):
                raise ValueError("namespaces and projects must be lists of names")
            try:
                return await offer(*asked)
            except ServiceError as exc:
                raise ValueError(str(exc)) from exc

        credentials = await offer(settings.namespaces, settings.projects)
        remember_port(folder, port)
        async with (
            Pool.open(
                folder / "pool",
                memory_mb=settings.memory_mb,
                queue_max=settings.queue_max,
                idle_s=settings.idle_s,
                busy_max=settings.workers_busy_max or len(os.sched_getaffinity(0)) + 2,
            ) as pool,
            open_front(
                folder,
                pool,
                credentials,
                listener,
                settings=FrontSettings(
                    in_flight_max=settings.queue_max,
                    connections=ConnectionBounds(connections_max=_connections_max(settings)),
                    payload_bytes_max=settings.payload_mb_max * MEGABYTE,
                    share_workers=settings.share_workers,
                    bounds=settings.bounds(),
                    images=settings.images,
                ),
                reload=reload,
            ) as front,
        ):
            yield front, credentials


def _connections_max(settings: Settings) -> int:
    """As many as are configured and as open files allow: workers, the store and the next caller need some."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(files, FILES_MAX if hard == resource.RLIM_INFINITY else hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        files = most
    asked = settings.connections_max or settings.queue_max + CONNECTIONS_SPARE
    allowed = files - min(FILES_KEPT, files // 2)
    if asked > allowed:
        log.warning("fewer connections: a limit of open files", connections=allowed, asked=asked, files=files)
    return min(asked, allowed)


def main(argv: list[str]) -> int:
    """Run the fabric of the folder named by `argv`; the exit status."""
    folder = Path(argv[0])
    try:
        with service.own(folder, NAME):
            try:
                asyncio.run(serve(folder))
            except ServiceError as exc:
                service.report_failure(folder, NAME, exc)
                raise
    except ServiceError as exc:
        log.error("fabric did not start", problem=str(exc))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
