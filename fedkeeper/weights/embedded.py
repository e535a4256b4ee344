"""A real mongod on loopback, with authentication, for `mongo_config.embedded: true`.

`open_embedded_mongo` joins or starts the *guard*, a service (see fedkeeper.service) that outlives its
users: `python -m fedkeeper.weights.embedded FOLDER OPTIONS`. The guard starts mongod, sets up its two users,
starts it again when it dies, and shuts it down when nobody needs it any more.

FOLDER/data              mongod's files
FOLDER/credentials.json  generated passwords (0600); the same for as long as the folder lives
FOLDER/mongod.log        mongod's own words; guard.log has the guard's
FOLDER/port              the port of last time
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from fedkeeper import service
from fedkeeper.errors import ServiceError
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.weights.mongod import HOST, Client, Credentials, GuardOptions, grant, guard

SERVICE_NAME = "guard"


@dataclass(frozen=True, slots=True)
class OpenMongo:
    """A lease on the embedded database."""

    address: StoreAddress
    running: service.Running

    async def close(self) -> None:
        """Give up the lease: the last user's close shuts mongod down and returns when it has ended."""
        await self.running.close()


async def open_embedded_mongo(
    folder: Path,
    *,
    database: str,
    collection: str,
    port: int = 0,
    cache_mb: int = 160,
    linger_s: float = 60,
    start_timeout_s: float = 60,
) -> OpenMongo:
    """Join the embedded mongod of `folder`, starting it if it does not run; `port` 0: any, kept over starts.

    Raises:
        PortTaken: `port` is in use by another program.
        ServiceError: there is no mongod that runs here (the hint says what to install), or it did not start.
    """
    options = GuardOptions(database=database, port=port, cache_mb=cache_mb, linger_s=linger_s)
    place = os.path.abspath(folder)  # noqa: PTH100, ASYNC240 - looks at no file
    argv, environment = service.module_command(
        "fedkeeper.weights.embedded", place, msgspec.json.encode(options).decode()
    )
    running = await service.attach(
        folder, SERVICE_NAME, argv, start_timeout_s=start_timeout_s, environment=environment
    )
    try:
        return await _join(folder, running, database, collection, port)
    except BaseException:
        await running.close()
        raise


async def _join(
    folder: Path, running: service.Running, database: str, collection: str, port: int
) -> OpenMongo:
    if port not in (0, running.info["port"]):
        raise ServiceError(
            f"the embedded mongod of {folder} runs on port {running.info['port']}, not on {port}",
            hint="end the other run, or take mongo_config.port out",
        )
    credentials = Credentials.load(folder)
    if database != running.info["database"]:
        try:
            options = credentials.admin_options(running.info["port"])
            client: Client = AsyncMongoClient(**options)
            async with client:
                await grant(client, database)
        except PyMongoError as exc:
            raise ServiceError(f"no access to database {database!r} of the embedded mongod: {exc}") from exc
    return OpenMongo(
        StoreAddress(
            hosts=f"{HOST}:{running.info['port']}",
            database=database,
            collection=collection,
            username=credentials.app_user,
            password=credentials.app_password,
        ),
        running,
    )


def main(folder: str, options: str) -> None:
    """The guard's process."""
    place = Path(folder)
    try:
        guard(place, SERVICE_NAME, msgspec.json.decode(options, type=GuardOptions))
    except ServiceError as exc:
        service.report_failure(place, SERVICE_NAME, exc)
        raise SystemExit(f"{exc}\n{exc.hint}") from exc


if __name__ == "__main__":
    main(*sys.argv[1:])
