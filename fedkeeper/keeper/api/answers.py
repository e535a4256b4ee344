"""Answers in HTTP: JSON, and what each error becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from fedkeeper.core.persistent import thawed
from fedkeeper.errors import (
    ApiError,
    ConfigError,
    FedKeeperError,
    JournalError,
    JournalUnconfirmed,
    KeeperBusy,
    KeeperStopped,
    MembershipRefused,
    NoLeader,
    OutcomeUnknown,
    ProviderError,
    ProviderUnavailable,
    RunError,
    ServiceError,
    StoreError,
    StoreUnavailable,
)
from fedkeeper.keeper.api.schemas import Error, Failure

# The first that fits. Errors of the API itself carry their own.
STATUSES: Final[tuple[tuple[type[FedKeeperError], int], ...]] = (
    (ConfigError, 400),
    (MembershipRefused, 409),
    (RunError, 409),
    (NoLeader, 503),
    (KeeperStopped, 503),
    (OutcomeUnknown, 504),
    (JournalUnconfirmed, 504),
    (JournalError, 503),
    (StoreUnavailable, 503),
    (ProviderUnavailable, 503),
    (ServiceError, 503),
    (StoreError, 502),
    (ProviderError, 502),
)
RETRY_S: Final = 1.0
HEADERS: Final = CIMultiDict(
    {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Server": "fedkeeper",
    }
)


class Redirect(Exception):
    """Another keeper answers this: at `url`, with the same method and body."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


def encode(value: Any) -> bytes:
    """JSON of plain types, our structs and the core's dataclasses. Takes read-only mappings as well."""
    return msgspec.json.encode(value, enc_hook=thawed)


def encode_any(value: Any) -> bytes:
    """As `encode`, also where a platform's message with half a surrogate pair is inside."""
    try:
        return encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value, enc_hook=thawed), separators=(",", ":")).encode("ascii")


def reply(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON."""
    response = web.Response(body=body, status=status, headers=HEADERS)
    if headers:
        response.headers.update(headers)
    return response


def redirect(url: str) -> web.Response:
    """To the keeper that answers this."""
    return reply(encode({"location": url}), status=307, headers={"Location": url})


def failure(error: FedKeeperError) -> web.Response:
    """An answer that is not the one asked for."""
    status = status_of(error)
    retry_s = _retry_s(error, status)
    headers = {}
    if retry_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = Failure(
        error=Error(
            kind=type(error).__name__,
            message=str(error),
            hint=error.hint,
            definite=error.definite,
            retry_after_s=retry_s,
        )
    )
    return reply(encode_any(body), status=status, headers=headers)


def internal(error: Exception) -> web.Response:
    """A fault of ours: its kind, and nothing else of it."""
    body = Failure(
        error=Error(
            kind="InternalError",
            message=f"a fault inside the keeper: {type(error).__name__}",
            hint="the keeper's log has the details; report it",
            definite=False,
        )
    )
    return reply(encode(body), status=500)


def status_of(error: FedKeeperError) -> int:
    """Of HTTP."""
    if isinstance(error, ApiError) and error.status is not None:
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def _retry_s(error: FedKeeperError, status: int) -> float | None:
    if isinstance(error, KeeperBusy):
        return error.retry_after_s
    return RETRY_S if status == 503 else None
