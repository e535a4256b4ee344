"""Logs without disk and network: for tests, and for trying things out. Nothing survives them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from fedkeeper.core.machine import apply as core_apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import FedKeeperError, JournalError, MembershipRefused, NoLeader
from fedkeeper.replication import codec
from fedkeeper.replication.base import Apply, Listener, LogStatus, Member, Role
from fedkeeper.replication.listeners import Listeners

Watcher = Callable[[LogStatus], None]


class MemoryGroup:
    """What the logs of one cluster share: the commands in their order, and who leads."""

    def __init__(
        self, names: Iterable[str] = ("k1",), state: State | None = None, *, apply: Apply = core_apply
    ) -> None:
        self.state = State() if state is None else state
        self.index = 0
        self.term = 1
        self.members = dict.fromkeys(names, "")  # addresses
        self.leader = next(iter(self.members))
        self._apply = apply
        self.logs: dict[str, MemoryLog] = {}  # they enter themselves

    def lead(self, name: str) -> None:
        """Have `name` lead from now on; empty: nobody does."""
        self.leader = name
        self.term += 1
        self.changed()

    def changed(self) -> None:
        """Tell all who watch."""
        for log in self.logs.values():
            log.tell_watchers()

    def append(self, command: Command) -> Applied:
        """Apply, through the codec, so that what a real log could not write fails here as well."""
        command = codec.decode(codec.encode(command))
        try:
            applied = self._apply(self.state, command)
        except Exception as exc:
            raise JournalError(f"{type(command).__name__} cannot be applied: {exc!r}") from exc
        self.state = applied.state
        self.index += 1
        for log in self.logs.values():
            log.take(command, applied)
        return applied


class MemoryLog:
    """A `ClusterLog` whose commands are durable as long as the process is.

    Alone it leads a cluster of one; those of one `MemoryGroup` share their commands. Set `failure` to have it
    refuse, `behind` to have it learn of nothing new for a while.
    """

    def __init__(
        self,
        state: State | None = None,
        *,
        apply: Apply = core_apply,
        name: str = "k1",
        group: MemoryGroup | None = None,
    ) -> None:
        self._group = MemoryGroup((name,), state, apply=apply) if group is None else group
        self._name = name
        self._state = self._group.state
        self._applied = self._group.index
        self._listeners = Listeners()
        self._watchers: dict[object, Watcher] = {}
        self._held: deque[tuple[Command, Applied]] = deque()
        self._behind = False
        self._caught_up = asyncio.Event()
        self._failure: FedKeeperError | None = None
        self._failed = asyncio.Event()
        self._closed = False
        self._group.logs[name] = self

    @property
    def state(self) -> State:
        """The state after the last command applied here."""
        return self._state

    @property
    def failure(self) -> FedKeeperError | None:
        """What every later `propose` raises, and `stopped` at once."""
        return self._failure

    @failure.setter
    def failure(self, why: FedKeeperError | None) -> None:
        self._failure = why
        if why is None:
            self._failed.clear()
        else:
            self._failed.set()
        self.tell_watchers()

    @property
    def behind(self) -> bool:
        """Whether it learns of nothing new, as a follower that is cut off."""
        return self._behind

    @behind.setter
    def behind(self, behind: bool) -> None:
        self._behind = behind
        if behind:
            self._caught_up.clear()
        else:
            while self._held:
                self._show(*self._held.popleft())
            self._caught_up.set()

    async def propose(self, command: Command) -> Applied:
        """Apply it on all logs of the group; from a follower as well: Raft would forward it."""
        self._check()
        return self._group.append(command)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each command; returns how to stop."""
        return self._listeners.add(listener)

    @property
    def status(self) -> LogStatus:
        """As of now."""
        group = self._group
        leads = group.leader == self._name
        return LogStatus(
            name=self._name,
            role=Role.LEADER if leads else Role.FOLLOWER if group.leader else Role.CANDIDATE,
            leader=group.leader,
            term=group.term,
            voted_for=group.leader,
            commit_index=group.index,
            applied_index=self._applied,
            last_index=group.index,
            members=tuple(
                Member(
                    name=name,
                    address=address,
                    connected=True,
                    match_index=group.index if leads else None,
                )
                for name, address in sorted(group.members.items())
            ),
            ready=True,
            problem=str(self._failure or "") or ("" if group.leader else "no leader"),
        )

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` when the leader, the members or `failure` change; returns how to stop."""
        token = object()
        self._watchers[token] = watcher

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    async def barrier(self) -> State:
        """The group's state, once this log has it."""
        self._check()
        while self._behind:
            await self._caught_up.wait()
        return self._state

    async def transfer(self, to: str) -> None:
        """Have `to` lead, at once."""
        self._check()
        if to not in self._group.members:
            raise MembershipRefused(f"{to!r} is no member", hint=f"members: {', '.join(self._group.members)}")
        if to != self._group.leader:
            self._group.lead(to)

    async def add_member(self, name: str, address: str) -> None:
        """Take `name` in, at once."""
        self._check_leads()
        if name in self._group.members:
            raise MembershipRefused(f"{name!r} is a member already")
        self._group.members[name] = address
        self._group.changed()

    async def remove_member(self, name: str) -> None:
        """Let `name` go, at once."""
        self._check_leads()
        if name not in self._group.members:
            raise MembershipRefused(f"{name!r} is no member")
        if name == self._name:
            raise MembershipRefused(f"{name!r} leads", hint="have another one lead first")
        del self._group.members[name]
        self._group.changed()

    async def stopped(self) -> None:
        """Wait for `failure`, and raise it."""
        while self._failure is None:
            await self._failed.wait()
        raise self._failure

    async def close(self) -> None:
        """Refuse further commands; the state can still be read."""
        self._closed = True

    def take(self, command: Command, applied: Applied) -> None:
        """A command of the group is to be applied here."""
        if self._behind:
            self._held.append((command, applied))
        else:
            self._show(command, applied)

    def tell_watchers(self) -> None:
        """Something of `status` has changed."""
        for watcher in list(self._watchers.values()):
            watcher(self.status)

    def _show(self, command: Command, applied: Applied) -> None:
        self._state = applied.state
        self._applied += 1
        self._listeners.tell(command, applied)

    def _check(self) -> None:
        if self._closed:
            raise JournalError("the log is closed")
        if self._failure is not None:
            raise self._failure
        if not self._group.leader:
            raise NoLeader("no keeper leads", hint="a majority of the keepers must be up")

    def _check_leads(self) -> None:
        self._check()
        if self._group.leader != self._name:
            raise MembershipRefused(f"{self._name} does not lead", hint=f"ask {self._group.leader}")
