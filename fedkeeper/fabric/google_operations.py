"""Long-running operations of the Cloud Functions API: they begin, tell their stages, and end.

Source: google.longrunning.Operation, google.cloud.functions_v2.OperationMetadata.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from fedkeeper.fabric.google_functions import rfc3339
from fedkeeper.fabric.google_rpc import CODES, Refused
from fedkeeper.fabric.store import Document, Store

log = structlog.get_logger(__name__)

TYPES: Final = "type.googleapis.com"
FUNCTIONS: Final = f"{TYPES}/google.cloud.functions.v2"
STAGES: Final = {"create": ("BUILD", "SERVICE"), "update": ("BUILD", "SERVICE"), "delete": ("SERVICE",)}


class Failed(Exception):
    """The operation failed, and the function is as it should be: `name` of the code, and why."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(words)
        self.name = name
        self.words = words


@dataclass(slots=True)
class Operation:
    """One that runs. Its stages are told in its metadata, as clients show them."""

    document: Document
    store: Store

    async def stage(self, name: str, state: str, message: str = "", **more: str) -> None:
        """Tell that stage `name` is IN_PROGRESS or COMPLETE; `more`: resource, resourceUri."""
        metadata = self.document.body["metadata"]
        stages = [
            {**one, "state": state, **({"message": message} if message else {}), **more}
            if one["name"] == name
            else one
            for one in metadata["stages"]
        ]
        await self._write({**self.document.body, "metadata": {**metadata, "stages": stages}})

    async def problem(self, name: str, message: str) -> None:
        """Tell that stage `name` has failed."""
        metadata = self.document.body["metadata"]
        state = {"severity": "ERROR", "type": f"{name.title()}Failed", "message": message}
        stages = [
            {**one, "state": "COMPLETE", "stateMessages": [state]} if one["name"] == name else one
            for one in metadata["stages"]
        ]
        await self._write({**self.document.body, "metadata": {**metadata, "stages": stages}})

    async def end(self, outcome: Mapping[str, Any]) -> None:
        """Write how it ended: {"response": …} or {"error": …}."""
        metadata = {**self.document.body["metadata"], "endTime": rfc3339(now_ms())}
        await self._write({**self.document.body, "metadata": metadata, "done": True, **outcome})

    async def _write(self, body: Mapping[str, Any]) -> None:
        self.document = replace(self.document, body=body, updated_ms=now_ms())
        await self.store.put(self.document)


Work = Callable[[Operation], Awaitable[Mapping[str, Any]]]


class Operations:
    """All of them; at most one at a time works on a function."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._tasks)

    async def recover(self) -> None:
        """End those that a fabric before us left half done."""
        for document in await self._store.after("operation", "", name="", limit=-1):
            if not document.body["done"]:
                error = error_of("ABORTED", "The fabric was stopped during the operation.")
                await Operation(document, self._store).end(error)

    async def close(self) -> None:
        """Stop those that run; `recover` ends them at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def claim(self, name: str) -> None:
        """Work on function `name`: until `begin`'s work has ended, or `give_up`. Refused ABORTED."""
        if name in self._busy:
            raise Refused(
                "ABORTED", f"unable to queue the operation: an operation on {name} is already in progress"
            )
        self._busy.add(name)

    def give_up(self, name: str) -> None:
        """Nothing was begun after all."""
        self._busy.discard(name)

    async def begin(
        self, verb: str, function: Mapping[str, Any], work: Work, *, build: str = ""
    ) -> Mapping[str, Any]:
        """Start `work` on the claimed function; the operation as the API answers it, with done: false."""
        name, now = function["name"], now_ms()
        scope, operation_id = name.partition("/functions/")[0], f"operation-{uuid.uuid4()}"
        metadata: dict[str, Any] = {
            "@type": f"{FUNCTIONS}.OperationMetadata",
            "createTime": rfc3339(now),
            "target": name,
            "verb": verb,
            "cancelRequested": False,
            "apiVersion": "v2",
            "stages": [{"name": stage, "state": "NOT_STARTED"} for stage in STAGES[verb]],
            "operationType": f"{verb.upper()}_FUNCTION",
        }
        if build:
            metadata |= {
                "requestResource": {"@type": f"{FUNCTIONS}.Function", **function},
                "buildName": build,
            }
        body = {"name": f"{scope}/operations/{operation_id}", "metadata": metadata, "done": False}
        document = Document(kind="operation", scope=scope, name=operation_id, updated_ms=now, body=body)
        await self._store.put(document)
        task = asyncio.create_task(self._run(Operation(document, self._store), name, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return body

    async def _run(self, operation: Operation, name: str, work: Work) -> None:
        try:
            outcome = await work(operation)
        except Failed as exc:
            outcome = error_of(exc.name, exc.words)
        except Exception as exc:  # noqa: BLE001 - an operation must end, whatever went wrong inside the fabric
            log.error("operation failed inside the fabric", function=name, error=repr(exc))
            outcome = error_of("INTERNAL", "The fabric could not finish the operation.")
        finally:
            self._busy.discard(name)
        await operation.end(outcome)


def error_of(name: str, words: str) -> dict[str, Any]:
    """The outcome of an operation that failed."""
    return {"error": {"code": CODES[name][0], "message": words}}


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
