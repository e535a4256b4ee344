"""What both faces of the MongoDB store share: names, connection options, documents, and what errors mean.

`runtime.store` is the functions' face (synchronous), `weights.mongo` the keeper's (asynchronous).

Collections, all with the configured prefix:
`.objects`   one manifest per object: tensors' names, dtypes, shapes, places; sha256; bytes, or the blob's id
`.blobs`     GridFS bucket of what is too large to be inline
`.claims`    who works on a key
`.outcomes`  what became of a key, with the bytes of a small update (adr/0031)
`.meta`      the version of this format
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from pymongo import ReadPreference
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fedkeeper.errors import StoreError, StoreRefused, StoreUnavailable
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.trusted import ca_file
from fedkeeper.runtime.wire import Claim, Outcome

FORMAT_VERSION = 1
INLINE_BYTES_MAX = 1024 * 1024  # below it, GridFS' fixed 7 to 14 ms per file would dominate
CHUNK_BYTES = 1024 * 1024  # of a blob
ROWS = "rows"  # kind of a data assignment, which outlives the rounds
TENSORS = "tensors"

_AUTHENTICATION_CODES = frozenset({13, 18, 8000})  # Unauthorized, AuthenticationFailed, Atlas' own
_SELECTION_TIMEOUT_S = 2.0  # a look for a primary; Patience looks again
_SOCKET_TIMEOUT_S = (2.0, 30.0)  # least and most: a store that hangs is given up as one that is away


@dataclass(frozen=True, slots=True)
class Names:
    """The collections' names."""

    prefix: str

    @property
    def objects(self) -> str:
        """Manifests."""
        return f"{self.prefix}.objects"

    @property
    def blobs(self) -> str:
        """The GridFS bucket."""
        return f"{self.prefix}.blobs"

    @property
    def claims(self) -> str:
        """Who works on a key."""
        return f"{self.prefix}.claims"

    @property
    def outcomes(self) -> str:
        """What became of a key."""
        return f"{self.prefix}.outcomes"

    @property
    def meta(self) -> str:
        """The format's version."""
        return f"{self.prefix}.meta"


def client_options(address: StoreAddress) -> dict[str, Any]:
    """Keyword arguments of MongoClient and AsyncMongoClient. Every wait in them is bounded."""
    options: dict[str, Any] = {
        "host": [host.strip() for host in address.hosts.split(",")],
        "serverSelectionTimeoutMS": round(1000 * min(_SELECTION_TIMEOUT_S, max(address.wait_s, 0.1))),
        "connectTimeoutMS": min(5_000, answer_ms(address)),
        "socketTimeoutMS": answer_ms(address),
        "waitQueueTimeoutMS": 10_000,
        "heartbeatFrequencyMS": 2_000,  # how soon a store that hangs is noticed
        "maxPoolSize": 20,
        "appname": "fedkeeper",
    }
    if address.replica_set:
        options["replicaSet"] = address.replica_set
    if address.username:
        options |= {
            "username": address.username,
            "password": address.password,
            "authSource": address.auth_source,
            "authMechanism": "SCRAM-SHA-256",
        }
    if address.tls:
        options |= {"tls": True, "tlsAllowInvalidCertificates": not address.tls_verify}
        if address.ca_pem:
            options["tlsCAFile"] = ca_file(address.ca_pem)
    return options


def answer_ms(address: StoreAddress) -> int:
    """How long one answer may take, before the store counts as away."""
    least, most = _SOCKET_TIMEOUT_S
    return round(1000 * min(most, max(least, address.wait_s)))


def database_options(address: StoreAddress) -> dict[str, Any]:
    """What is read cannot be rolled back, and what is acknowledged is on the disks of a majority."""
    return {
        "codec_options": CodecOptions(tz_aware=True),
        "read_preference": ReadPreference.PRIMARY,
        "read_concern": ReadConcern("majority"),
        "write_concern": WriteConcern(w="majority", j=True, wtimeout=answer_ms(address)),
    }


# --- errors --------------------------------------------------------------------------------------


class Patience:
    """How long one call goes on when the store is away: `wait_s` from its first failure."""

    def __init__(self, address: StoreAddress, what: str) -> None:
        self._address = address
        self._what = what
        self._limit: float | None = None
        self._pause_s = 0.05

    def pause_after(self, error: PyMongoError | BSONError) -> float:
        """Seconds to wait before the next try; raises the StoreError when there is to be none."""
        now = time.monotonic()
        if self._limit is None:
            self._limit = now + self._address.wait_s
        if not is_transient(error):
            raise store_error(error, self._address, self._what) from error
        if now >= self._limit:
            raise StoreUnavailable(
                f"{self._what}: no answer from {self._address.hosts} for {self._address.wait_s:g} s:"
                f" {_text(error)}",
                hint="is MongoDB running, and reachable from here?",
            ) from error
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, 1.0)
        return min(pause, self._limit - now)


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed a little later. Every write here may be repeated."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if isinstance(error, (ConnectionFailure, WaitQueueTimeoutError, ExecutionTimeout, WriteConcernError)):
        return True
    return isinstance(error, PyMongoError) and error.has_error_label("RetryableWriteError")


def store_error(error: Exception, address: StoreAddress, what: str) -> StoreError:
    """The StoreError for a driver's error that is not transient."""
    problem = f"{what}: {address.hosts}, database {address.database!r}: {_text(error)}"
    if isinstance(error, OperationFailure) and error.code in _AUTHENTICATION_CODES:
        who = f"user {address.username!r}" if address.username else "no user"
        return StoreRefused(
            f"{problem} ({who})",
            hint="check mongo_config's username, password, auth_source and the user's rights",
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreRefused(
            problem, hint="give the CA's certificate in mongo_config, or check the host's name"
        )
    if isinstance(error, ConfigurationError):
        return StoreRefused(problem, hint="check mongo_config")
    return StoreError(problem)


def _text(error: Exception) -> str:
    """The driver's words, without the topology's dump."""
    return str(error).split(", full error:")[0].split(", Timeout:")[0][:300]


# --- documents -----------------------------------------------------------------------------------


def kind_of(name: str, run: str) -> str:
    """Whether `name` is a data assignment of `run` (see wire.assignment_name)."""
    return ROWS if name.startswith(f"{run}/rows/") else TENSORS


def round_of(key: str, run: str) -> int:
    """The round in a key such as "run/r3/client_7/a0"; 0 where there is none."""
    match = re.match(r"r(\d+)/", key.removeprefix(f"{run}/"))
    return int(match[1]) if match else 0


def claim_document(key: str, run: str, activation_id: str, at_ms: int) -> dict[str, Any]:
    """As it is stored."""
    return {
        "_id": key,
        "run": run,
        "round": round_of(key, run),
        "activation_id": activation_id,
        "at_ms": at_ms,
    }


def claim_of(document: Mapping[str, Any]) -> Claim:
    """From its document."""
    return Claim(key=document["_id"], activation_id=document["activation_id"], at_ms=document["at_ms"])


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """As it is stored. `result` is JSON text: its keys are users' names, which BSON may not like."""
    return {
        "_id": outcome.key,
        "run": outcome.run,
        "round": round_of(outcome.key, outcome.run),
        "ok": outcome.ok,
        "result": msgspec.json.encode(outcome.result).decode(),
        "reason": outcome.reason,
        "activation_id": outcome.activation_id,
        "at_ms": outcome.at_ms,
    }


def update_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the update that came with an outcome."""
    return {"_id": document["_id"], **document["update"]}


def outcome_of(document: Mapping[str, Any]) -> Outcome:
    """From its document."""
    return Outcome(
        key=document["_id"],
        run=document["run"],
        ok=document["ok"],
        result=msgspec.json.decode(document["result"]),
        reason=document["reason"],
        activation_id=document["activation_id"],
        at_ms=document["at_ms"],
    )
