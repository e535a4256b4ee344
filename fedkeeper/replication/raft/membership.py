"""Who belongs to the cluster: one change at a time, in the log, effective when it is appended.

Source: Ongaro 2014, chapter 4 (single-server changes), with the amendment that a leader changes nothing
before an entry of its own term is committed. PySyncObj means to allow one change at a time, and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fedkeeper.errors import FedKeeperError, KeeperStopped, MembershipRefused, NoLeader
from fedkeeper.replication.raft.library import MEMBERSHIP, Peer
from fedkeeper.replication.raft.snapshots import Entry, Snapshot

CATCH_UP_ENTRIES = 10  # a keeper that lacks no more than that may become a member
HURRY = "wait until every keeper is up (fedkeeper status), then try again"
Finished = Callable[[FedKeeperError | None], None]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the log."""

    add: bool
    name: str
    address: str = ""


def _change(entry: bytes) -> Change | None:
    return msgspec.json.decode(entry[1:], type=Change) if entry[0] == MEMBERSHIP else None


class Membership:
    """Of RaftNode."""

    def _init_membership(self: Any) -> None:
        self._joining: tuple[str, str, Finished, float] | None = None  # name, address, done, until
        self._changing: Finished | None = None

    @property
    def own_address(self: Any) -> str:
        """As the members were told."""
        return str(self.configured.get(self.name, ""))

    def _members_on_disk(self: Any, snapshot: Snapshot | None) -> dict[str, str]:
        """As of the end of the log: configured, then as the cluster began, or as the snapshot says."""
        identity = self.storage.identity
        members: dict[str, str] = dict(identity.founders or self.configured)
        if snapshot is not None:
            members = dict(snapshot.members)
        for entry, index, _ in self.storage[:]:
            if snapshot is None or index > snapshot.index:
                _follow(members, entry)
        return members

    def _members_at_applied(self: Any) -> dict[str, str]:
        """As of the last applied entry: what is not committed yet is left out."""
        members: dict[str, str] = self._members()
        first = self.storage[0][1]
        for entry, index, _ in reversed(self.storage[:]):
            if index <= max(first, self.raftLastApplied):
                break
            _follow(members, entry, back=True)
        return members

    def _members(self: Any) -> dict[str, str]:
        members = {one.id: getattr(one, "address", "") for one in self.otherNodes}
        members[self.name] = self.own_address
        return members

    def _peers_changed(self: Any) -> None:
        names = set(self._members()) | ({self._joining[0]} if self._joining else set())
        self._network.peers(names - {self.name})

    def address_of(self: Any, name: str) -> str:
        """Where a member, or one that is joining, is reached; empty if nobody said."""
        if self._joining is not None and self._joining[0] == name:
            return str(self._joining[1])
        return self._members().get(name) or str(self.configured.get(name, ""))

    # --- changes, on the leader ------------------------------------------------------------------------

    def add_member(self: Any, name: str, address: str, done: Finished) -> None:
        """Take `name` in once it has caught up. One change at a time; `done` when it is committed."""
        if problem := self._unfit():
            done(problem)
        elif name in self._members():
            done(MembershipRefused(f"{name} is a member already"))
        else:
            self._joining = (name, address, done, self._clock() + self._timeout_s * 3)
            self._peers_changed()

    def remove_member(self: Any, name: str, done: Finished) -> None:
        """Let `name` go; `done` when it is committed."""
        if problem := self._unfit():
            done(problem)
        elif name == self.name:
            done(
                MembershipRefused(
                    f"{name} leads, and a leader cannot be removed", hint="hand the lead over first"
                )
            )
        elif name not in self._members():
            done(
                MembershipRefused(
                    f"{name} is no member", hint=f"members: {', '.join(sorted(self._members()))}"
                )
            )
        else:
            left = [one for one in self.otherNodes if one.id != name]
            connected = 1 + sum(one in self._SyncObj__connectedNodes for one in left)
            if connected <= (len(left) + 1) / 2:
                done(
                    MembershipRefused(
                        f"without {name} there would be no majority of healthy keepers", hint=HURRY
                    )
                )
            else:
                self._change(Change(add=False, name=name), done)

    def _unfit(self: Any) -> FedKeeperError | None:
        if not self.leads:
            return NoLeader(f"{self.name} does not lead")
        if self._joining is not None or self._changing is not None:
            return MembershipRefused("another change of the members is under way", hint="one at a time")
        if self.raftLastApplied < (self._SyncObj__noopIDx or 0):
            return MembershipRefused("the leader has only just been elected", hint="try again in a moment")
        if not self.hasQuorum:
            return MembershipRefused("no majority of the keepers is healthy", hint=HURRY)
        return None

    def _change(self: Any, change: Change, done: Finished) -> None:
        self._changing = done

        def answered(result: Any) -> None:
            self._changing = None
            done(result if isinstance(result, FedKeeperError) else None)

        self._submit(bytes([MEMBERSHIP]) + msgspec.json.encode(change), answered, f"{change}")

    def _learner_acknowledged(self: Any, peer: Peer) -> None:
        """A keeper that is joining has what the others have: now it may count."""
        if self._joining is None or self._joining[0] != peer.id or peer in self.otherNodes:
            return
        if self.last_index - self._SyncObj__raftMatchIndex.get(peer, 0) <= CATCH_UP_ENTRIES:
            name, address, done, _ = self._joining
            self._joining = None
            self._change(Change(add=True, name=name, address=address), done)

    def _check_joining(self: Any) -> None:
        """Each turn: give up on one that does not come, or when no longer the leader."""
        if self._joining is None:
            return
        name, address, done, until = self._joining
        if self.leads and self._clock() < until:
            return
        self._joining = None
        self._SyncObj__onReadonlyNodeDisconnected(Peer(name)) if Peer(name) in self.readonlyNodes else None
        self._peers_changed()
        why = (
            "did not come, or did not catch up, in time"
            if self.leads
            else "was joining when the leader changed"
        )
        done(
            MembershipRefused(
                f"{name} at {address} {why}", hint=f"is it running? fedkeeper keeper run {name}"
            )
        )

    # --- entries of the log ----------------------------------------------------------------------------

    def _SyncObj__parseChangeClusterRequest(self: Any, entry: bytes) -> list[Any] | None:  # noqa: N802
        change = _change(entry)
        if change is None:
            return None
        return ["add" if change.add else "rem", change.name, Peer(change.name, address=change.address)]

    def _SyncObj__changeCluster(self: Any, request: list[Any]) -> bool:  # noqa: N802
        """Called by the library before the leader appends; its own guard is never set."""
        pending = self._SyncObj__changeClusterIDx
        if self.raftLastApplied < (self._SyncObj__noopIDx or 0) or (pending or 0) > self.raftLastApplied:
            return False
        if not self._SyncObj__doChangeCluster(request):
            return False
        self._SyncObj__changeClusterIDx = self.last_index + 1
        return True

    def _membership_appended(self: Any, entry: bytes, index: int) -> None:
        request = self._SyncObj__parseChangeClusterRequest(entry)
        if request is not None:
            self._SyncObj__doChangeCluster(request)

    def _membership_cut(self: Any, entries: Sequence[Entry]) -> None:
        for entry, _, _ in reversed(entries):
            request = self._SyncObj__parseChangeClusterRequest(entry)
            if request is not None:
                self._SyncObj__doChangeCluster(request, reverse=True)

    def _membership_committed(self: Any, entry: bytes, index: int) -> None:
        """It took effect when it was appended; now it is for good."""
        change = _change(entry)
        if change is None or change.add:
            return
        if change.name == self.name:
            raise KeeperStopped(
                f"{self.name} was removed from the cluster", hint="it may be stopped for good"
            )
        if self.leads:
            self._network.send(change.name, {"type": "removed", "term": self.raftCurrentTerm, "index": index})
        self._peers_changed()

    def _on_removed(self: Any, peer: Peer, message: dict[str, Any]) -> None:
        if peer == self._SyncObj__raftLeader and message.get("term") == self.raftCurrentTerm:
            raise KeeperStopped(
                f"{self.name} was removed from the cluster", hint="it may be stopped for good"
            )

    def _take_members(self: Any, members: Mapping[str, str]) -> None:
        """Those of a snapshot."""
        self._SyncObj__updateClusterConfiguration(
            [Peer(name, address=address) for name, address in members.items() if name != self.name]
        )
        self._peers_changed()


def _follow(members: dict[str, str], entry: bytes, *, back: bool = False) -> None:
    change = _change(entry)
    if change is None:
        return
    if change.add is not back:
        members[change.name] = change.address
    else:
        members.pop(change.name, None)
