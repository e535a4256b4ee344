"""The Python client of a cluster of keepers. Blocking; safe for use from several threads."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from fedkeeper.core.model import Run, RunSpec
from fedkeeper.errors import ApiError, NotThere
from fedkeeper.keeper.api import schemas
from fedkeeper.keeper.calling import Apis, Caller, Request
from fedkeeper.keeper.following import follow
from fedkeeper.runtime.learned import learn

learn(Run, RunSpec, *schemas.EVERY)

Json = Any  # None, bool, int, float, str, and lists and dicts (with str keys) of these
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versioned:
    """A value of the dictionary, and the version that compare-and-set compares."""

    value: Json
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A lock entry as it was when the lock was taken: a write under it is rejected once it has changed."""

    name: str
    version: int


class KeeperClient:
    """Asks any keeper, follows to the leader, remembers it, goes on with the others when one dies.

    Every call is bounded by `timeout_s` and raises, beside what is said there: NoLeader without a majority,
    ApiRefused for the token, OutcomeUnknown if a change may have happened, ApiError if no keeper answers.
    Writes of the dictionary carry an id: sent again after an unknown outcome, they happen once.
    """

    def __init__(
        self, apis: Apis, *, token: str | None = None, ca_file: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        """Args:
        apis: base URL of one keeper's API, of several, or a function that says where they are now.
        token: the operator's, or a reader's; sent to keepers of this cluster only.
        ca_file: PEM of the CA to trust, where the system's do not know it.
        timeout_s: one call, with all its attempts (seconds).

        Raises ConfigError for addresses that a token must not be sent to.
        """
        self._caller = Caller(apis, token=token, ca_file=ca_file, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"KeeperClient({', '.join(self._caller.known())})"

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections; calls and streams of other threads end with an error, within seconds."""
        self._caller.close()

    # --- the dictionary --------------------------------------------------------------------------

    def get(self, name: str, *, stale: bool = False) -> Json:
        """The value. Linearizable, or with `stale` what some keeper has applied. Raises NotThere."""
        return self.read(name, stale=stale).value

    def read(self, name: str, *, stale: bool = False) -> Versioned:
        """As `get`, with the version."""
        plain = self._ask("GET", _kv(name), query={"consistency": "stale"} if stale else None)
        return Versioned(value=plain["value"], version=plain["version"])

    def set(self, name: str, value: Json, *, expected: int | None = None, fence: Fence | None = None) -> int:
        """Set it; the version it has then.

        With `expected`, only if the entry has that version (0: if it is not there); with `fence`, only if
        the lock is held: Rejected otherwise. TypeError or ValueError for what is no JSON.
        """
        body = {"value": value, "request": uuid.uuid4().hex}
        if expected is not None:
            body["expected"] = expected
        if fence is not None:
            body |= {"fence": fence.name, "fence_version": fence.version}
        return int(self._ask("PUT", _kv(name), body=body)["version"])

    def append(self, name: str, value: Json) -> int:
        """As `set`: rafty's word for it."""
        return self.set(name, value)

    def compare_and_set(self, name: str, value: Json, expected: int) -> int:
        """Set it if it has this version, 0: if it is not there; the version it has then. Raises Rejected."""
        return self.set(name, value, expected=expected)

    def delete(self, name: str, *, expected: int | None = None, fence: Fence | None = None) -> None:
        """Delete it. NotThere if it is not there; Rejected as for `set`."""
        query: dict[str, str | int] = {"request": uuid.uuid4().hex}
        if expected is not None:
            query["expected"] = expected
        if fence is not None:
            query |= {"fence": fence.name, "fence_version": fence.version}
        self._ask("DELETE", _kv(name), query=query)

    def names(self, prefix: str = "", *, stale: bool = False) -> tuple[str, ...]:
        """All names that begin so, in order, of one moment."""
        return tuple(self._whole(prefix, stale=stale, values=False)["names"])

    def entries(self, prefix: str = "", *, stale: bool = False) -> dict[str, Versioned]:
        """All entries whose names begin so, in order, of one moment."""
        return {
            entry["name"]: Versioned(value=entry["value"], version=entry["version"])
            for entry in self._whole(prefix, stale=stale, values=True)["entries"]
        }

    def _whole(self, prefix: str, *, stale: bool, values: bool) -> Any:
        query: dict[str, str | int] = {"prefix": prefix, "whole": "true"}
        if values:
            query["values"] = "true"
        if stale:
            query["consistency"] = "stale"
        return self._ask("GET", "/v1/kv", query=query)

    # --- runs ------------------------------------------------------------------------------------

    def runs(self) -> tuple[schemas.RunSummary, ...]:
        """All runs in short. Linearizable."""
        plain = self._ask("GET", "/v1/runs", query={"consistency": "linearizable"})
        return _typed(plain, schemas.Runs).runs

    def run(self, run: str, *, history_from: int = 0) -> Run:
        """A run, whole; of its history the rounds from `history_from` on. Linearizable. Raises NotThere."""
        query: dict[str, str | int] = {"consistency": "linearizable", "history_from": history_from}
        return _typed(self._ask("GET", _run(run), query=query), Run)

    def whole_runs(self) -> dict[str, Run]:
        """All runs, whole, by name. Linearizable one by one; one that is forgotten meanwhile is left out."""
        found = {}
        for summary in self.runs():
            try:
                found[summary.run] = self.run(summary.run)
            except NotThere:
                continue
        return found

    def submit(
        self,
        spec: RunSpec,
        *,
        config: Mapping[str, Any] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a run; the same again is harmless.

        Raises RunChanged if one of its name is there with another digest, ConfigError for what the keepers
        cannot do, ApiError which names what is wrong with the spec.
        """
        body = {
            "spec": msgspec.to_builtins(spec),
            "config": dict(config or {}),
            "fingerprint": dict(fingerprint or {}),
        }
        return _typed(self._ask("POST", "/v1/runs", body=body), Run)

    def stop(self, run: str, reason: str = "stopped by a user") -> Run:
        """End a run before its end; one that has ended stays as it is. NotThere if there is none."""
        return _typed(self._ask("POST", f"{_run(run)}/stop", body={"reason": reason}), Run)

    def forget(self, run: str) -> None:
        """Drop an ended run, and what is stored of it. Raises Rejected if it has not ended, NotThere."""
        self._ask("DELETE", _run(run), repeatable=False)

    def events(self, run: str, *, history_from: int = 0) -> Iterator[Run]:
        """The run at once and then as it changes, until it has ended or this client is closed.

        Never an older state than before, at most about ten a second; each with the history from
        `history_from` on. Goes on at another keeper when one dies. NotThere if no keeper has the run.
        """
        closed = self._caller.closed
        return follow(self._caller, f"{_run(run)}/events", history_from=history_from, stopped=closed.is_set)

    # --- keepers ---------------------------------------------------------------------------------

    def status(self) -> schemas.Status:
        """The cluster as one keeper sees it; the leader's view if it is known and alive."""
        return _typed(self._ask("GET", "/v1/status"), schemas.Status)

    def diagnostic(self) -> schemas.Diagnostic:
        """One keeper, as rafty told of a server."""
        return _typed(self._ask("GET", "/v1/diagnostic"), schemas.Diagnostic)

    def config(self) -> dict[str, Any]:
        """One keeper's config, without secrets."""
        return dict(self._ask("GET", "/v1/config"))

    def handover(self, keeper: str | None) -> schemas.Conductor:
        """Have `keeper` conduct from now on; None: whom placement chooses. NotThere if it is not known."""
        plain = self._ask("POST", "/v1/conductor", body={"keeper": keeper}, repeatable=False)
        return _typed(plain, schemas.Conductor)

    def lead(self, to: str) -> schemas.Leader:
        """Have `to` lead. MembershipRefused if it cannot."""
        return _typed(self._ask("POST", "/v1/leader", body={"to": to}, repeatable=False), schemas.Leader)

    def add_member(self, name: str, address: str) -> schemas.Members:
        """Take a keeper in, at the host:port of its Raft port. MembershipRefused if that is not safe now."""
        body = {"name": name, "address": address}
        return _typed(self._ask("POST", "/v1/members", body=body, repeatable=False), schemas.Members)

    def remove_member(self, name: str) -> schemas.Members:
        """Let a keeper go. MembershipRefused if that is not safe now."""
        path = f"/v1/members/{quote(name, safe='')}"
        return _typed(self._ask("DELETE", path, repeatable=False), schemas.Members)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Any:
        request = Request(method=method, path=path, query=query, body=body, repeatable=repeatable)
        return self._caller.ask(request)


def _kv(name: str) -> str:
    if not name:
        raise ValueError("a name of the dictionary must not be empty")
    return f"/v1/kv/{quote(name, safe='').replace('.', '%2E')}"


def _run(run: str) -> str:
    return f"/v1/runs/{quote(run, safe='')}"


def _typed(plain: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as exc:
        raise ApiError(
            f"the keeper's answer is no {kind.__name__}: {exc}", hint="are keeper and client of one version?"
        ) from exc
