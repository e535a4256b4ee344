"""Who belongs to the cluster: one change at a time, in the log, effective when it is appended.

PySyncObj means to allow one change at a time, and its guard is never set: an isolated leader can shrink the
cluster until it is a majority by itself. Here a leader changes nothing before an entry of its own term is
committed, nor before the last change is; only while majorities of the old and of the new members answer; and
a keeper becomes a member only after it has caught up.

Source: Ongaro 2014, chapter 4 (single-server changes), with his amendment of 2015 (the leader's own entry
first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fedkeeper.errors import FedKeeperError, JournalDamaged, KeeperStopped, MembershipRefused, NoLeader
from fedkeeper.replication.codec import UPGRADE
from fedkeeper.replication.raft.library import MEMBERSHIP
from fedkeeper.replication.raft.proposals import parts

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

LAG_ENTRIES: Final = 16  # a keeper that lacks no more than this has caught up
FAREWELL_S: Final = 30.0  # how long a keeper that was removed can still connect, to learn of it
FAREWELL_PAUSE_S: Final = 1.0
MEMBERS_MAX: Final = 15
REMOVED: Final = "its folder may be deleted; `fedkeeper keeper add` takes it in again, with an empty one"
Finished = Callable[[FedKeeperError | None], None]


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of the log."""

    add: bool  # or remove
    name: str
    address: str = ""


@dataclass(slots=True)
class _Joining:
    name: str
    address: str
    done: Finished
    until: float


@dataclass(slots=True)
class _HandingOver:
    to: str
    term: int
    done: Finished
    until: float


class Membership:
    """The members, as one node's log has them."""

    def __init__(
        self,
        node: RaftNode,
        configured: Mapping[str, str],
        snapshot: Mapping[str, str],
        *,
        join_timeout_s: float,
    ) -> None:
        """`snapshot`: the members in the snapshot; empty if there is none."""
        self._node = node
        self._join_timeout_s = join_timeout_s
        self._configured = dict(configured)
        self._in_snapshot = dict(snapshot)
        self.applied: dict[str, str] = {}  # name -> address, after the last applied entry
        self.members: dict[str, str] = {}  # after the last entry of the log
        self._change_index = 0  # of the last change in the log
        self._joining: _Joining | None = None
        self._handing_over: _HandingOver | None = None
        self._farewell_at = 0.0  # the next, as messages may be lost
        self._leaving: dict[str, float] = {}  # removed: until when they can still connect
        self._hints: dict[str, str] = {}  # members of which other keepers told, until the log has told itself
        self._peers: frozenset[str] | None = None

    # --- what the log says -------------------------------------------------------------------------------

    def load(self) -> None:
        """At a start: as the cluster began or the snapshot says, then as the entries after it say."""
        founders = self._node.storage.identity.founders
        self.applied = dict(self._in_snapshot or founders or self._configured)
        self.log_changed()

    def founded(self) -> None:
        """This keeper has just become a member: of whose cluster, the storage knows."""
        self.load()

    def restored(self, members: Mapping[str, str]) -> None:
        """A snapshot took the place of the applied entries."""
        self._in_snapshot = dict(members)
        self.applied = dict(members)
        self.log_changed()

    def log_changed(self) -> None:
        """Entries were cut off, or replaced."""
        node = self._node
        members, self._change_index = dict(self.applied), 0
        first = max(node.applied_index + 1, node.first_index)
        for index in range(first, node.last_index + 1):
            if follow(members, node.entry(index)[0]):
                self._change_index = index
        self._set(members)

    def appended(self, entry: bytes) -> None:
        """The last entry of the log is new."""
        if entry[0] == MEMBERSHIP:
            members = dict(self.members)
            follow(members, entry)
            self._change_index = self._node.last_index
            self._set(members)

    def committed(self, entry: bytes) -> None:
        """It is applied now: for good."""
        node, change = self._node, change_of(entry)
        follow(self.applied, entry)
        if change.add:
            self._leaving.pop(change.name, None)
            return
        if change.name in self.members:
            return  # it was taken in again later
        if change.name != node.name:
            self._leaving[change.name] = node.clock() + FAREWELL_S
            self._say_farewell(change.name)
            self._tell_network()
        elif node.beginning.counts:  # a newcomer goes through the history of its name
            raise KeeperStopped(f"{node.name} was removed from the cluster", hint=REMOVED)

    def _set(self, members: dict[str, str]) -> None:
        if members != self.members:
            self.members = members
            self._node.set_others(members.keys() - {self._node.name})
        self._tell_network()

    @property
    def belongs(self) -> bool:
        """This keeper is one of the members."""
        return self._node.name in self.members

    @property
    def learners(self) -> frozenset[str]:
        """Who is sent entries without being a member."""
        joining = self._joining
        return frozenset() if joining is None else frozenset({joining.name} - self.members.keys())

    def address_of(self, name: str) -> str:
        """Where to reach a keeper; empty if the log does not say."""
        if self._joining is not None and self._joining.name == name:
            return self._joining.address
        return self.members.get(name) or self._hints.get(name) or self._configured.get(name, "")

    def hint(self, members: Mapping[str, str]) -> None:
        """Somebody knows these members. Their leader may be one that this keeper's log does not know yet."""
        if not self._node.ready and not members.items() <= self._hints.items():
            self._hints |= members
            self._tell_network()

    def _tell_network(self) -> None:
        peers = frozenset(self.members | self.applied | self._leaving | self._hints) | self.learners
        if not self._node.beginning.is_member:
            peers |= self._configured.keys()
        if peers != self._peers:
            self._peers = peers
            self._node.network_peers(peers - {self._node.name})

    # --- farewells ---------------------------------------------------------------------------------------

    def connected(self, peer: str) -> None:
        """Perhaps one that does not know that it was removed."""
        if peer in self._leaving and peer not in self.members and peer not in self.learners:
            self._say_farewell(peer)

    def _say_farewell(self, peer: str) -> None:
        node = self._node
        if node.leads:
            node.say(peer, {"type": "removed", "term": node.term})

    def on_removed(self, peer: str, message: dict[str, Any]) -> None:
        """The leader says that this keeper is no member any more."""
        node = self._node
        if message["term"] >= node.term and node.beginning.counts:
            raise KeeperStopped(
                f"{node.name} was removed from the cluster, says its leader {peer}", hint=REMOVED
            )

    # --- changes, on the leader --------------------------------------------------------------------------

    def add(self, name: str, address: str, done: Finished, timeout_s: float | None) -> None:
        """Take `name` in once it has caught up; `done` when that is committed, or why it is not."""
        node = self._node
        problem = self._unfit(self.members.keys())
        if problem is None and name in self.members:
            problem = MembershipRefused(f"{name} is a member already")
        if problem is None and len(self.members) >= MEMBERS_MAX:
            problem = MembershipRefused(f"there are {len(self.members)} keepers, the most there may be")
        if problem is not None:
            node.soon(done, problem)
            return
        if name in node.connected_names:
            # A connection of its time as a member: it may have been wiped since, and what it had is gone.
            node.network_peers((self._peers or frozenset()) - {node.name, name})
            self._peers = None
        node.leading.forget(name)
        self._leaving.pop(name, None)
        self._joining = _Joining(name, address, done, node.clock() + (timeout_s or self._join_timeout_s))
        self._tell_network()

    def remove(self, name: str, done: Finished) -> None:
        """Let `name` go; `done` when that is committed, or why it is not."""
        node = self._node
        problem = self._unfit(self.members.keys() - {name})
        if problem is None and name not in self.members:
            members = ", ".join(sorted(self.members))
            problem = MembershipRefused(f"{name} is no member", hint=f"members are {members}")
        if problem is None and name == node.name:
            problem = MembershipRefused(
                f"{name} leads, and a leader does not remove itself", hint="hand the lead over first"
            )
        if problem is not None:
            node.soon(done, problem)
            return
        self._propose(Change(add=False, name=name), done)

    def _unfit(self, members: Set[str], *, joining: str = "") -> FedKeeperError | None:
        """Why the members cannot become these now. `joining`: has caught up, so it is healthy."""
        node = self._node
        if node.failure is not None:
            return KeeperStopped(f"{node.name} has stopped: {node.failure}")
        if not node.leads:
            return NoLeader(f"{node.name} does not lead", hint=f"ask {node.leader}" if node.leader else "")
        if self._joining is not None or self._change_index > node.commit_index:
            return MembershipRefused("another change of the members is under way", hint="one at a time")
        if self._handing_over is not None:
            return MembershipRefused(f"{node.name} hands the lead over", hint="ask the next leader")
        if node.commit_index < node.noop_index:
            return MembershipRefused(f"{node.name} has just been elected", hint="try again in a moment")
        for group in (self.members.keys(), members):
            silent = sorted(group - self._answering() - {joining})
            if 2 * len(silent) >= len(group):
                return MembershipRefused(
                    f"no majority would be healthy: {', '.join(silent)} cannot be reached",
                    hint="wait until they are back (`fedkeeper status`), or add a healthy keeper first",
                )
        return None

    def _answering(self) -> set[str]:
        """Who counts, and has said so lately: an election, or a connection, says nothing of it yet."""
        node = self._node
        since = node.clock() - node.timing.silence_max_s
        here = node.other_names & node.connected_names
        others = {name for name in here if node.leading.counts(name) and node.heard_at(name) > since}
        return others | {node.name}

    def _propose(self, change: Change, done: Finished) -> None:
        self._node.proposals.propose(
            MEMBERSHIP,
            msgspec.json.encode(change),
            lambda outcome: done(outcome if isinstance(outcome, FedKeeperError) else None),
            f"to {'add' if change.add else 'remove'} {change.name}",
        )

    @property
    def busy(self) -> bool:
        """Something here waits for time to pass."""
        return bool(self._joining or self._handing_over or self._leaving or self._hints)

    def each_turn(self) -> None:
        """Take in who has caught up; give up what takes too long; forget who has left."""
        now = self._node.clock()
        if self._hints and self._node.ready:
            self._hints.clear()
            self._tell_network()
        if gone := [name for name, until in self._leaving.items() if until <= now]:
            for name in gone:
                del self._leaving[name]
            self._tell_network()
        if self._leaving and now >= self._farewell_at:
            self._farewell_at = now + FAREWELL_PAUSE_S
            for name in self._node.connected_names & self._leaving.keys():
                self.connected(name)
        if self._joining is not None:
            self._look_at(self._joining)
        if self._handing_over is not None:
            self._hand_over(self._handing_over)

    def _look_at(self, joining: _Joining) -> None:
        node = self._node
        if node.leads and node.clock() < joining.until:
            if not node.leading.has_caught_up(joining.name, entries_max=LAG_ENTRIES):
                return
            self._joining = None
            problem = self._unfit({*self.members, joining.name}, joining=joining.name)
            if problem is None:
                self._propose(Change(add=True, name=joining.name, address=joining.address), joining.done)
                return
        elif node.leads:
            problem = MembershipRefused(
                f"{joining.name} at {joining.address or '?'} did not come, or did not catch up, in time",
                hint="start it first; then its log says what it waits for",
            )
        else:
            problem = NoLeader(f"{node.name} does not lead any more; {joining.name} was not added")
        self._joining = None
        self._tell_network()
        node.soon(joining.done, problem)

    # --- handing over ------------------------------------------------------------------------------------

    @property
    def handing_over(self) -> bool:
        """The leader takes no proposals, so that another can catch up with it."""
        return self._handing_over is not None

    def transfer(self, to: str, done: Finished) -> None:
        """Have `to` lead; `done` when it does, or why it does not."""
        node = self._node
        problem: FedKeeperError | None = None
        if node.failure is not None:
            problem = KeeperStopped(f"{node.name} has stopped: {node.failure}")
        elif not node.leads:
            problem = NoLeader(f"{node.name} does not lead", hint=f"ask {node.leader}" if node.leader else "")
        elif self._handing_over is not None:
            problem = MembershipRefused(f"{node.name} is handing over to {self._handing_over.to} already")
        elif to != node.name and (to not in node.other_names or to not in node.connected_names):
            problem = MembershipRefused(f"{to} cannot lead: it is no member that {node.name} reaches")
        if problem is not None or to == node.name:
            node.soon(done, problem)
            return
        self._handing_over = _HandingOver(to, 0, done, node.clock() + 4 * node.timing.silence_max_s)

    def _hand_over(self, plan: _HandingOver) -> None:
        node = self._node
        if node.leader == plan.to:
            self._handing_over = None
            node.soon(plan.done, None)
        elif node.clock() >= plan.until or (not node.leads and node.leader):
            self._handing_over = None
            leads = f"{node.leader} leads" if node.leader else "nobody leads"
            node.soon(plan.done, NoLeader(f"{plan.to} did not take over in time; {leads}"))
        elif node.leads and plan.term != node.term and node.leading.match_of(plan.to) == node.last_index:
            plan.term = node.term
            node.hand_over_to(plan.to)

    def stop(self) -> None:
        """This keeper stops: nothing of this is known to end."""
        for plan in (self._joining, self._handing_over):
            if plan is not None:
                self._node.soon(plan.done, KeeperStopped(f"{self._node.name} has stopped"))
        self._joining = self._handing_over = None


def change_of(entry: bytes) -> Change:
    """What a MEMBERSHIP entry says. JournalDamaged if this version cannot read it."""
    try:
        return msgspec.json.decode(parts(entry)[1], type=Change)
    except msgspec.MsgspecError as exc:
        raise JournalDamaged(f"a change of the members cannot be read: {exc}", hint=UPGRADE) from exc


def follow(members: dict[str, str], entry: bytes) -> bool:
    """Change `members` as `entry` says, if it does."""
    if entry[0] != MEMBERSHIP:
        return False
    change = change_of(entry)
    if change.add:
        members[change.name] = change.address
    else:
        members.pop(change.name, None)
    return True
