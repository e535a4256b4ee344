"""The fabric's two files: what it is to offer (settings.json), and what proves its users (credentials.json).

Both are readable by this user only. Settings are written by whoever launches the fabric, credentials by the
fabric alone; a namespace or project that once was stays known, so that its functions stay reachable.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fedkeeper.errors import ServiceError
from fedkeeper.fabric.openwhisk_entities import Bounds, Refused, check_name
from fedkeeper.fabric.openwhisk_exec import DEFAULTS, KINDS, is_image
from fedkeeper.fabric.tokens import new_private_key

T = TypeVar("T")
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


_PER_USER: Final = {"namespaces", "projects", "port", "linger_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the fabric offers, and its bounds."""

    namespaces: tuple[str, ...] = ()  # OpenWhisk
    projects: tuple[str, ...] = ()  # Google Cloud
    port: int = 0  # on 127.0.0.1; 0: the one of the last time if it is free, else any
    memory_mb: int = 8192  # sum of the limits of all workers
    queue_max: int = 10_000  # requests, of both APIs, that may be in workers or waiting for one
    connections_max: int = 0  # open ones; 0: queue_max + 1024, so that each of those may have its own
    payload_mb_max: int = 512  # MB of what callers sent that arrives, waits or is worked on
    share_workers: bool = True  # by OpenWhisk actions that are alike in all that a worker is made from
    workers_busy_max: int = 0  # of one OpenWhisk action, or of those that share workers; 0: processors + 2
    invocations_per_minute: int = 1_000_000  # of one OpenWhisk namespace, in a minute of the clock
    images: dict[str, str] = field(default_factory=dict)  # OpenWhisk image -> kind that stands in for it
    idle_s: float = 600.0  # a warm worker ends after so long without work
    linger_s: float = 60.0  # the fabric ends after so long without users and work

    def bounds(self) -> Bounds:
        """What OpenWhisk's namespaces may ask for."""
        return Bounds(
            memory_mb=(128, max(512, self.memory_mb)), invocations_per_minute=self.invocations_per_minute
        )

    def fixed(self) -> dict[str, Any]:
        """What stays as it is while the fabric runs, as JSON; each user asks anew for the rest."""
        return {key: value for key, value in asdict(self).items() if key not in _PER_USER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Everything that proves somebody to the fabric. Never shown."""

    openwhisk: dict[str, str]  # namespace -> "uuid:key"
    accounts: dict[str, dict[str, Any]]  # project -> service account JSON
    signing_key: str  # PEM, of the token endpoint
    admin: str  # token of the administration calls
    openfaas: str = ""  # password of the gateway's user

    def __repr__(self) -> str:
        return f"Credentials(namespaces={list(self.openwhisk)}, projects={list(self.accounts)})"


def read_settings(folder: Path) -> Settings:
    """The settings in `folder`. ServiceError if they are missing or wrong."""
    return _read(folder / "settings.json", Settings)


def write_settings(folder: Path, settings: Settings) -> None:
    """Leave `settings` for the fabric that is started next. ServiceError if a name or kind cannot be used."""
    check_settings(settings)
    _write(folder / "settings.json", asdict(settings))


def read_credentials(folder: Path) -> Credentials:
    """The credentials in `folder`. ServiceError if they are missing or damaged."""
    return _read(folder / "credentials.json", Credentials)


def make_credentials(
    folder: Path, *, namespaces: Collection[str], projects: Collection[str], url: str
) -> Credentials:
    """Read the credentials, make what is missing, and write them. Blocking: an RSA key takes about 0.1 s.

    `url`: the fabric's, by which service accounts find its token endpoint.
    """
    check_names(namespaces, projects)
    path = folder / "credentials.json"
    if path.exists():
        known = read_credentials(folder)
    else:
        known = Credentials(
            openwhisk={}, accounts={}, signing_key=new_private_key(), admin=secrets.token_urlsafe(32)
        )
    auth = {name: f"{uuid.uuid4()}:{secrets.token_hex(32)}" for name in namespaces}
    accounts = {name: _service_account(name) for name in projects if name not in known.accounts}
    credentials = Credentials(
        openwhisk=auth | known.openwhisk,
        accounts={
            name: {**account, "token_uri": f"{url}/token"}
            for name, account in (accounts | known.accounts).items()
        },
        signing_key=known.signing_key,
        admin=known.admin,
        openfaas=known.openfaas or secrets.token_urlsafe(32),
    )
    if credentials != known or not path.exists():
        _write(path, asdict(credentials))
    return credentials


def check_settings(settings: Settings) -> None:
    """ServiceError if a name cannot be used, or an image or the kind that stands in for it."""
    check_names(settings.namespaces, settings.projects)
    for image, kind in settings.images.items():
        if not is_image(image):
            raise ServiceError(f"{image!r} is not the name of an image", hint="write registry/name:tag")
        if kind not in {*DEFAULTS, *KINDS}:
            raise ServiceError(
                f"image {image}: {kind!r} is no kind that runs here",
                hint=f"known: {', '.join((*DEFAULTS, *KINDS))}",
            )


def check_names(namespaces: Collection[str], projects: Collection[str]) -> None:
    """ServiceError if one of them cannot be part of a URL as its platform wants it."""
    for name in namespaces:
        try:
            check_name(name)
        except Refused as exc:
            raise ServiceError(f"OpenWhisk namespace {name!r}: {exc.words}") from exc
    for name in projects:
        if not _PROJECT.match(name):
            raise ServiceError(f"Google Cloud project {name!r}: use lower-case letters, digits and hyphens")


def last_port(folder: Path) -> int:
    """The port of the last time, 0 if there was none."""
    try:
        return int((folder / "port").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def remember_port(folder: Path, port: int) -> None:
    """Have the next fabric in `folder` use `port` again, so that URLs stay valid."""
    _write(folder / "port", port)


def _service_account(project: str) -> dict[str, Any]:
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": secrets.token_hex(20),
        "private_key": new_private_key(),
        "client_email": f"fedkeeper@{project}.iam.gserviceaccount.com",
        "client_id": str(secrets.randbelow(10**21)),
        "universe_domain": "googleapis.com",
    }


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as exc:
        raise ServiceError(f"{path} does not exist") from exc
    except msgspec.MsgspecError as exc:
        raise ServiceError(f"{path}: {exc}", hint="delete it: it is generated") from exc


def _write(path: Path, value: Mapping[str, Any] | int) -> None:
    write_private(path, json.dumps(value))


def write_private(path: Path, text: str) -> None:
    """Replace `path` at once; readable by this user only from the start."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w") as out:
        out.write(text)
    scratch.replace(path)
