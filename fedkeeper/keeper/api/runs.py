"""Routes of the runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import ClientPlace, ForgetRun, Run, RunSpec, State, StopRun, SubmitRun
from fedkeeper.core.stopping import faults
from fedkeeper.errors import ApiError, NotThere, Rejected, RunChanged
from fedkeeper.keeper.api.answers import encode, encode_any, reply
from fedkeeper.keeper.api.call import Call, choice, fields_of, number
from fedkeeper.keeper.api.cluster import Cluster
from fedkeeper.keeper.api.control import Control
from fedkeeper.keeper.api.schemas import Deleted, Runs, RunSummary, Stop, Submission


class RunRoutes:
    """Handlers."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self._cluster = cluster
        self._control = control

    async def list(self, call: Call) -> web.Response:
        """All runs in short."""
        state = await self._state(call, call.query("consistency"))
        answer = Runs(runs=summaries(state), applied_index=self._cluster.log.status.applied_index)
        return reply(encode_any(answer))

    async def get(self, call: Call) -> web.Response:
        """A run, whole; of its history the rounds from `history_from` on."""
        fields = call.query("consistency", "history_from")
        history_from = number(fields, "history_from", default=0)
        state = await self._state(call, fields)
        return reply(encode_run(find(state, call.name), history_from))

    async def submit(self, call: Call) -> web.Response:
        """Start a run: 201. The same again, with the same digest, is harmless: 200."""
        await self._cluster.lead(call)
        body = await call.body(Submission)
        spec = read_spec(body.spec)
        known = (await self._cluster.read(call)).runs.get(spec.run)
        if known is None:
            await self._control.submit(spec, body.config, body.fingerprint)
            applied = await self._cluster.propose(
                SubmitRun(spec=spec, at_ms=self._cluster.clock.now_ms()), call
            )
            self._cluster.writes.add()
            known = applied.state.runs.get(spec.run)
            if not applied.rejected and known is not None:
                return reply(encode_run(known, 0), status=201)
            if known is None:
                raise Rejected(applied.rejected, status=409)
        if known.spec.digest != spec.digest:
            raise RunChanged(
                f"run {spec.run!r} is there already, with another config",
                hint="submit it under another name, or stop and delete that run first",
            )
        return reply(encode_run(known, 0))

    async def stop(self, call: Call) -> web.Response:
        """End a run before its end."""
        await self._cluster.lead(call)
        body = await call.body(Stop)
        find(self._cluster.log.state, call.name)
        command = StopRun(run=call.name, reason=body.reason, at_ms=self._cluster.clock.now_ms())
        applied = await self._cluster.propose(command, call)
        self._cluster.writes.add()
        run = find(applied.state, call.name)
        if applied.rejected and run.phase not in ENDED:
            raise Rejected(applied.rejected, status=409)
        return reply(encode_run(run, 0))

    async def delete(self, call: Call) -> web.Response:
        """Drop an ended run, and what is stored of it."""
        await self._cluster.lead(call)
        run = find((await self._cluster.read(call)), call.name)
        if run.phase not in ENDED:
            raise Rejected(f"run {call.name!r} has not ended", status=409, hint="stop it first")
        await self._control.forget(call.name)
        command = ForgetRun(run=call.name, at_ms=self._cluster.clock.now_ms())
        applied = await self._cluster.propose(command, call)
        self._cluster.writes.add()
        if applied.rejected and call.name in applied.state.runs:
            raise Rejected(applied.rejected, status=409)
        return reply(encode(Deleted(deleted=call.name)))

    async def _state(self, call: Call, fields: dict[str, str]) -> State:
        if choice(fields, "consistency", "stale", "linearizable") == "stale":
            return self._cluster.log.state
        return await self._cluster.read(call)


def find(state: State, name: str) -> Run:
    """The run. Raises NotThere."""
    run = state.runs.get(name)
    if run is None:
        known = ", ".join(sorted(state.runs)[:10])
        raise NotThere(f"no run {name!r}", status=404, hint=f"known: {known or 'none'}")
    return run


def read_spec(plain: dict[str, Any]) -> RunSpec:
    """A spec from JSON. Raises ApiError, which names the field and what is wrong with it."""
    places = plain.get("clients")
    inside = [place for place in places if isinstance(place, dict)] if isinstance(places, list) else []
    unknown = (set(plain) - fields_of(RunSpec)) or {
        f"clients[].{key}" for place in inside for key in set(place) - fields_of(ClientPlace)
    }
    if unknown:
        raise ApiError(
            f"spec.{min(unknown)} is not known",
            status=400,
            hint="was the spec made by a newer FedKeeper than this keeper?",
        )
    try:
        spec = msgspec.convert(plain, RunSpec)
    except msgspec.ValidationError as exc:
        raise ApiError(f"spec: {exc}", status=400) from exc
    if problem := faults(spec):
        raise ApiError(f"spec: {problem}", status=400)
    return spec


def encode_run(run: Run, history_from: int) -> bytes:
    """JSON that decodes into `core.model.Run`; its history from that round on."""
    if history_from > 0 and run.history:
        run = replace(run, history=tuple(past for past in run.history if past.round >= history_from))
    return encode_any(run)


def summaries(state: State) -> tuple[RunSummary, ...]:
    """All runs in short, in the order of their submission."""
    return tuple(_summary(run) for run in sorted(state.runs.values(), key=lambda run: run.submitted_ms))


def _summary(run: Run) -> RunSummary:
    last = run.history[-1] if run.history else None
    return RunSummary(
        run=run.spec.run,
        phase=run.phase,
        round=run.round,
        rounds_max=run.spec.rounds_max,
        clients=len(run.spec.clients),
        outstanding=len(run.outbox),
        updates=len(run.updates),
        accuracy=last.accuracy if last else None,
        loss=last.loss if last else None,
        submitted_ms=run.submitted_ms,
        ended_ms=run.ended_ms,
        reason=run.reason,
        digest=run.spec.digest,
    )
