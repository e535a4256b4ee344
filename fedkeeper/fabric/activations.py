"""Running activations: accepted, run to their end whoever still listens, and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from fedkeeper.fabric import payloads
from fedkeeper.fabric.model import PoolFull, Ran, Revision, Workers
from fedkeeper.fabric.records import (
    INTERNAL_ERROR,
    TRIGGER,
    Records,
    event_records,
    limits_body,
    records,
    records_of_run,
)
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Store

log = structlog.get_logger(__name__)
UNWRITTEN_S = 0.02  # what has ended before is written once, as ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One invocation of an action that a worker runs, accepted."""

    namespace: str  # whose activation it is: that of the caller
    path: str  # where the action is: "ns/name" or "ns/package/name"
    listed_as: str  # "name" or "package/name": what lists of activations are filtered by
    version: str
    kind: str
    revision: Revision
    arguments: Any  # an object; a list only if the component before it in a sequence returned one
    transaction_id: str
    api_key: str = ""  # given to the action only if it asks for it
    binding: str = ""  # "ns/package", if it was reached through one
    cause: str = ""  # activation of the sequence that it is a component of


class Activation:
    """An activation that was accepted; `ended` gives its full record and is never cancelled by waiting.

    It is written down as begun `UNWRITTEN_S` later, if it still runs then, or as soon as somebody is told its
    ID (`written`): from then on it has a record even if the fabric is killed.
    """

    def __init__(self, store: Store, told: Mapping[str, Any], listed_as: str) -> None:
        self.id = uuid.uuid4().hex
        self.told = told
        self.listed_as = listed_as
        self.ended: asyncio.Task[dict[str, Any]]
        self._store = store
        self._begun: asyncio.Future[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(UNWRITTEN_S, self._begin)

    async def written(self) -> None:
        """Return once a crash of the fabric cannot lose it."""
        if self._begun is None and self._timer.cancelled():
            await asyncio.wait({self.ended})  # it is being written as ended
        else:
            self._begin()
            assert self._begun is not None
            await asyncio.shield(self._begun)

    async def end(self, both: Records) -> dict[str, Any]:
        """Write it down as ended; its full record."""
        self._timer.cancel()
        if self._begun is not None and not self._begun.done():
            await asyncio.wait({self._begun})  # in this order
        summary, record = both
        await self._store.end(
            self.id, self.told["namespace"], self.listed_as, record["start"], summary, record
        )
        return record

    def give_up(self) -> None:
        """It ends without a record."""
        self._timer.cancel()

    def _begin(self) -> None:
        if self._begun is None:
            told = self.told
            self._begun = self._store.begin(self.id, told["namespace"], self.listed_as, told["start"], told)
            self._begun.add_done_callback(_seen)


class InFlight:
    """How many requests, of both APIs, are in workers or waiting for one. Bounded: over it is 429."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self.allowed:
            raise PoolFull(f"{self.count} requests are in flight")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class Activations:
    """Starts activations and sees to it that each leaves a record."""

    def __init__(
        self, store: Store, workers: Workers, revisions: Revisions, in_flight: InFlight, url: str
    ) -> None:
        self._store = store
        self._workers = workers
        self._revisions = revisions
        self._in_flight = in_flight
        self._url = url  # the fabric's own, for actions that call it
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._by_namespace: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._running)

    def of_namespace(self, namespace: str) -> int:
        """How many of a namespace's are in workers or waiting for one."""
        return self._by_namespace[namespace]

    def start(self, call: Call) -> Activation:
        """Accept `call`. Raises PoolFull, with nothing begun.

        A sequence has its place among what is in flight, so its components need none of their own.
        """
        told = _told(call, now_ms())

        async def work(activation_id: str) -> Records:
            return records_of_run(activation_id, told, await self._run(activation_id, call, told["start"]))

        with contextlib.ExitStack() as holds:  # taken here, not in the task: nothing may come in between
            if not call.cause:
                holds.enter_context(self._in_flight)
            holds.enter_context(self._revisions.use(call.revision.id))
            self._by_namespace[call.namespace] += 1
            holds.callback(self._leave, call.namespace)
            return self._accept(told, call.listed_as, work, holds.pop_all())

    def start_here(
        self, told: Mapping[str, Any], listed_as: str, work: Callable[[str], Awaitable[Records]]
    ) -> Activation:
        """Accept an activation that the platform carries out by itself: `work`, given its ID. PoolFull."""
        with contextlib.ExitStack() as holds:
            if not told.get("cause"):
                holds.enter_context(self._in_flight)
            return self._accept(told, listed_as, work, holds.pop_all())

    def start_event(self, told: Mapping[str, Any], work: Callable[[str], Awaitable[list[str]]]) -> Activation:
        """Accept a trigger's activation: `work` fires its rules and returns the lines that tell of them."""

        async def record(activation_id: str) -> Records:
            return event_records(activation_id, told, await work(activation_id))

        return self._accept(told, told["name"], record, contextlib.ExitStack())

    async def recover(self) -> None:
        """Give a record to the activations that were running when a fabric before us died."""
        now = now_ms()
        for activation_id, listed_as, told in await self._store.interrupted():
            if told.get("kind") == TRIGGER:
                both = event_records(activation_id, told, [])
            else:
                reason = "The fabric was stopped while the action was running."
                both = records(activation_id, told, internal_error(reason, told["start"], now))
            await self._store.end(activation_id, told["namespace"], listed_as, told["start"], *both)

    async def close(self) -> None:
        """Give up what still runs: each is recorded as an internal error."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _accept(
        self,
        told: Mapping[str, Any],
        listed_as: str,
        work: Callable[[str], Awaitable[Records]],
        holds: contextlib.ExitStack,
    ) -> Activation:
        """Have `work` go on by itself, and be written down; `holds` is let go at its end."""
        holds.enter_context(payloads.held())
        activation = Activation(self._store, told, listed_as)
        task = activation.ended = asyncio.create_task(_perform(activation, work), name=activation.id)
        self._running.add(task)
        holds.callback(self._running.discard, task)
        holds.callback(_report, task)
        task.add_done_callback(lambda _: holds.close())
        return activation

    async def _run(self, activation_id: str, call: Call, accepted_ms: int) -> Ran:
        context = {
            "namespace": call.namespace,
            "action_name": call.revision.name,
            "action_version": call.version,
            "transaction_id": call.transaction_id,
            "deadline": str(accepted_ms + call.revision.limits.timeout_ms),
            "api_host": self._url,
        }
        if call.api_key:
            context["api_key"] = call.api_key
        try:
            return await self._workers.run(call.revision, activation_id, call.arguments, context)
        except asyncio.CancelledError:
            reason = "The fabric was stopped while the action was running."
        except PoolFull:
            reason = "No worker was free and the queue is full."
        except Exception as exc:  # noqa: BLE001 - a fault of the pool must end as a record, not as a lost id
            log.error("activation failed inside the fabric", activation=activation_id, error=repr(exc))
            reason = "The fabric could not run the action."
        return internal_error(reason, accepted_ms, now_ms())

    def _leave(self, namespace: str) -> None:
        self._by_namespace[namespace] -= 1
        if not self._by_namespace[namespace]:
            del self._by_namespace[namespace]


def internal_error(reason: str, start_ms: int, end_ms: int) -> Ran:
    """How an activation went that the platform itself let down."""
    return Ran(
        status=INTERNAL_ERROR, result={"error": reason}, logs=(), start_ms=start_ms,
        end_ms=max(start_ms, end_ms), wait_ms=0, init_ms=None,
    )  # fmt: skip


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


async def _perform(activation: Activation, work: Callable[[str], Awaitable[Records]]) -> dict[str, Any]:
    try:
        both = await work(activation.id)
    except BaseException:
        activation.give_up()
        raise
    return await activation.end(both)


def _seen(begun: asyncio.Future[None]) -> None:
    """Whoever waits for it is told; so is whoever waits for its end, which is written in any case."""
    if not begun.cancelled():
        begun.exception()


def _report(task: asyncio.Task[dict[str, Any]]) -> None:
    """An activation that could not be written (a full disk) may have nobody else to hear of it."""
    if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), PoolFull):
        log.error("activation not recorded", activation=task.get_name(), error=repr(task.exception()))


def _told(call: Call, start_ms: int) -> dict[str, Any]:
    return {
        "namespace": call.namespace,
        "name": call.path.rpartition("/")[2],
        "path": call.path,
        "version": call.version,
        "kind": call.kind,
        "start": start_ms,
        "limits": limits_body(call.revision.limits),
        "binding": call.binding,
        "cause": call.cause,
    }
