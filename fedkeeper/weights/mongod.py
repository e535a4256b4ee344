"""The guard of the embedded mongod: starts it, sets it up, keeps it up, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from fedkeeper import service
from fedkeeper.errors import PortTaken, ServiceError
from fedkeeper.weights.binary import die_with_parent, find_mongod

HOST = "127.0.0.1"
Client = AsyncMongoClient[dict[str, Any]]

_SETUP_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_PORT_WAIT_S = 2.0  # for a mongod of ours that is just dying with its guard
_RESTARTS_MAX = 5  # per minute
_STANDALONE = ".standalone"  # in the data: it is no replica set's, or no more
# What is dirty may stay in the cache until a checkpoint: most of it is pruned before, and never written.
_DIRTY = ",".join(f"eviction_{what}_target=60,eviction_{what}_trigger=80" for what in ("dirty", "updates"))
_NO_COMPRESSOR = ("--wiredTigerJournalCompressor", "none", "--wiredTigerCollectionBlockCompressor", "none")
_ALONE = ("--auth", *_NO_COMPRESSOR)  # a journal of before, which is compressed, is read by whoever wrote it
_EXIT_PORT, _EXIT_FOLDER = 48, 100  # mongod: the port, or the data folder, is in use


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What the guard is told on its command line: nothing secret."""

    database: str
    port: int = 0
    cache_mb: int = 160
    linger_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """The two users of the embedded database. The app's may read and write the databases it asked for."""

    admin_user: str
    admin_password: str = field(repr=False)
    app_user: str
    app_password: str = field(repr=False)

    @classmethod
    def load(cls, folder: Path, *, create: bool = False) -> Credentials:
        """From FOLDER/credentials.json; `create` makes the file if there is none."""
        path = folder / "credentials.json"
        if create and not path.exists():
            made = cls("fedkeeper-admin", secrets.token_urlsafe(24), "fedkeeper", secrets.token_urlsafe(24))
            _write_secret(path, msgspec.json.encode(asdict(made)))
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as exc:
            raise ServiceError(f"the embedded mongod's {path} cannot be read: {exc}") from exc

    def admin_options(self, port: int) -> dict[str, Any]:
        """Keyword arguments of a client with all rights."""
        return _direct(port) | {"username": self.admin_user, "password": self.admin_password}


def guard(folder: Path, name: str, options: GuardOptions) -> None:
    """Be the service: returns when mongod has ended in order. ServiceError, PortTaken."""
    with service.own(folder, name):
        asyncio.run(_Guard(folder, name, options).run())


async def grant(client: Client, database: str) -> None:
    """Let the app's user read and write `database` too."""
    await client.admin.command("grantRolesToUser", "fedkeeper", roles=[{"role": "readWrite", "db": database}])


class _Guard:
    def __init__(self, folder: Path, name: str, options: GuardOptions) -> None:
        self._folder = folder
        self._name = name
        self._options = options
        self._binary = find_mongod()
        self._credentials = Credentials.load(folder, create=True)
        self._port = 0
        self._in_use = False
        self._ending = asyncio.Event()

    async def run(self) -> None:
        mongod = await self._first_start()
        mongod_up = asyncio.create_task(self._keep_up(mongod))
        try:
            await asyncio.wait_for(self._set_up(), _SETUP_TIMEOUT_S)
            (self._folder / "port").write_text(f"{self._port}\n")
            service.announce(
                self._folder,
                self._name,
                {"port": self._port, "pid": os.getpid(), "database": self._options.database},
            )
            watch = asyncio.create_task(self._watch_use())
            unused = asyncio.create_task(
                service.wait_until_unused(
                    self._folder, self._name, linger_s=self._options.linger_s, busy=lambda: self._in_use
                )
            )
            try:
                await asyncio.wait({unused, mongod_up}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._ending.set()
                unused.cancel()
                watch.cancel()
                await asyncio.wait({unused, watch}, timeout=_STOP_TIMEOUT_S / 3)
        except TimeoutError as exc:
            raise ServiceError(f"mongod was not ready after {_SETUP_TIMEOUT_S:g} s{self._words()}") from exc
        except PyMongoError as exc:
            raise ServiceError(f"mongod cannot be set up: {exc}{self._words()}") from exc
        finally:
            mongod_up.cancel()  # which shuts mongod down
            (ended,) = await asyncio.gather(mongod_up, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended

    # --- the process -----------------------------------------------------------------------------

    async def _first_start(self) -> asyncio.subprocess.Process:
        """Start it on a port that is free, and see that it does not end at once over port or folder."""
        data = self._folder / "data"
        if (data / ".setting-up").exists():  # nobody has ever used it
            shutil.rmtree(data)
        if data.exists() and not (data / _STANDALONE).exists():
            await self._leave_replica_set()
        return await self._start_listening()

    async def _start_listening(self, *more: str) -> asyncio.subprocess.Process:
        for _ in range(5):
            self._port = await self._choose_port()
            mongod = await self._start(*more)
            code = await self._until_it_listens(mongod)
            if code is None:
                return mongod
            if code == _EXIT_PORT and self._options.port:
                raise _port_taken(self._port)
            if code not in (_EXIT_PORT, _EXIT_FOLDER):
                break
            await asyncio.sleep(0.5)
        raise ServiceError(f"mongod ended with status {code}{self._words()}")

    async def _choose_port(self) -> int:
        """The configured one; else the one of last time, if it is free; else any."""
        remembered = 0
        with contextlib.suppress(OSError, ValueError):
            remembered = int((self._folder / "port").read_text())
        wanted = self._options.port or remembered
        limit = time.monotonic() + _PORT_WAIT_S
        while wanted:
            if _is_free(wanted):
                return wanted
            if time.monotonic() > limit:
                if self._options.port:
                    raise _port_taken(wanted)
                break
            await asyncio.sleep(0.1)
        with socket.socket() as any_port:
            any_port.bind((HOST, 0))
            return int(any_port.getsockname()[1])

    async def _leave_replica_set(self) -> None:
        """Make a folder of before (a replica set of one) one of a mongod alone, as MongoDB's manual says.

        Started as what it was, mongod takes in what only the oplog has; once it has ended in order, its data
        hold everything.
        """
        key = self._folder / "keyfile"
        if key.exists():  # else there is no replica set in it
            mongod = await self._start_listening("--replSet", "rs0", "--keyFile", str(key))
            try:
                try:
                    if not await self._is_known():
                        raise self._foreign()
                    async with _connected(self._credentials.admin_options(self._port)) as client:
                        await _until_primary_at(client, f"{HOST}:{self._port}")
                finally:
                    mongod.terminate()
                    code = await asyncio.wait_for(mongod.wait(), _SETUP_TIMEOUT_S)
            except (TimeoutError, PyMongoError) as exc:
                raise ServiceError(f"mongod cannot leave its replica set: {exc!r}{self._words()}") from exc
            if code != 0:
                raise ServiceError(f"mongod ended with status {code}{self._words()}")
            key.unlink()
        (self._folder / "data" / _STANDALONE).touch()

    async def _start(self, *more: str) -> asyncio.subprocess.Process:
        data = self._folder / "data"
        if not data.exists():
            data.mkdir(mode=0o700)
            (data / ".setting-up").touch()
            (data / _STANDALONE).touch()
        log = self._folder / "mongod.log"
        if log.exists() and log.stat().st_size > 20_000_000:
            log.replace(log.with_suffix(".log.1"))
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                self._binary,
                *("--dbpath", str(data), "--port", str(self._port), "--bind_ip", HOST, "--nounixsocket"),
                *(more or _ALONE),
                *("--quiet", "--networkMessageCompressors", "disabled"),
                *("--wiredTigerEngineConfigString", f"cache_size={self._options.cache_mb}M,{_DIRTY}"),
                *("--setParameter", "diagnosticDataCollectionEnabled=false"),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=die_with_parent(),
            )
        finally:
            os.close(file)

    async def _until_it_listens(self, mongod: asyncio.subprocess.Process) -> int | None:
        """None once it takes connections; its exit status if it ended before."""
        limit = time.monotonic() + _SETUP_TIMEOUT_S
        while time.monotonic() < limit:
            if mongod.returncode is not None:
                return mongod.returncode
            try:
                _, writer = await asyncio.open_connection(HOST, self._port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return None
        mongod.kill()
        return await mongod.wait()

    async def _keep_up(self, mongod: asyncio.subprocess.Process) -> None:
        """Start it again, on the same port, whenever it ends. Cancelled: shut it down."""
        starts: deque[float] = deque(maxlen=_RESTARTS_MAX)
        try:
            while True:
                code = await mongod.wait()
                now = time.monotonic()
                if len(starts) == _RESTARTS_MAX and now - starts[0] < 60:
                    raise ServiceError(
                        f"mongod ended {_RESTARTS_MAX + 1} times within a minute, last with status {code}"
                        f"{self._words()}"
                    )
                print(f"mongod ended with status {code}; starting it again", file=sys.stderr, flush=True)  # noqa: T201 - our log
                if starts and now - starts[-1] < 1:
                    await asyncio.sleep(1)
                starts.append(now)
                mongod = await self._start()
        finally:
            if mongod.returncode is None:
                mongod.terminate()
                try:
                    await asyncio.wait_for(mongod.wait(), _STOP_TIMEOUT_S)
                except TimeoutError:  # what was acknowledged is in its journal
                    mongod.kill()
                    await mongod.wait()

    def _words(self) -> str:
        """The messages of the end of mongod's log."""
        with contextlib.suppress(OSError):
            lines = (self._folder / "mongod.log").read_text(errors="replace").splitlines()[-200:]
            told = [line for line in lines if '"s":"E"' in line or '"s":"F"' in line or '"s"' not in line]
            return "".join(f"\n  {line[:300]}" for line in told[-5:])
        return ""

    # --- the database ----------------------------------------------------------------------------

    async def _set_up(self) -> None:
        """Both users. Each step may have been done before."""
        admin = self._credentials.admin_options(self._port)
        if await self._is_known():
            async with _connected(admin) as client:
                await grant(client, self._options.database)
            return
        async with _connected(_direct(self._port)) as client:  # the localhost exception
            try:
                await client.admin.command(
                    "createUser",
                    self._credentials.admin_user,
                    pwd=self._credentials.admin_password,
                    roles=["root"],
                )
            except OperationFailure as exc:
                raise self._foreign(f": {exc.details and exc.details.get('errmsg')}") from exc
        async with _connected(admin) as client:
            await client.admin.command(
                "createUser",
                self._credentials.app_user,
                pwd=self._credentials.app_password,
                roles=[{"role": "readWrite", "db": self._options.database}],
            )
        (self._folder / "data" / ".setting-up").unlink()

    def _foreign(self, why: str = "") -> ServiceError:
        return ServiceError(
            f"the data in {self._folder / 'data'} and the passwords in credentials.json"
            f" do not belong together{why}",
            hint="restore credentials.json, or move the data folder away to begin anew",
        )

    async def _is_known(self) -> bool:
        """Whether mongod takes the admin's password."""
        async with _connected(self._credentials.admin_options(self._port)) as client:
            try:
                await client.admin.command("ping")
            except OperationFailure as exc:
                if exc.code == 18:
                    return False
                raise
        return True

    async def _watch_use(self) -> None:
        """Note whether a FedKeeper process is connected: functions may outlive the keeper."""
        quick = {"serverSelectionTimeoutMS": 2_000, "socketTimeoutMS": 2_000}
        async with _connected(self._credentials.admin_options(self._port) | quick) as client:
            while not self._ending.is_set():  # the driver may turn a cancellation into a PyMongoError
                try:
                    found = await client.admin.aggregate(
                        [
                            {"$currentOp": {"allUsers": True, "idleConnections": True}},
                            {"$match": {"appName": "fedkeeper"}},
                            {"$limit": 1},
                        ]
                    )
                    self._in_use = bool(await found.to_list())
                except PyMongoError:  # it is being started again
                    self._in_use = False
                with contextlib.suppress(TimeoutError):
                    pause_s = min(5.0, max(self._options.linger_s / 4, 0.1))
                    await asyncio.wait_for(self._ending.wait(), pause_s)


# --- parts ---------------------------------------------------------------------------------------


def _port_taken(port: int) -> PortTaken:
    return PortTaken(
        f"port {port} is in use by another program",
        hint="set mongo_config.port to a free port, or take it out to have one chosen",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as mongod does
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _direct(port: int) -> dict[str, Any]:
    return {
        "host": HOST,
        "port": port,
        "directConnection": True,
        "serverSelectionTimeoutMS": 10_000,
        "connectTimeoutMS": 5_000,
        "socketTimeoutMS": 30_000,
        "appname": "fedkeeper-guard",
    }


@contextlib.asynccontextmanager
async def _connected(options: dict[str, Any]) -> AsyncIterator[Client]:
    async with AsyncMongoClient(**options) as client:
        yield client


async def _until_primary_at(client: Client, host: str) -> None:
    """A replica set of one, told its port, which may be another than last time. TimeoutError."""
    async with asyncio.timeout(_SETUP_TIMEOUT_S):
        config = await _replica_config(client)
        if config["members"][0]["host"] != host:
            config["members"][0]["host"] = host
            config["version"] += 1
            await client.admin.command("replSetReconfig", config, force=True)
        while not (await client.admin.command("hello")).get("isWritablePrimary"):  # noqa: ASYNC110 - elsewhere
            await asyncio.sleep(0.05)


async def _replica_config(client: Client) -> dict[str, Any]:
    """Once mongod has loaded it, which takes a while if its old port is another's."""
    while True:
        try:
            return dict((await client.admin.command("replSetGetConfig"))["config"])
        except OperationFailure as exc:
            if exc.code != 94:  # NotYetInitialized
                raise
        await asyncio.sleep(0.05)


def _write_secret(path: Path, content: bytes) -> None:
    """Atomically, mode 0600."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.unlink(missing_ok=True)
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    scratch.replace(path)
