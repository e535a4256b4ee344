"""A keeper's host: its machine, its disk, and the Raft node that runs on it, if one does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf
from pathlib import Path

from fedkeeper.core.machine import apply
from fedkeeper.core.model import Applied, Command, State
from fedkeeper.errors import FedKeeperError, JournalDamaged, JournalError, KeeperStopped
from fedkeeper.replication import codec
from fedkeeper.replication.base import LogStatus, Role
from fedkeeper.replication.raft.library import NEVER
from fedkeeper.replication.raft.node import TIMINGS, RaftNode
from fedkeeper.replication.raft.simulated_disk import SimulatedDisk
from fedkeeper.replication.raft.storage import Storage
from tests.raft_sim.checks import Checks, Violation
from tests.raft_sim.disks import HostDisk
from tests.raft_sim.majorities import Majorities
from tests.raft_sim.wires import SimulatedNetwork, Wires
from tests.raft_sim.world import Machine, World

Outcome = Applied | State | FedKeeperError | None
PROPOSE_TIMEOUT_S = 1.5  # also for those who join
LATE_TICKS = 1.0  # a timer of its loop comes late by as much of a tick as this, at most
FOLDER = Path("/keeper")


class Host:
    """Start it, kill it, cut its power, wipe it; ask its keeper."""

    def __init__(
        self,
        world: World,
        wires: Wires,
        checks: Checks,
        name: str,
        configured: Sequence[str],
        *,
        timing: str,
        snapshot_every: int,
    ) -> None:
        chance = world.chance(f"host/{name}")
        self.name = name
        self.world = world
        self.wires = wires
        self.checks = checks
        self.configured = dict.fromkeys(configured, "")
        self.timing = TIMINGS[timing]
        self.snapshot_every = snapshot_every
        self.machine = Machine(
            world, name, rate=chance.uniform(0.95, 1.05), offset_s=chance.uniform(0.0, 1e4)
        )
        self.machine.when_cut = self._power_went
        self.platter = self._new_platter()
        self.node: RaftNode | None = None
        self.storage: Storage | None = None  # of the last process, dead or alive; None once it is wiped
        self.majorities: Majorities | None = None
        self._wakes_at = inf  # by its clock
        self.wanted = True  # should run; False before it is taken in and after it is let go
        self.knew: Collection[str] = ()  # the members, by what is or may be in its folder while it is down
        self.whole = True  # nothing that its folder held has been lost, or it has caught up since
        self.open_calls = 0  # of this life, that have not been answered
        self.when_gone: Callable[[], None] = lambda: None  # told when its process has ended
        self._disk_faulty = False

    # --- its process -----------------------------------------------------------------------------

    def start(self) -> None:
        """The keeper's process starts from what is in its folder."""
        self.world.tell(f"{self.name}: starts")
        self.wires.back(self.name)
        self.machine.start()
        self.open_calls = 0
        self.machine.do(self._start)

    def _start(self) -> None:
        network = SimulatedNetwork(self.wires, self.machine)
        life = self.machine.life
        try:
            storage = Storage(
                FOLDER,
                disk=SimulatedDisk(self.platter),
                fsync=True,
                owner=self.name,
                incarnation=lambda: f"{self.name}#{life}",
            )
            node = RaftNode(
                self.name,
                self.configured,
                storage=storage,
                network=network,
                clock=self.machine.clock,
                chance=self.machine.chance,
                timing=self.timing,
                apply=apply,
                on_applied=self._applied,
                on_change=lambda: None,
                on_installed=self._installed,
                snapshot_every=self.snapshot_every,
                propose_timeout_s=PROPOSE_TIMEOUT_S,
            )
        except FedKeeperError as exc:
            self._failed(exc)
            return
        self.node, self.storage = node, storage
        self.checks.restored(self.name, node.applied_index, node.state)
        self._wakes_at = inf
        node.after_turn = self._after_turn
        node.open()

    def _after_turn(self) -> None:
        """As `NodeThread` does: sleep until the next thing is due."""
        node = self.node
        if node is None:
            return
        if node.failure is not None:
            self.machine.after(0.0, self.observe)
            return
        self.observe()
        due, now = node.next_tick_at(), self.machine.clock()
        if due == NEVER:
            due = now + self.timing.tick_s
        if due < self._wakes_at:
            self._wakes_at = due
            late_s = LATE_TICKS * self.timing.tick_s * self.machine.chance.random()
            self.machine.after(max(0.0, due - now) + late_s, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if self.node is not None and due == self._wakes_at:  # otherwise an earlier timer has taken its place
            self._wakes_at = inf
            self.node.tick()
            self._after_turn()

    def kill(self, *, power: bool = False) -> None:
        """kill -9; or, with `power`, a power cut: what was not synced may be lost."""
        if not self.machine.running:
            return
        self.world.tell(f"{self.name}: {'power cut' if power else 'killed'}")
        self.checks.seen["power cuts" if power else "kills"] += 1
        if power:
            self.platter.cut_power()
        self._gone(power=power)

    def _power_went(self) -> None:
        power = self.platter.disarm()
        self.checks.seen["deaths within a disk operation"] += 1
        self.world.tell(
            f"{self.name}: {'power cut' if power else 'killed'} in the middle of a disk operation"
        )
        self._gone(power=power)

    def _gone(self, *, power: bool) -> None:
        self.platter.let_go()
        self.machine.stop()
        if self.node is not None:
            self.knew = tuple(self.node.membership.members)
        self.node = None
        self.open_calls = 0
        self.checks.stopped(self.name)
        self.wires.gone(self.name, power=power)
        self.when_gone()

    def _failed(self, problem: FedKeeperError) -> None:
        """The node says that it cannot go on, and its process ends."""
        removed = isinstance(problem, KeeperStopped) and "was removed" in str(problem)
        excused = self._disk_faulty and isinstance(problem, JournalError)
        if isinstance(problem, JournalDamaged) or not (removed or excused):
            raise Violation(f"{self.name} stopped: {problem!r}")
        self.world.tell(f"{self.name}: stops: {problem}")
        self.checks.seen["keepers that stopped: removed" if removed else "keepers that stopped: disk"] += 1
        if removed:
            self.wanted, self.whole = False, True
        self._gone(power=False)

    # --- its disk --------------------------------------------------------------------------------

    def _new_platter(self) -> HostDisk:
        return HostDisk(self.world.chance(f"disk/{self.name}/{self.machine.life}").getrandbits(32))

    def wipe(self) -> None:
        """Its folder is empty; only while it is down."""
        assert not self.machine.running
        self.world.tell(f"{self.name}: wiped")
        self.platter = self._new_platter()
        self.storage = None
        self.whole = False
        self._disk_faulty = False
        self.checks.wiped(self.name)

    def fail_disk(self, fault: str) -> None:
        """From now on."""
        self._disk_faulty = True
        self.platter.fail(fault)

    def mend_disk(self) -> None:
        """The platter works again; a process that has seen a fault does not trust it any more."""
        self.platter.mend()

    # --- what it is asked ------------------------------------------------------------------------

    @property
    def status(self) -> LogStatus | None:
        """None while it is down."""
        return None if self.node is None else self.node.status()

    def leads(self) -> bool:
        """Whether it says so; for choosing whom to ask or to hurt."""
        return self.node is not None and self.node.leads

    def propose(self, command: Command, done: Callable[[Outcome], None]) -> None:
        """Have `command` replicated. Nothing is heard if the process dies; one that is down is definite."""

        def one(outcome: object) -> None:
            if isinstance(outcome, FedKeeperError) and outcome.definite:
                self.checks.refused(self.name, command)
            done(outcome[0] if isinstance(outcome, list) else outcome)  # type: ignore[arg-type]

        self._ask(lambda node, answer: node.propose([codec.encode(command)], answer), one)

    def barrier(self, done: Callable[[Outcome], None]) -> None:
        """A linearizable read of the state."""
        self._ask(lambda node, answer: node.barrier(answer), done)

    def transfer(self, to: str, done: Callable[[Outcome], None]) -> None:
        """Have `to` lead."""
        self._ask(lambda node, answer: node.transfer(to, answer), done)

    def add(self, name: str, done: Callable[[Outcome], None]) -> None:
        """Take `name` in."""
        self._ask(lambda node, answer: node.add_member(name, "", answer), done)

    def remove(self, name: str, done: Callable[[Outcome], None]) -> None:
        """Let `name` go."""
        self._ask(lambda node, answer: node.remove_member(name, answer), done)

    def _ask(
        self, call: Callable[[RaftNode, Callable[[object], None]], None], done: Callable[[Outcome], None]
    ) -> None:
        """Each call is answered once, or its process dies."""
        if not self.machine.running:
            done(KeeperStopped(f"{self.name} is down"))
            return
        answered = False
        life = self.machine.life

        def answer(outcome: object) -> None:
            nonlocal answered
            if answered:
                raise Violation(f"{self.name} answered one call twice: {outcome!r}")
            answered = True
            if self.machine.running and life == self.machine.life:
                self.open_calls -= 1
                done(outcome)  # type: ignore[arg-type]

        def act() -> None:
            if self.node is not None:
                self.open_calls += 1
                call(self.node, answer)

        self.machine.do(act)

    # --- what is seen of it ----------------------------------------------------------------------

    def observe(self) -> None:
        """Look at the node after each of its turns."""
        if self.node is None:
            return
        if self.node.failure is not None:
            self._failed(self.node.failure)
            return
        self.checks.observed(
            self.name,
            self.node.term,
            Role.LEADER if self.node.leads else Role.FOLLOWER,
        )
        if self.majorities is not None:
            self.majorities.check(self.node)
        identity = self.node.storage.identity
        if not self.whole and identity.cluster and not identity.newcomer_until:
            self.world.tell(f"{self.name}: has caught up")
            self.checks.seen["wiped keepers that caught up"] += 1
            self.whole = True

    def _applied(self, index: int, entry: bytes, results: Sequence[tuple[Command, Applied]]) -> None:
        self.checks.applied(self.name, index, entry, [command for command, _ in results])

    def _installed(self, index: int, state: State) -> None:
        self.world.tell(f"{self.name}: took over a snapshot of entry {index}")
        self.checks.seen["snapshots installed"] += 1
        self.checks.restored(self.name, index, state)
