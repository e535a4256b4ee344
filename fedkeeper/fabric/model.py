"""The values that the fabric's APIs and its worker pool exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one activation may use."""

    timeout_ms: int = 60_000
    memory_mb: int = 256
    logs_mb: int = 10
    concurrency: int = 1  # calls at once on one worker
    instances: int = 100  # Cloud Functions: workers of one revision at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One version of one function: an update makes a new `id`, so that no old worker is ever reused."""

    id: str
    flavour: str  # "openwhisk": /init + /run; "google": functions framework; "openfaas": of-watchdog
    name: str  # "/ns/client_3", or "projects/p/locations/l/functions/client-3"
    folder: str  # the extracted zip (or the single file's folder); read-only for workers
    entry: str  # OpenWhisk: exec.main; Google: the function target
    limits: Limits
    environment: Mapping[str, str] = field(default_factory=dict)  # init parameters / service environment
    kind: str = ""  # OpenWhisk: what runs it, as "python:3.11" or "nodejs:20"
    ahead: bool = False  # a worker of it is to be ready before it is called, where memory is free
    share: str = ""  # revisions for which this is the same are alike in all that a worker is made from

    @property
    def key(self) -> str:
        """Which workers may serve it: those of this key."""
        return self.share or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a worker's activation went, in the platform's terms."""

    status: str  # success | application error | action developer error | whisk internal error
    result: Any  # JSON; {"error": ...} unless success
    logs: tuple[str, ...]  # "2026-11-21T21:28:00.463142Z    stdout: hi"
    start_ms: int
    end_ms: int
    wait_ms: int  # in the pool's queue
    init_ms: int | None  # None: a warm worker
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A trigger's request, as far as a function sees it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """A function's answer to a trigger."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ran: Ran


class PoolFull(Exception):
    """The queue is at its bound: answer 429."""


class Workers(Protocol):
    """The pool, as the APIs see it."""

    async def run(
        self, revision: Revision, activation_id: str, arguments: Any, context: Mapping[str, str]
    ) -> Ran:
        """Run one OpenWhisk activation to its end (bounded by its time limit). PoolFull.

        `arguments`: an object, or a list if a component of a sequence returned one.
        `context`: namespace, action_name, action_version, transaction_id, deadline, api_host (all strings).
        Cancelling the caller does not end the activation: callers shield it.
        """
        ...

    async def serve(self, revision: Revision, request: HttpRequest) -> HttpResponse:
        """Pass one HTTP request to an instance of a Cloud Function (504 at its time limit). PoolFull."""
        ...

    async def check(self, revision: Revision) -> str:
        """Start one instance of a Cloud Function: empty if it comes up, else why the build failed."""
        ...

    async def prepare(self, folder: Path) -> None:
        """Import what the function in `folder` will need, ahead of its first invocation."""
        ...

    def expect(self, revision: Revision) -> None:
        """Have a worker ready for a revision that asks for one, in the background."""
        ...

    async def retire(self, revision_id: str, *, wait: bool = False) -> None:
        """End idle workers of a revision that was updated or deleted; busy ones after their activation.

        `wait`: return when those have ended too, so that nobody uses the revision's files any more.
        """
        ...

    def stats(self) -> Mapping[str, int]:
        """workers, busy, idle, spare, queued, memory_mb, cold, warm, killed."""
        ...

    async def close(self) -> None:
        """Kill every worker and its descendants, and the zygotes."""
        ...
