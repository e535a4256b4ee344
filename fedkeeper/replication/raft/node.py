"""One Raft node: PySyncObj's Raft between our files, our network and the state machine.

It has no thread, no clock and no chance of its own, and acts only when it is called: `received` (with the
other methods of Receiver), `propose`, `barrier`, `tick`. Each call is a *turn*. What was said in it goes out
after one sync of what it relies upon; callbacks come last, when the library is done.

The parts: `followers` and `leading` (the log), `elections`, `beginning` (first starts and wiped folders),
`membership`, `proposals`, `compaction`. `library` is PySyncObj.

Sources: Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm (extended version), 2014;
Ongaro: Consensus: Bridging Theory and Practice, 2014.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Any

import structlog

from fedkeeper.core.model import Command, State
from fedkeeper.errors import FedKeeperError, KeeperStopped
from fedkeeper.replication import codec
from fedkeeper.replication.base import LogStatus
from fedkeeper.replication.raft.applying import Apply, Applying, OnApplied, Results
from fedkeeper.replication.raft.base import Hello, Message, Network
from fedkeeper.replication.raft.beginning import Beginning
from fedkeeper.replication.raft.compaction import Background, Compaction, at_once
from fedkeeper.replication.raft.elections import Elections
from fedkeeper.replication.raft.followers import Followers
from fedkeeper.replication.raft.leading import Leading
from fedkeeper.replication.raft.library import NEVER, REGULAR, Raft, use
from fedkeeper.replication.raft.membership import Finished, Membership
from fedkeeper.replication.raft.messages import FREE, fault
from fedkeeper.replication.raft.proposals import SESSION_BITS, Done, Proposals, Result
from fedkeeper.replication.raft.standing import problem_of, status_of
from fedkeeper.replication.raft.storage import Storage
from fedkeeper.replication.raft.timing import TIMINGS, Timing

__all__ = ["TIMINGS", "Apply", "RaftNode", "Result", "Results", "Timing"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class RaftNode(Raft):
    """One keeper's part in the log. Every method is to be called on one and the same thread."""

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
        on_applied: OnApplied = lambda _index, _entry, _results: None,
        on_installed: Callable[[int, State], None] = lambda _index, _state: None,
        on_change: Callable[[], None] = lambda: None,
        snapshot_every: int = 10_000,
        propose_timeout_s: float = 10.0,
        background: Background = at_once,
    ) -> None:
        """`members`: all keepers that the cluster begins with, this one included: name -> address.

        `on_applied` is called for each entry with its index, its bytes, and its commands with what each did;
        `on_installed` with index and state when a leader's snapshot took the place of the state; `on_change`
        when role, leader, term, members, connections or `problem` have changed. JournalDamaged if the
        snapshot cannot be read.
        """
        use(clock, chance)
        self.name = name
        self.timing = timing
        self.storage = storage
        self.clock = clock
        self.chance = chance
        self.failure: FedKeeperError | None = None  # why it takes part no longer
        self._network = network
        self._open = False
        self._on_installed = on_installed
        self._on_change = on_change
        self._peers: frozenset[str] = frozenset()
        self._vote_on_disk: tuple[int, str] = (0, "")
        self.counted = False  # what a majority has may be more since the last step
        self._turning = False
        self._calling = False
        self._outbox: list[tuple[str, dict[str, Any]]] = []
        self._calls: list[Callable[[], None]] = []  # for the end of the turn
        self._told: object = None  # of `on_change`
        self.after_turn: Callable[[], None] = lambda: None  # `next_tick_at` may be sooner, or it has failed
        snapshot = storage.snapshot()
        super().__init__(name, (), storage=storage, timing=timing, say=self.say)
        self.beginning = Beginning(self, members)
        self.membership = Membership(
            self, members, snapshot.members if snapshot else {}, join_timeout_s=propose_timeout_s
        )
        self.applying = Applying(self, apply, on_applied)
        self.elections = Elections(self)
        self.followers = Followers(self)
        self.leading = Leading(self)
        self.proposals = Proposals(self, propose_timeout_s, f"{chance.getrandbits(SESSION_BITS):x}")
        self.compaction = Compaction(self, snapshot_every, background)
        if snapshot is not None:
            state = codec.decode_state(snapshot.state, place=f"{name}'s snapshot")
            self.applying.restore(state, snapshot.term)
            self.applied_index = snapshot.index
            self.commit_index = max(self.commit_index, snapshot.index)
        self._handlers: Mapping[str, Callable[[str, dict[str, Any]], None]] = {
            "append": self.followers.on_append,
            "appended": self.leading.on_appended,
            "snapshot": self.followers.on_snapshot,
            "snapshot_ack": self.leading.on_snapshot_ack,
            "pre_vote": self.elections.on_pre_vote,
            "pre_vote_answer": self.elections.on_pre_vote_answer,
            "request_vote": self.elections.on_request_vote,
            "response_vote": self.elections.on_response_vote,
            "timeout_now": self.elections.on_timeout_now,
            "forward": self.proposals.on_forward,
            "refused": self.proposals.on_refused,
            "seen": self.beginning.on_seen,
            "begun": self.beginning.on_begun,
            "welcome": self.beginning.on_welcome,
            "removed": self.membership.on_removed,
        }
        self._sync()
        self.membership.load()

    # --- what it is asked --------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen, connect, take part. Raises what the network raises."""
        self._network.open(self)
        self._open = True
        self._network.peers(self._peers)
        self.elections.put_off()
        self._turn(self.beginning.start)

    def tick(self) -> None:
        """Time passes; to be called at `next_tick_at`. Costs next to nothing if nothing is due."""
        if self.next_tick_at() <= self.clock() and self.failure is None:
            self._turn(self.proposals.expire)

    def next_tick_at(self) -> float:
        """By its clock; `tick` does nothing before. It changes with turns. -inf: each `timing.tick_s`."""
        if not self.beginning.counts or self.membership.busy or self.compaction.busy:
            return NEVER
        return min(self.due_at(), self.leading.due_at if self.leads else inf, self.proposals.due_at())

    def propose(self, lines: Sequence[bytes], done: Done, commands: Sequence[Command] | None = None) -> None:
        """Have a batch of commands, as the codec's lines, replicated. No lines: a barrier.

        `done` is called once, at the end of a turn: with a list of what each command did; with NoLeader if
        the batch is not in the log and never will be; with OutcomeUnknown. `commands`: what `codec.decode`
        makes of the lines, if the caller knows.
        """
        body = codec.encode_batch(lines)
        what = f"{len(lines)} command(s)" if lines else "a barrier"
        self._ask(lambda: self.proposals.propose(REGULAR, body, done, what, commands))

    def barrier(self, done: Done) -> None:
        """Call `done` with the state once everything acknowledged before this call is in it."""
        self.propose((), lambda outcome: done(outcome if isinstance(outcome, FedKeeperError) else self.state))

    def add_member(self, name: str, address: str, done: Finished, timeout_s: float | None = None) -> None:
        """Take a keeper in once it has caught up, for which it has `timeout_s`, or as long as a proposal."""
        self._ask(lambda: self.membership.add(name, address, done, timeout_s))

    def remove_member(self, name: str, done: Finished) -> None:
        """Let a keeper go."""
        self._ask(lambda: self.membership.remove(name, done))

    def transfer(self, to: str, done: Finished) -> None:
        """Have `to` lead."""
        self._ask(lambda: self.membership.transfer(to, done))

    def hand_over(self, to: str) -> None:
        """As `transfer`, for those who look at `status` to see whether it did."""
        self.transfer(to, lambda _: None)

    @property
    def newcomer(self) -> bool:
        """It has yet to catch up before it counts."""
        return self.beginning.is_member and not self.beginning.counts

    def address_of(self, name: str) -> str:
        """Where the log says a keeper is; empty if it does not."""
        return self.membership.address_of(name)

    def stop(self, why: FedKeeperError, *, quietly: bool = False) -> None:
        """Take part no longer. The owner closes network and storage."""
        if self.failure is None:
            self.failure = why
            if not quietly:
                log.error("keeper stopped", keeper=self.name, problem=str(why), hint=why.hint)
            self._outbox.clear()
            self.membership.stop()
            self.proposals.stop()
            self._tell()
        self._call_back()
        self.after_turn()

    # --- Receiver ----------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """How this keeper introduces itself now."""
        identity = self.storage.identity
        return Hello(
            name=self.name,
            incarnation=identity.incarnation,
            fresh=not identity.cluster,
            cluster=identity.cluster,
            last_index=self.last_index,
            version=codec.VERSION,
        )

    def connected(self, hello: Hello) -> None:
        """A peer can be reached."""

        def act() -> None:
            self.set_connected(hello.name, connected=True)
            self.leading.connected(hello)
            self.beginning.connected(hello)
            self.membership.connected(hello.name)

        self._turn(act)

    def disconnected(self, peer: str) -> None:
        """It cannot be reached any more."""

        def act() -> None:
            self.set_connected(peer, connected=False)
            self.beginning.disconnected(peer)
            self.elections.lost(peer)

        self._turn(act)

    def received(self, peer: str, messages: Sequence[Message]) -> None:
        """What a peer said, in one read."""

        def act() -> None:
            for message in messages:
                if problem := fault(message):
                    log.warning("message not understood", keeper=self.name, peer=peer, problem=problem)
                else:
                    self._handlers[message["type"]](peer, dict(message))
            self.followers.answer()

        self._turn(act)

    # --- a turn ------------------------------------------------------------------------------------------

    def _turn(self, act: Callable[[], None]) -> None:
        """Do `act`, then what follows from it; send it, synced; step on; call back."""
        if self._turning:
            raise AssertionError("a turn within a turn")
        if self.failure is not None:
            return
        failure: FedKeeperError | None = None
        self._turning = True
        try:
            use(self.clock, self.chance)
            act()
            self._send(hurry=True)
            if self._steps():
                self.elections.before_step()
                self.step()
                self.elections.after_step()
            self.beginning.each_turn()
            self.membership.each_turn()
            self.compaction.each_turn()
            self._send()
            self._tell()
        except FedKeeperError as exc:
            failure = exc
        except MemoryError:
            failure = KeeperStopped(f"{self.name} has run out of memory")
        finally:
            self._turning = False
        if failure is not None:
            self.stop(failure)
        self._call_back()
        self.after_turn()

    def _steps(self) -> bool:
        """Whether the library's step would do anything: it costs more than most turns do beside it."""
        if self.leads:
            counted, self.counted = self.counted, False
            if counted and self.last_index > self.commit_index:
                return True
        elif self.told_to_lead:
            return True
        return not self.other_names or self.due_at() <= self.clock()

    def _ask(self, act: Callable[[], None]) -> None:
        """A turn for something that has to be answered in any case."""
        if self.failure is None:
            self._turn(act)
        else:
            act()
            self._call_back()
            self.after_turn()

    def _send(self, *, hurry: bool = False) -> None:
        """Send what was said. Promises (votes, acknowledgements, ...) after the sync that makes them true.

        A leader's entries are on their way while it syncs them itself.
        """
        if self.leads:
            self.leading.spread()
        if (self.term, self.voted_for) != self._vote_on_disk:
            self._sync()
        outbox, self._outbox = self._outbox, []
        if self.storage.dirty:
            free = [one for one in outbox if one[1]["type"] in FREE]
            for peer, message in free:
                self._network.send(peer, message)
            if free:
                self._network.flush()
                outbox = [one for one in outbox if one[1]["type"] not in FREE]
            self._sync()
        for peer, message in outbox:
            self._network.send(peer, message)
        if hurry and outbox:
            self._network.flush()

    def _sync(self) -> None:
        self.storage.sync()
        self._vote_on_disk = (self.term, self.voted_for)

    def _call_back(self) -> None:
        if self._calling:
            return
        self._calling = True
        try:
            while self._calls:
                calls, self._calls = self._calls, []
                while calls:
                    try:
                        calls.pop(0)()
                    except BaseException:
                        self._calls = calls + self._calls
                        raise
        finally:
            self._calling = False

    def _tell(self) -> None:
        # What `status` says is made of these.
        told = (
            self.role,
            self.leader,
            self.term,
            self.ready,
            self.failure,
            self.beginning.problem(),
            self.connected_names,
            self.membership.members,
        )
        if told != self._told:
            self._told = told
            self._calls.insert(0, self._on_change)  # whoever is told of an outcome knows what goes with it

    # --- for its parts -----------------------------------------------------------------------------------

    def say(self, peer: str, message: dict[str, Any]) -> None:
        """Send this at the end of the turn."""
        self._outbox.append((peer, message))

    def soon(self, done: Callable[[Any], None], outcome: Any) -> None:
        """Call `done` at the end of the turn."""
        self.later(lambda: done(outcome))

    def later(self, call: Callable[[], None]) -> None:
        """At the end of the turn."""
        self._calls.append(call)

    def append(self, entry: bytes) -> None:
        """As the leader, to its own log."""
        self.storage.add(entry, self.last_index + 1, self.term)
        self.membership.appended(entry)

    def network_peers(self, names: Collection[str]) -> None:
        """Be connected to these."""
        self._peers = frozenset(names)
        if self._open:
            self._network.peers(names)

    def restored(self, state: State, index: int) -> None:
        """A snapshot's state took the place of the old one."""
        self.applying.restore(state, self.entry(index)[2])
        self.later(lambda: self._on_installed(index, state))

    # --- what the library asks ---------------------------------------------------------------------------

    def leads_now(self) -> None:
        """It has been elected."""
        self.leading.begins()

    def heartbeat(self) -> None:
        """It is time for one."""
        self.leading.heartbeat()

    def applies(self, entry: bytes) -> None:
        """A committed entry, in its turn."""
        self.applying.entry(entry)

    # --- how it stands -----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """It has everything that was committed when its leader was elected."""
        return self.beginning.counts and bool(self.leader) and self.applying.term == self.term

    @property
    def state(self) -> State:
        """After the last applied entry."""
        return self.applying.state

    def problem(self) -> str:
        """Why nothing can be committed here now; empty if it can."""
        return problem_of(self)

    def status(self) -> LogStatus:
        """As of now."""
        return status_of(self)
