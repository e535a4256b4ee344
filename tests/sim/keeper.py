"""A keeper of a simulated world: follows the log, conducts when it says so, acts while its lease holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fedkeeper.core import machine
from fedkeeper.core.conducting import choose
from fedkeeper.core.model import (
    AttemptStatus,
    ClaimConductor,
    Command,
    InvocationSent,
    Invoke,
    KeeperLost,
    KeeperMeasured,
    KeeperStarted,
    State,
    Tick,
)
from fedkeeper.keeper.lease import Lease
from fedkeeper.replication import codec
from tests.sim.world import Event

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

LEASE_S = 0.5
HOLD_MS = 50  # between two looks at a lease that does not hold


class Keeper:
    """One process at a time: what is called back of an earlier life is not heard."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.name = name
        self.alive = False
        self.cut = False  # off from everybody else
        self.frozen = False
        self.state = State()
        self._sim = sim
        self._life = 0
        self._seen = 0  # lines of the log
        self._skew_ms = sim.chance.choice(sim.skews_ms)
        self.rate = sim.chance.choice((0.99, 1.0, 1.01)) if sim.drifts else 1.0
        self._ahead_ms = 0
        self._lease: Lease | None = None
        self._epoch = 0  # conducted here; 0: none
        self._first_epoch = 0  # what it found when it started
        self._thawing: deque[Event] = deque()
        self._outgoing: deque[tuple[Command, float]] = deque()  # with when they were proposed
        self._sending = False
        self._free_ms = 0  # when the next effect may be begun
        self._missing: dict[str, int] = {}  # since when, of others

    @property
    def up(self) -> bool:
        """Whether the others hear it."""
        return self.alive and not self.cut and not self.frozen

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """It knows the log, as it was told to it, and nothing else."""
        self.alive, self.frozen = True, False
        self._life += 1
        self._thawing.clear()
        self._outgoing.clear()
        self._missing.clear()
        self._lease, self._epoch, self._sending, self._free_ms = None, 0, False, 0
        self.state, self._seen = self._sim.replayed(), len(self._sim.lines)
        self._first_epoch = self.state.epoch
        self.propose(
            KeeperStarted(
                keeper=self.name,
                api="http://k",
                version=codec.VERSION,
                at_ms=self._sim.chance.randint(0, 10**12),
            )
        )
        self._later(self._sim.chance.randint(1, 100), self._beat)

    def kill(self) -> None:
        """As with kill -9."""
        self.alive = False

    def thaw(self) -> None:
        """As with SIGCONT: what it was about to do comes first, then the news."""
        self.frozen = False
        if self.alive:
            while self._thawing and not self.frozen:
                self._thawing.popleft()()

    def hear(self) -> None:
        """What has been committed, unless it cannot."""
        while self.up and self._seen < len(self._sim.lines):
            before = self.state
            applied = self._sim.committed[self._seen][1]
            self.state = applied.state
            self._seen += 1
            if self.state.epoch != before.epoch:
                self._new_epoch()
            elif self._epoch and self._epoch == self.state.epoch:
                for intent in applied.intents:
                    if isinstance(intent, Invoke):
                        self._perform_soon(intent.key)

    def _later(self, after_ms: int, event: Event) -> None:
        life = self._life

        def happen() -> None:
            if not self.alive or self._life != life:
                return
            if self.frozen:
                self._thawing.append(happen)
            else:
                event()

        self._sim.at(after_ms, happen)

    # --- the log ---------------------------------------------------------------------------------

    def propose(self, command: Command) -> None:
        """In order, and again until there is somebody to take it."""
        self._outgoing.append((command, self.seconds()))
        self._send_soon(self._sim.chance.randint(0, 20))

    def _send_soon(self, after_ms: int) -> None:
        if self._outgoing and not self._sending:
            self._sending = True
            self._later(after_ms, self._send)

    def _send(self) -> None:
        self._sending = False
        if not self._sim.can_commit(self):
            self._send_soon(100)
            return
        command, begun = self._outgoing.popleft()
        applied = self._sim.commit(command)
        if not self.alive:
            return  # it died of it, so to speak
        self.hear()
        epoch = getattr(command, "epoch", self.state.epoch)
        claimed = isinstance(command, ClaimConductor) and command.keeper == self.name and not applied.rejected
        if self._lease is not None and (claimed or epoch == self._epoch == applied.state.epoch):
            self._lease.confirmed(begun)
        self._send_soon(self._sim.chance.randint(0, 20))

    # --- conducting ------------------------------------------------------------------------------

    def _new_epoch(self) -> None:
        if self._lease is not None:
            self._lease.revoke()
        self._lease, self._epoch = None, 0
        if self.state.conductor != self.name:
            return
        self._epoch = self.state.epoch
        self._lease = Lease(LEASE_S, clock=self.seconds)
        self._ahead_ms = max(0, self.state.now_ms - self._wall_ms())
        for run in self.state.runs.values():
            for attempt in run.outbox.values():
                if attempt.status is AttemptStatus.SENDING:
                    self._take_over(attempt.key)

    def _take_over(self, key: str) -> None:
        platform = self._sim.platform
        if key in platform.claims:
            self.propose(self._sent(key, platform.claims[key]))
        elif key not in platform.store:
            self._perform_soon(key)

    def _perform_soon(self, key: str) -> None:
        # One after the other, as if only so many could be sent at a time.
        self._free_ms = max(self._free_ms, self._sim.now_ms) + self._sim.chance.randint(0, self._sim.slot_ms)
        self._later(self._free_ms - self._sim.now_ms, partial(self._perform, key, self._epoch))

    def _perform(self, key: str, epoch: int) -> None:
        if epoch != self._epoch or self._lease is None:
            return  # over, as far as this keeper knows
        if not self._lease.held():
            self._lease.wanted.set()
            self._later(HOLD_MS, partial(self._perform, key, epoch))
            return
        run = self.state.runs.get(key.split("/", maxsplit=1)[0])
        attempt = run.outbox.get(key) if run is not None else None
        if run is None or attempt is None or attempt.status is not AttemptStatus.SENDING:
            return
        heard = self._sim.act(self, epoch, run, key)
        if heard is not None:
            for _ in range(self._sim.copies()):
                self._later(heard[1], lambda: self.propose(self._sent(key, heard[0], epoch)))

    def _sent(self, key: str, activation_id: str, epoch: int | None = None) -> Command:
        epoch = self._epoch if epoch is None else epoch
        return InvocationSent(key=key, activation_id=activation_id, epoch=epoch, at_ms=self._now_ms())

    # --- now and then ----------------------------------------------------------------------------

    def _beat(self) -> None:
        self._later(self._sim.chance.choice((50, 100, 300)), self._beat)
        if self._outgoing:
            return  # one thing after the other
        if self._epoch:
            self._look()
        elif self.state.conductor == self.name and self.state.epoch <= self._first_epoch:
            self._claim(self.name, "it was started again", pinned=self.state.pinned)
        if self._sim.leader is self:
            self._lead()
        if self._sim.happens(0.03):
            self.propose(KeeperMeasured(keeper=self.name, latencies=self._sim.latencies(self), at_ms=1))

    def _look(self) -> None:
        store = self._sim.platform.store
        outbox = [key for run in self.state.runs.values() for key in run.outbox]
        for key in outbox:
            for _ in range(self._sim.copies() if key in store else 0):
                self.propose(store[key](self._epoch, self._now_ms()))
                if self._sim.happens(self._sim.p_bad):  # told again, long after
                    late: Callable[[], None] = partial(self._tell_late, key, self._epoch)
                    self._later(self._sim.chance.randint(0, 3_000), late)
        due_ms = machine.next_due_ms(self.state)
        wanted = self._lease is not None and (
            self._lease.wanted.is_set() or self._lease.left_s() < LEASE_S / 2
        )
        if wanted or (due_ms is not None and due_ms <= self._now_ms()):
            self.propose(Tick(epoch=self._epoch, at_ms=self._now_ms()))

    def _tell_late(self, key: str, epoch: int) -> None:
        self.propose(self._sim.platform.store[key](epoch, self._now_ms()))

    def _lead(self) -> None:
        for other in self._sim.keepers:
            known = self.state.keepers.get(other.name)
            if other.up and not self._sim.happens(0.002):
                self._missing.pop(other.name, None)
            elif known is not None and known.alive and other is not self:
                since = self._missing.setdefault(other.name, self._sim.now_ms)
                if self._sim.now_ms - since >= 300:
                    self.propose(KeeperLost(keeper=other.name, reason="not heard", at_ms=self._now_ms()))
                    return
        choice = choose(self.state, self._sim.policy, leader=self.name, now_ms=self._now_ms())
        if choice is not None:
            assert choice.keeper != self.state.conductor
            assert choice.why
            self._claim(choice.keeper, choice.why)
        elif self._sim.happens(0.01):
            self._claim(self._sim.chance.choice(self._sim.keepers).name, "by hand", pinned=True)

    def _claim(self, keeper: str, why: str, *, pinned: bool = False) -> None:
        self._ahead_ms = max(self._ahead_ms, self.state.now_ms - self._wall_ms())
        self.propose(
            ClaimConductor(
                keeper=keeper,
                expected_epoch=self.state.epoch,
                at_ms=self._now_ms(),
                why=why,
                pinned=pinned,
                resumes=self._sim.resumes,
            )
        )

    # --- clocks ----------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Since it was made; drifts, and goes on while it is frozen."""
        return (self._sim.now_ms - self._sim.began_ms) / 1000 * self.rate

    def _wall_ms(self) -> int:
        return self._sim.began_ms + round((self._sim.now_ms - self._sim.began_ms) * self.rate) + self._skew_ms

    def _now_ms(self) -> int:
        return self._wall_ms() + self._ahead_ms
