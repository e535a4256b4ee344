"""Routes of the keepers themselves: how they are, who conducts, who leads, who belongs to them."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from fedkeeper.core.conducting import rest_ms
from fedkeeper.core.model import KeeperInfo, State
from fedkeeper.errors import ApiError, MembershipRefused
from fedkeeper.keeper.api.answers import encode, encode_any, reply
from fedkeeper.keeper.api.call import Call
from fedkeeper.keeper.api.cluster import WINDOW_S, Cluster
from fedkeeper.keeper.api.control import Control
from fedkeeper.keeper.api.runs import summaries
from fedkeeper.keeper.api.schemas import (
    Conduct,
    Conductor,
    Diagnostic,
    Health,
    KeeperStatus,
    Lead,
    Leader,
    Members,
    MemberStatus,
    NewMember,
    Status,
)
from fedkeeper.replication.base import LogStatus, Member

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # as in the config
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


class KeeperRoutes:
    """Handlers."""

    def __init__(self, cluster: Cluster, control: Control) -> None:
        self._cluster = cluster
        self._control = control

    async def health(self, call: Call) -> web.Response:
        """Whether this keeper works; needs no token, and tells no more than that."""
        del call
        status = self._cluster.log.status
        up = Health(
            name=status.name, up=True, ready=status.ready, problem="" if status.leader else "no leader"
        )
        return reply(encode(up), status=200 if status.ready else 503)

    async def status(self, call: Call) -> web.Response:
        """The cluster, as this keeper sees it."""
        del call
        return reply(encode_any(_status(self._cluster.log.status, self._cluster.log.state)))

    async def diagnostic(self, call: Call) -> web.Response:
        """As the ancestor rafty told it."""
        del call
        status = self._cluster.log.status
        answer = Diagnostic(
            status=status.role,
            term=status.term,
            vote=status.voted_for,
            leader=status.leader,
            cluster=tuple(member.name for member in status.members),
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            reads=self._cluster.reads.total(),
            writes=self._cluster.writes.total(),
            appends=self._cluster.appends.total(),
            window_s=WINDOW_S,
        )
        return reply(encode(answer))

    async def config(self, call: Call) -> web.Response:
        """This keeper's config without secrets."""
        del call
        return reply(encode_any(await self._control.config()))

    async def conduct(self, call: Call) -> web.Response:
        """Have a keeper conduct, or whom placement chooses."""
        await self._cluster.lead(call)
        body = await call.body(Conduct)
        await self._control.conduct(body.keeper)
        self._cluster.writes.add()
        state = self._cluster.log.state
        answer = Conductor(
            conductor=state.conductor, epoch=state.epoch, why=state.conductor_why, pinned=state.pinned
        )
        return reply(encode_any(answer))

    async def lead(self, call: Call) -> web.Response:
        """Have a keeper lead."""
        await self._cluster.lead(call)
        body = await call.body(Lead)
        await self._control.transfer(body.to)
        status = self._cluster.log.status
        return reply(encode(Leader(leader=status.leader, term=status.term)))

    async def add(self, call: Call) -> web.Response:
        """Take a keeper in."""
        await self._cluster.read(call)  # a leader that was just elected changes no members yet
        body = await call.body(NewMember)
        if not _NAME.fullmatch(body.name):
            raise ApiError(f"name is {body.name[:100]!r}, use letters, digits, '_', '-' and '.'", status=400)
        if not _ADDRESS.fullmatch(body.address) or int(body.address.rpartition(":")[2]) > 65535:
            raise ApiError(f"address is {body.address[:300]!r}, must be host:port", status=400)
        await self._control.add_member(body.name, body.address)
        self._cluster.writes.add()
        return reply(encode(self._members()), status=201)

    async def remove(self, call: Call) -> web.Response:
        """Let a keeper go. The leader has another one lead first, which then answers."""
        await self._cluster.read(call)  # as above
        status = self._cluster.log.status
        if call.name == status.name:
            await self._control.transfer(_successor(status, self._cluster.log.state))
            await self._cluster.lead(call)  # somebody else does now
        await self._control.remove_member(call.name)
        self._cluster.writes.add()
        return reply(encode(self._members()))

    def _members(self) -> Members:
        members = self._cluster.log.status.members
        return Members(
            members=tuple(
                MemberStatus(name=member.name, address=member.address, connected=member.connected)
                for member in members
            )
        )


def _successor(status: LogStatus, state: State) -> str:
    """Who is to lead instead: one that has said where its API is and is alive, and has most of the log."""
    others = [member for member in status.members if member.name != status.name and member.connected]
    if not others:
        raise MembershipRefused(f"{status.name} leads, and no other keeper is connected that could")

    def fitness(member: Member) -> tuple[bool, int, str]:
        known = state.keepers.get(member.name)
        return known is not None and known.alive, member.match_index or 0, member.name

    return max(others, key=fitness).name


def _status(status: LogStatus, state: State) -> Status:
    members = {member.name: member for member in status.members}
    return Status(
        name=status.name,
        role=status.role,
        leader=status.leader,
        conductor=state.conductor,
        conductor_why=state.conductor_why,
        conductor_since_ms=state.conductor_since_ms,
        pinned=state.pinned,
        epoch=state.epoch,
        term=status.term,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        last_index=status.last_index,
        ready=status.ready,
        problem=status.problem,
        members=tuple(members),
        keepers=tuple(
            _keeper(name, state.keepers.get(name), members.get(name), status, state)
            for name in sorted({*members, *state.keepers})
        ),
        runs=summaries(state),
        entries=len(state.kv),
        now_ms=state.now_ms,
    )


def _keeper(
    name: str, known: KeeperInfo | None, member: Member | None, status: LogStatus, state: State
) -> KeeperStatus:
    known = known or KeeperInfo(name=name, api="", version=0, alive=False)
    lag: int | None = None
    if name == status.name:
        lag = max(0, status.commit_index - status.applied_index)
    elif member is not None and member.match_index is not None:
        lag = max(0, status.last_index - member.match_index)
    return KeeperStatus(
        name=name,
        api=known.api,
        address=member.address if member else "",
        member=member is not None,
        alive=known.alive,
        connected=member.connected if member else None,
        leads=name == status.leader,
        conducts=name == state.conductor,
        lag=lag,
        version=known.version,
        started_ms=known.started_ms,
        seen_ms=known.seen_ms,
        reason=known.reason or _unfit(known, state),
        latencies=known.latencies,
    )


def _unfit(known: KeeperInfo, state: State) -> str:
    """Why it does not conduct for now."""
    rest_s = rest_ms(state, known.name, state.now_ms) / 1000
    return f"cannot conduct: {known.unfit}; others shall for {rest_s:.0f} s" if rest_s else ""
