"""One Raft node: PySyncObj's Raft between our files, our network and the state machine.

It has no thread, no clock and no chance of its own. It acts when it is called: `received` (and the other
methods of Receiver), `propose`, `tick`. Each call is a *turn*: at its end everything that has to be on disk
is synced, once, and what was said meanwhile is sent.

Source of the protocol: Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm (extended),
2014; Ongaro: Consensus: Bridging Theory and Practice, 2014, for pre-votes (9.6) and transfers (3.10).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import (
    FedKeeperError,
    KeeperStopped,
    NoLeader,
    OutcomeUnknown,
)
from fedkeeper.replication import codec
from fedkeeper.replication.base import LogStatus, Member, Role
from fedkeeper.replication.raft.base import Hello, Message, Network
from fedkeeper.replication.raft.beginning import Beginning
from fedkeeper.replication.raft.elections import Elections
from fedkeeper.replication.raft.followers import Followers
from fedkeeper.replication.raft.library import (
    FAIL_REASON,
    MEMBERSHIP,
    NO_OP,
    REGULAR,
    Peer,
    SyncObj,
    SyncObjConf,
    use,
)
from fedkeeper.replication.raft.membership import Membership
from fedkeeper.replication.raft.shim import Shim
from fedkeeper.replication.raft.storage import Storage

Apply = Callable[[State, Command], Applied]
Result = list[Applied] | State | FedKeeperError | None  # of a batch; of a barrier; what went wrong; done
Done = Callable[[Result], None]
ROLES: Final = (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER)  # in the library's order
CERTAIN: Final = frozenset(
    (
        FAIL_REASON.QUEUE_FULL,
        FAIL_REASON.MISSING_LEADER,
        FAIL_REASON.DISCARDED,
        FAIL_REASON.NOT_LEADER,
        FAIL_REASON.REQUEST_DENIED,
    )
)  # the command is not in the log, and never will be
ENTRY_BYTES_MAX: Final = (
    24 * 1024 * 1024
)  # larger than any batch; the library would send larger ones by pickle

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. A leader that is silent for `silence_min_s` to `silence_max_s` is replaced."""

    silence_min_s: float
    silence_max_s: float
    heartbeat_s: float
    tick_s: float  # between two calls of `tick`


TIMINGS: Final[Mapping[str, Timing]] = {
    "fast": Timing(silence_min_s=0.05, silence_max_s=0.1, heartbeat_s=0.015, tick_s=0.005),
    "steady": Timing(silence_min_s=0.15, silence_max_s=0.3, heartbeat_s=0.03, tick_s=0.01),
    "patient": Timing(silence_min_s=1.0, silence_max_s=2.0, heartbeat_s=0.2, tick_s=0.05),
}


@dataclass(slots=True)
class _Waiting:
    done: Done
    until: float
    what: str


class RaftNode(Elections, Followers, Membership, Beginning, SyncObj):  # type: ignore[misc] # untyped library
    """One keeper's part in the log. Not safe to be called from several threads."""

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        *,
        storage: Storage,
        network: Network,
        clock: Callable[[], float],
        chance: random.Random,
        timing: Timing,
        apply: Apply,
        on_applied: Callable[[int, bytes, Sequence[tuple[Command, Applied]]], None],
        on_change: Callable[[], None],
        on_installed: Callable[[], None] = lambda: None,
        snapshot_every: int = 10_000,
        propose_timeout_s: float = 10.0,
    ) -> None:
        """`members`: name -> address, itself included, as configured: what a cluster that begins consists of.

        `on_applied` is called for each entry with its index, its bytes, and its commands with what they did;
        `on_change` when the status is another one, `on_installed` when a snapshot took the state's place.
        """
        use(clock, chance)
        self.name = name
        self.timing = timing
        self.storage = storage
        self.state = State()
        self.failure: FedKeeperError | None = None
        self._network = network
        self._clock = clock
        self._chance = chance
        self._apply = apply
        self._on_applied = on_applied
        self._on_change = on_change
        self._installed = on_installed
        self._snapshot_every = snapshot_every
        self._timeout_s = propose_timeout_s
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_count = 0
        self._announced = (0, 0)  # last index and commit index that the followers were told
        self._told: object = None  # of `on_change`
        self._turning = False
        self.configured = dict(members)
        self.shim = Shim(self._peers_changed)
        snapshot = storage.snapshot()
        if snapshot is not None:
            self.state = codec.decode_state(snapshot.state, place="the snapshot")
        known = self._members_on_disk(snapshot)
        super().__init__(
            Peer(name),
            [Peer(one, address=address) for one, address in known.items() if one != name],
            SyncObjConf(
                autoTick=False,
                appendEntriesUseBatch=True,  # we say when to send: once a turn
                journalFile=storage,
                dynamicMembershipChange=True,
                raftMinTimeout=timing.silence_min_s,
                raftMaxTimeout=timing.silence_max_s,
                appendEntriesPeriod=timing.heartbeat_s,
                leaderFallbackTimeout=timing.silence_max_s,
                connectionTimeout=1e5,
                commandsWaitLeader=False,
                appendEntriesBatchSizeBytes=ENTRY_BYTES_MAX,
                onStateChanged=lambda _before, _after: None,
            ),
            transport=self.shim,
        )
        if snapshot is not None:
            self._SyncObj__raftLastApplied = snapshot.index
            self._SyncObj__raftCommitIndex = max(self._SyncObj__raftCommitIndex, snapshot.index)
        self._SyncObj__raftCommitIndex = min(self._SyncObj__raftCommitIndex, self.last_index)
        self._init_elections()
        self._init_followers()
        self._init_membership()
        self._init_beginning()
        storage.sync()

    # --- what it is asked ------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen and connect."""
        self._network.open(self)
        self._peers_changed()
        self.tick()

    def propose(self, lines: Sequence[bytes], done: Done) -> None:
        """Have a batch of commands (codec's lines) replicated.

        `done` is called once: with what each command did, in order; NoLeader if the batch is not in the log
        and never will be; OutcomeUnknown if nobody knows.
        """
        self._submit(bytes([REGULAR]) + codec.encode_batch(lines), done, f"{len(lines)} command(s)")

    def barrier(self, done: Done) -> None:
        """Call `done` with the state once everything acknowledged before this call is in it."""
        self._submit(bytes([NO_OP]), done, "a barrier")

    def tick(self) -> None:
        """Time passes; to be called every `timing.tick_s`."""
        self._turn()
        now = self._clock()
        for number in [number for number, one in self._waiting.items() if one.until <= now]:
            one = self._waiting.pop(number)
            one.done(OutcomeUnknown(f"{self.name}: {one.what} not confirmed in {self._timeout_s:g} s"))

    def hand_over(self, to: str) -> None:
        """Have `to` stand for election at once, if it has everything; nothing happens otherwise."""
        if self.failure is None and self.leads:
            self.transferLeadership(Peer(to), None)
            self._turn()

    def stop(self, why: FedKeeperError, *, quietly: bool = False) -> None:
        """Take part no longer, because of `why`."""
        if self.failure is not None:
            return
        self.failure = why
        if not quietly:
            log.error("keeper stopped", keeper=self.name, problem=str(why), hint=why.hint)
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.done(OutcomeUnknown(f"{self.name} stopped: {why}"))
        self._tell()

    def _submit(self, entry: bytes, done: Done, what: str) -> None:
        if self.failure is not None:
            done(KeeperStopped(f"{self.name} stopped: {self.failure}"))
            return
        self._waiting_count += 1
        number = self._waiting_count
        self._waiting[number] = _Waiting(done, self._clock() + self._timeout_s, what)
        self._applyCommand(entry, lambda result, error: self._answered(number, result, error))
        self._turn()

    def _answered(self, number: int, result: Any, error: int) -> None:
        """The library's callback: must not raise, or the entry would be applied twice."""
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        if error == FAIL_REASON.SUCCESS:
            waiting.done(self.state if result is None else result)
        elif error in CERTAIN:
            waiting.done(NoLeader(f"{self.name}: no leader took {waiting.what}", hint=self.problem()))
        else:
            waiting.done(OutcomeUnknown(f"{self.name}: the leader changed under {waiting.what}"))

    # --- a turn ----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """What the library does in a tick; then sync, then send."""
        if self.failure is not None or self._turning:
            return
        self._turning = True
        try:
            use(self._clock, self._chance)
            self._before_elections()
            self._onTick(0.0)
            if self.leads:
                self._spread()
            self._flush()
            if self.leads and not self.otherNodes and self.raftCommitIndex < self.last_index:
                self._onTick(0.0)  # it is on disk now, and there is nobody else to wait for
                self._flush()
            self._after_beginning()
        except FedKeeperError as exc:
            self.stop(exc)
        except MemoryError as exc:
            self.stop(KeeperStopped(f"{self.name}: out of memory: {exc!r}"))
        finally:
            self._turning = False
        self._tell()

    def _spread(self) -> None:
        """Tell the followers of new entries, and of what is committed by now."""
        news = (self.last_index, self.raftCommitIndex)
        if news != self._announced:
            self._announced = news
            self._SyncObj__sendAppendEntries()

    def _flush(self) -> None:
        """Sync what was written, and send what was said.

        A vote, a request for votes and an acknowledgement go out after the sync that makes them true. A
        leader's entries need not wait: they count when a majority has them on disk, and itself only counts
        once its own sync is through, as the library looks at that in the next turn.
        """
        outbox, self.shim.outbox = self.shim.outbox, []
        promises = any(message["type"] != "append_entries" for _, message in outbox)
        if promises:
            self.storage.sync()
        term = self.raftCurrentTerm
        for peer, message in outbox:
            if message["type"] == "next_node_idx":
                message["term"] = term
            self._network.send(peer, message)
        if not promises:
            self.storage.sync()

    def _tell(self) -> None:
        status = self.status()
        told = (
            status.role,
            status.leader,
            status.term,
            status.problem,
            status.ready,
            tuple((one.name, one.connected) for one in status.members),
        )
        if told != self._told:
            self._told = told
            self._on_change()

    # --- Receiver --------------------------------------------------------------------------------------

    def connected(self, hello: Hello) -> None:
        """A peer can be reached."""
        self._met(hello)
        self.shim.connected(hello.name)
        self._turn()

    def disconnected(self, peer: str) -> None:
        """It cannot be reached any more."""
        self.shim.disconnected(peer)
        self._lost_link(peer)
        self._turn()

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        """What a peer said, in one read."""
        if self.failure is not None:
            return
        use(self._clock, self._chance)
        try:
            for message in messages:
                self._heard(Peer(peer), dict(message))
        except FedKeeperError as exc:
            self.stop(exc)
            return
        self._turn()

    def _heard(self, peer: Peer, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind in ("pre_vote", "pre_vote_granted"):
            self._on_pre_vote(peer, message)
        elif kind == "request_vote":
            if self._may_vote():
                self._SyncObj__onMessageReceived(peer, message)
        elif kind == "response_vote":
            if self._counts_vote(peer, message):
                self._SyncObj__onMessageReceived(peer, message)
        elif kind == "append_entries":
            self._on_append(peer, message)
        elif kind == "next_node_idx":
            self._on_acknowledged(peer, message)
        elif kind == "removed":
            self._on_removed(peer, message)
        elif kind in ("apply_command", "apply_command_response", "timeout_now"):
            self._SyncObj__onMessageReceived(peer, message)
        else:
            log.warning("unknown message", peer=peer.id, kind=str(kind)[:40])

    # --- applying --------------------------------------------------------------------------------------

    def _SyncObj__doApplyCommand(self, entry: bytes) -> list[Applied] | None:  # noqa: N802 - the library's name
        """Called by the library for each committed entry, in order. FedKeeperErrors stop this node."""
        index = self.raftLastApplied + 1
        kind = entry[0]
        results: list[tuple[Command, Applied]] = []
        if kind == REGULAR:
            for line in codec.decode_batch(entry[1:]):
                results.append(self._apply_line(line, index))
        elif kind == MEMBERSHIP:
            self._membership_committed(entry, index)
        self._on_applied(index, entry, results)
        return [applied for _, applied in results] if kind == REGULAR else None

    def _apply_line(self, line: bytes, index: int) -> tuple[Command, Applied]:
        command = codec.decode(line, place=f"entry {index} of the log")  # JournalDamaged stops this keeper
        try:
            applied = self._apply(self.state, command)
        except MemoryError:
            raise
        except Exception as exc:
            problem = f"a fault of FedKeeper: {type(command).__name__} cannot be applied: {exc!r}"
            log.exception("command cannot be applied", index=index)
            applied = Applied(state=self.state, rejected=problem)
        self.state = applied.state
        return command, applied

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Snapshot and shorten the log when it has grown; by our own files, not by the library's."""
        if self.raftLastApplied - self.storage.snapshot_index < self._snapshot_every:
            return
        previous, last = self._SyncObj__getEntries(self.raftLastApplied - 1, 2)
        self.storage.save_snapshot(
            codec.encode_state(self.state), (previous, last), self._members_at_applied()
        )

    # --- status ----------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether it is the leader, as far as it knows."""
        return bool(self._isLeader())

    @property
    def last_index(self) -> int:
        """Of the last entry of its log."""
        return int(self.storage[-1][1])

    @property
    def leader(self) -> str:
        """As far as it knows; empty: none."""
        peer = self._getLeader()
        return "" if peer is None else str(peer.id)

    def problem(self) -> str:
        """Why it cannot work; empty if it can."""
        if self.failure is not None:
            return str(self.failure)
        if beginning := self._waits_to_begin():
            return beginning
        missing = [one.id for one in self.otherNodes if one not in self._SyncObj__connectedNodes]
        if not self.hasQuorum:
            return f"no majority: {', '.join(sorted(missing))} cannot be reached"
        if not self.leader:
            return "no leader yet"
        if self.newcomer:
            return f"catching up: entry {self.last_index} of {self.storage.identity.newcomer_until}"
        return ""

    def status(self) -> LogStatus:
        """As of now."""
        match = self._SyncObj__raftMatchIndex
        others = [
            Member(
                name=one.id,
                address=getattr(one, "address", ""),
                connected=one in self._SyncObj__connectedNodes,
                match_index=match.get(one, 0) if self.leads else None,
            )
            for one in self.otherNodes
        ]
        me = Member(
            name=self.name,
            address=self.own_address,
            connected=True,
            match_index=self.last_index if self.leads else None,
        )
        return LogStatus(
            name=self.name,
            role=ROLES[self._SyncObj__raftState],
            leader=self.leader,
            term=self.raftCurrentTerm,
            voted_for=self.storage.getVotedForNodeId() or "",
            commit_index=self.raftCommitIndex,
            applied_index=self.raftLastApplied,
            last_index=self.last_index,
            members=tuple(sorted((me, *others), key=lambda one: one.name)),
            ready=self.isReady() and not self.newcomer,
            problem=self.problem(),
        )
