"""Deployments of Cloud Functions: a source is built, an instance must come up, then the revision serves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from fedkeeper.fabric import archives
from fedkeeper.fabric import google_functions as rules
from fedkeeper.fabric.google_build import Build, BuildFailed
from fedkeeper.fabric.google_operations import FUNCTIONS, Failed, Operation, now_ms
from fedkeeper.fabric.model import PoolFull, Revision, Workers
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document, Store

log = structlog.get_logger(__name__)

LOGS_MAX: Final = 100  # build logs that are kept
_UNHEALTHY: Final = (
    "Container Healthcheck failed. The user-provided container failed to start and listen on the port defined"
    " provided by the PORT=8080 environment variable within the allocated timeout."
)


class Deployments:
    """Makes revisions of functions and takes them away."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        workers: Workers,
        shown: Callable[[Document], dict[str, Any]],
        logs: Path,
    ) -> None:
        self._store = store
        self._revisions = revisions
        self._workers = workers
        self._shown = shown
        self._logs = logs

    def named(self, document: Document) -> tuple[Document, str]:
        """The document of a function with the name of the build that it will have, and that name."""
        function = document.body["function"]
        build = f"{document.scope}/builds/{uuid.uuid4()}"
        configured = {**function["buildConfig"], "build": build}
        return replace(
            document, body={**document.body, "function": {**function, "buildConfig": configured}}
        ), build

    async def deploy(self, operation: Operation, *, document: Document, blob: str) -> Mapping[str, Any]:
        """Build a revision; it serves once an instance came up, else what served before goes on. Failed."""
        revision_id, number = uuid.uuid4().hex, document.body.get("number", 1) + 1
        try:
            await self._build(operation, document, revision_id, blob)
            await self._start(operation, document, revision_id, number)
        except Failed as exc:
            await self._revisions.retire(revision_id)
            await self._settle(document, exc.words)
            raise
        except Exception as exc:  # the function must not stay DEPLOYING for ever
            log.error("deployment failed inside the fabric", function=document.name, error=repr(exc))
            await self._revisions.retire(revision_id)
            words = "The fabric could not deploy the function."
            await self._settle(document, words)
            raise Failed("INTERNAL", words) from exc
        function = document.body["function"]
        active = {key: value for key, value in function.items() if key != "stateMessages"}
        body = {"function": {**active, "state": "ACTIVE"}, "serving": active, "number": number}
        served = replace(document, body=body, revision=revision_id, blob=blob, updated_ms=now_ms())
        await self._store.put(served)
        await self._revisions.retire(document.revision)
        return {"response": {"@type": f"{FUNCTIONS}.Function", **self._shown(served)}}

    async def destroy(self, document: Document) -> None:
        """Take the function, its policy and its revision away."""
        await self._store.remove("iam", document.scope, document.name)
        await self._store.remove("function", document.scope, document.name)
        await self._revisions.retire(document.revision)

    async def recover(self) -> None:
        """Functions that a fabric before us was deploying have failed; those it was deleting go."""
        for document in await self._store.after("function", "", name="", limit=-1):
            state = document.body["function"].get("state")
            if state == "DELETING":
                await self.destroy(document)
            elif state == "DEPLOYING":
                await self._settle(document, "The fabric was stopped during the deployment.")

    async def _build(self, operation: Operation, document: Document, revision_id: str, blob: str) -> None:
        name = document.body["function"]["buildConfig"]["build"]
        path = self._logs / f"{name.rpartition('/')[2]}.log"
        link = path.resolve().as_uri()
        where = {"resource": name, "resourceUri": link}
        await operation.stage("BUILD", "IN_PROGRESS", "Build in progress", **where)
        build, problem = Build(), ""
        try:
            archive = await self._store.blob(blob)
            await self._revisions.make(revision_id, partial(archives.extract, archive))
            await asyncio.to_thread(build.run, self._revisions.folder(revision_id))
        except archives.ArchiveRefused as exc:
            problem = str(exc)
            build.lines.append(f"ERROR: {problem}")
        except BuildFailed as exc:
            problem = str(exc)
        await asyncio.to_thread(_write_log, path, build.lines)
        if problem:
            words = (
                f"Build failed with status: FAILURE and message: {problem}."
                f" For more details see the logs at {link}"
            )
            await operation.problem("BUILD", words)
            raise Failed("INVALID_ARGUMENT", words)
        await operation.stage("BUILD", "COMPLETE", "Build finished", **where)

    async def _start(self, operation: Operation, document: Document, revision_id: str, number: int) -> None:
        function = document.body["function"]
        folder = str(self._revisions.folder(revision_id))
        revision: Revision = rules.revision(function, revision_id, number, folder)
        await operation.stage("SERVICE", "IN_PROGRESS", "Updating Cloud Run service")
        try:
            problem, code = await self._workers.check(revision), "INVALID_ARGUMENT"
        except PoolFull:
            problem, code = "no worker was free and the queue is full", "RESOURCE_EXHAUSTED"
        if problem:
            service = rules.revision_name(document.name, revision_id, number)
            words = f"Could not create or update Cloud Run service {document.name}, {_UNHEALTHY}"
            words += f" Logs of revision {service}:\n{problem}"
            await operation.problem("SERVICE", words)
            raise Failed(code, words)
        await operation.stage("SERVICE", "COMPLETE")

    async def _settle(self, document: Document, problem: str) -> None:
        """A deployment failed: the function is FAILED, or as it was if it has a revision that serves."""
        message = {"severity": "ERROR", "type": "DeploymentFailed", "message": problem}
        serving = document.body["serving"]
        function = serving or document.body["function"]
        settled = {**function, "state": "ACTIVE" if serving else "FAILED", "stateMessages": [message]}
        body = {**document.body, "function": settled}
        await self._store.put(replace(document, body=body, updated_ms=now_ms()))


def _write_log(path: Path, lines: list[str]) -> None:
    """Keep a build's log, and no more than the newest LOGS_MAX of all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    kept = sorted(path.parent.glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
    for old in kept[LOGS_MAX:]:
        old.unlink(missing_ok=True)
