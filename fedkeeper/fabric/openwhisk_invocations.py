"""Invoking an OpenWhisk action: what a worker runs, an image that nobody can run, or a sequence.

Source: apache/openwhisk, core/controller/.../Actions.scala (activate, doInvoke) and
actions/{PrimitiveActions,SequenceActions}.scala.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedkeeper.fabric.activations import Activation, Activations, Call, now_ms
from fedkeeper.fabric.bodies import dump_json
from fedkeeper.fabric.model import PoolFull, Ran, Revision
from fedkeeper.fabric.openwhisk_entities import FullName, Refused, parse_full_name, truthy
from fedkeeper.fabric.openwhisk_exec import BLACKBOX, SEQUENCE, runtime_of
from fedkeeper.fabric.openwhisk_parameters import arguments
from fedkeeper.fabric.openwhisk_platform import TRANSACTION, Caller, Platform, Resolved
from fedkeeper.fabric.openwhisk_puts import limits_of
from fedkeeper.fabric.openwhisk_throttles import Throttles, too_many_in_flight
from fedkeeper.fabric.records import (
    APPLICATION_ERROR,
    DEVELOPER_ERROR,
    INTERNAL_ERROR,
    SUCCESS,
    Records,
    records,
)
from fedkeeper.fabric.revisions import Revisions

NO_COMPONENT = "Sequence component does not exist."
TOO_LONG = "Too many actions in the sequence."
AHEAD = "fedkeeper-ahead"  # annotation, our own: have a worker ready before the action is called
_PLAIN_MAX = 4096  # revisions kept in memory


@dataclass
class _Step:
    """Where a sequence is, or was left."""

    status: str
    result: Any
    ids: tuple[str, ...] = ()  # of its components' activations
    duration_ms: int = 0  # the sum of theirs
    memory_mb: int | None = None  # the largest of theirs


class Invocations:
    """Starts activations on behalf of callers, whose rights and throttles others have looked at."""

    def __init__(
        self,
        platform: Platform,
        activations: Activations,
        revisions: Revisions,
        throttles: Throttles,
        images: Mapping[str, str],
        in_flight: int,
        *,
        share_workers: bool,
    ) -> None:
        self.platform = platform
        self.throttles = throttles
        self._activations = activations
        self._revisions = revisions
        self._images = images
        self._in_flight = in_flight
        self._share_workers = share_workers
        self._plain: dict[tuple[str, str], Revision] = {}  # by revision and caller: those without environment

    async def resolve(self, caller: Caller, name: FullName) -> Resolved:
        """The action, if the caller may invoke it and its components. Refused 403, 404, 409."""
        await self.platform.check_action_readable(caller, name)
        resolved = await self.platform.resolve(name)
        execution = resolved.document.body["exec"]
        if execution["kind"] == SEQUENCE:
            components: list[str] = execution["components"]
            for component in components:
                await self.platform.check_action_readable(
                    caller, parse_full_name(component, caller.namespace)
                )
        return resolved

    def kind_of(self, execution: Mapping[str, Any]) -> str:
        """What runs it; "" for an image that no kind stands in for."""
        return runtime_of(execution, self._images)

    def begin(self, resolved: Resolved, payload: Any, caller: Caller) -> Activation:
        """Start an activation of the action in the caller's namespace. Refused 429.

        Call it as soon as the action is resolved: an update in between would take its files away.
        """
        try:
            if resolved.document.body["exec"]["kind"] == SEQUENCE:
                return self._begin_sequence(resolved, payload, caller, "", [0])
            return self._begin_action(resolved, payload, caller, "")
        except PoolFull as exc:
            raise too_many_in_flight(self._in_flight, self._in_flight) from exc

    def _begin_action(self, resolved: Resolved, payload: Any, caller: Caller, cause: str) -> Activation:
        entity = resolved.entity
        kind = self.kind_of(entity["exec"]) if resolved.document.revision else ""
        if not kind:
            return self._begin_unknown_image(resolved, caller, cause)
        own, environment = arguments(entity, payload)
        # Nothing is awaited between resolving the action and the activation's own hold on its revision.
        call = Call(
            namespace=caller.namespace,
            path=str(resolved.name),
            listed_as=_listed_as(resolved),
            version=entity["version"],
            kind=entity["exec"]["kind"],
            revision=self._revision(resolved, kind, environment, caller.namespace),
            arguments=own,
            transaction_id=TRANSACTION.get(),
            api_key=caller.auth if truthy(entity, "provide-api-key", default=True) else "",
            binding=resolved.binding,
            cause=cause,
        )
        return self._activations.start(call)

    def _revision(
        self, resolved: Resolved, kind: str, environment: Mapping[str, str], namespace: str
    ) -> Revision:
        """The action's revision as workers know it; for others, or with another environment, a variant."""
        if environment:
            return self._make_revision(resolved, kind, environment, namespace)
        key = resolved.document.revision, namespace
        known = self._plain.get(key)
        if known is None:
            if len(self._plain) >= _PLAIN_MAX:
                del self._plain[next(iter(self._plain))]
            known = self._plain[key] = self._make_revision(resolved, kind, environment, namespace)
        return known

    async def expected(self, name: FullName, entity: Mapping[str, Any]) -> Revision | None:
        """The revision of an action that asks for a worker before it is called; None if it does not."""
        kind = self.kind_of(entity["exec"]) if "code" in entity["exec"] else ""
        if not kind or not truthy(entity, AHEAD):
            return None
        resolved = await self.platform.resolve(name)
        _, environment = arguments(resolved.entity, {})
        return self._revision(resolved, kind, environment, name.namespace)

    def _make_revision(
        self, resolved: Resolved, kind: str, environment: Mapping[str, str], namespace: str
    ) -> Revision:
        entity: Mapping[str, Any] = resolved.document.body
        revision_id = resolved.document.revision
        initial = sorted(
            (item for item in resolved.parameters if item.get("init")), key=lambda item: str(item["key"])
        )
        variant = ""
        if namespace != resolved.name.namespace or (initial and resolved.name.package):
            variant = "-" + hashlib.sha256(dump_json([namespace, initial])).hexdigest()[:16]
        return Revision(
            id=revision_id + variant,
            flavour="openwhisk",
            kind=kind,
            name=f"/{resolved.name}",
            folder=str(self._revisions.folder(revision_id)),
            entry=entity["exec"].get("main", "main"),
            limits=limits_of(entity),
            environment=environment,
            ahead=truthy(entity, AHEAD),
            share=self._shared_by(resolved, kind, environment, namespace),
        )

    def _shared_by(
        self, resolved: Resolved, kind: str, environment: Mapping[str, str], namespace: str
    ) -> str:
        """The same for actions of one package, deployed under many names: their workers serve all of them.

        An update changes the version, and so leaves the old workers behind.
        """
        if not self._share_workers:
            return ""
        entity = resolved.document.body
        parts = (
            namespace,
            kind,
            resolved.document.blob,
            entity["exec"].get("main", "main"),
            sorted(environment.items()),
            sorted(entity["limits"].items()),
            entity["version"],
            truthy(entity, "provide-api-key", default=True),  # one that gets none must not find another's
        )
        return f"shared-{hashlib.sha256(dump_json(parts)).hexdigest()}"

    def _begin_unknown_image(self, resolved: Resolved, caller: Caller, cause: str) -> Activation:
        """As on a platform that cannot pull the image: accepted, and ended by that.

        So are actions that are nothing but an image: no kind can stand in for the code that is in there.
        """
        image = resolved.document.body["exec"]["image"]
        told = _told(resolved, caller, BLACKBOX, cause)

        async def work(activation_id: str) -> Records:
            error = {"error": f"Failed to pull container image '{image}'."}
            return records(activation_id, told, _ran(DEVELOPER_ERROR, error, (), told["start"]))

        return self._activations.start_here(told, _listed_as(resolved), work)

    def _begin_sequence(
        self, resolved: Resolved, payload: Any, caller: Caller, cause: str, count: list[int]
    ) -> Activation:
        """`count` (one number): how many atomic actions the outermost sequence has begun so far."""
        told = _told(resolved, caller, SEQUENCE, cause)

        async def work(activation_id: str) -> Records:
            step = _Step(SUCCESS, payload)
            try:
                for component in resolved.document.body["exec"]["components"]:
                    step = await self._next(component, step, caller, activation_id, count)
                    if step.status != SUCCESS:
                        break
            except asyncio.CancelledError:
                words = "The fabric was stopped while the action was running."
                step = replace(step, status=INTERNAL_ERROR, result={"error": words})
            limits = dict(told["limits"])
            if step.memory_mb is not None:
                limits["memory"] = step.memory_mb
            about = {**told, "limits": None if step.memory_mb is None else limits}
            ran = _ran(step.status, step.result, step.ids, told["start"])
            return records(activation_id, about, ran, duration_ms=step.duration_ms)

        return self._activations.start_here(told, _listed_as(resolved), work)

    async def _next(
        self, component: str, before: _Step, caller: Caller, sequence_id: str, count: list[int]
    ) -> _Step:
        """Run one component with what the one before it returned."""

        def failed(status: str, words: str) -> _Step:
            return replace(before, status=status, result={"error": words})

        if count[0] >= self.platform.bounds.sequence_length:
            return failed(APPLICATION_ERROR, TOO_LONG)
        try:
            resolved = await self.platform.resolve(parse_full_name(component, caller.namespace))
            if resolved.document.body["exec"]["kind"] == SEQUENCE:
                inner = self._begin_sequence(resolved, before.result, caller, sequence_id, count)
            else:
                inner = self._begin_action(resolved, before.result, caller, sequence_id)
                count[0] += 1
        except Refused as exc:
            if exc.status == 404:
                return failed(APPLICATION_ERROR, NO_COMPONENT)
            return failed(INTERNAL_ERROR, "Sequence failed.")
        record = await asyncio.shield(inner.ended)
        response = record["response"]
        limits = next((item["value"] for item in record["annotations"] if item["key"] == "limits"), None)
        return _Step(
            status=response["status"],
            result=response["result"],
            ids=(*before.ids, record["activationId"]),
            duration_ms=before.duration_ms + record["duration"],
            memory_mb=max(
                filter(None, (before.memory_mb, None if limits is None else limits["memory"])), default=None
            ),
        )


async def wait(activation: Activation, wait_ms: int) -> dict[str, Any] | None:
    """The record if the activation ends in time; None otherwise: it is written down, and runs on."""
    done, _ = await asyncio.wait({activation.ended}, timeout=wait_ms / 1000)
    if not done:
        await activation.written()
    return activation.ended.result() if done else None


def http_status(record: Mapping[str, Any]) -> int:
    """The HTTP status that goes with an ended activation."""
    return {SUCCESS: 200, APPLICATION_ERROR: 502, DEVELOPER_ERROR: 502}.get(record["response"]["status"], 500)


def _listed_as(resolved: Resolved) -> str:
    name = resolved.name
    return f"{resolved.binding.partition('/')[2]}/{name.name}" if resolved.binding else name.local


def _told(resolved: Resolved, caller: Caller, kind: str, cause: str) -> dict[str, Any]:
    entity = resolved.document.body
    return {
        "namespace": caller.namespace,
        "name": resolved.name.name,
        "path": str(resolved.name),
        "version": entity["version"],
        "kind": kind,
        "start": now_ms(),
        "limits": {key: value for key, value in entity["limits"].items() if key != "instances"},
        "binding": resolved.binding,
        "cause": cause,
    }


def _ran(status: str, result: Any, logs: tuple[str, ...], start_ms: int) -> Ran:
    return Ran(
        status=status, result=result, logs=logs, start_ms=start_ms, end_ms=max(start_ms, now_ms()),
        wait_ms=0, init_ms=None,
    )  # fmt: skip
