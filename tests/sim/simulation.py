"""A world in which everything goes wrong, from one seed: the core, codec and lease over a simulated log.

Keepers follow one log, kept as encoded lines; one of them leads, and has one of them conduct. They are
killed, frozen and cut off between any command and what follows of it, their clocks disagree and drift, and
what deposed ones have proposed still arrives. Platforms fail, hang, are slow, and answer twice (`platform`);
users write to the dictionary (`users`). The nodes and the network of the real log are simulated elsewhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from fedkeeper.core import machine
from fedkeeper.core.conducting import Placement, Policy
from fedkeeper.core.model import (
    Applied,
    ClaimConductor,
    ClientPlace,
    Command,
    DeleteValue,
    Invoke,
    Phase,
    PutValue,
    Run,
    RunSpec,
    State,
    StopRun,
    SubmitRun,
    UpdateStored,
)
from fedkeeper.replication import codec
from tests.core.invariants import check_step
from tests.sim.keeper import LEASE_S, Keeper
from tests.sim.platform import Platform, ref
from tests.sim.users import Reference, Users, Write
from tests.sim.world import World

__all__ = ["Simulation", "ref"]
FAULTS_MS = 20_000  # after that the keepers are left in peace, so that every run must end
COMMANDS_MAX = 5_000
RATE_MIN = 0.99  # of the slowest clock


class Simulation(World):
    """`run()` until every run has ended; every step is checked, and `lines` replays to `state`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.began_ms = self.now_ms
        self.state = State()  # of the log
        self.lines: list[bytes] = []
        self.committed: list[tuple[Command, Applied]] = []
        self.rejected: Counter[str] = Counter()
        self.invoked: Counter[str] = Counter()  # intents, by key
        self.counted: list[str] = []  # update keys, as they were accepted
        self.commits: list[tuple[str, int]] = []
        self.stale_acts = 0  # effects of conductors that were deposed and could not know it
        self.faults: Counter[str] = Counter()
        self._over_ms: dict[int, int] = {}  # when an epoch was over
        self._submitting_until_ms = self.now_ms + 2_000
        # How bad this world is; some are nearly perfect.
        self.p_bad = self.chance.choice((0.0, 0.0, 0.01, 0.03, 0.1, 0.3))
        self.p_fault = self.chance.choice((0.0, 0.01, 0.03, 0.1, 0.1))
        self.skews_ms = self.chance.choice(((0,), (0, -3_000, 1_500)))  # of the keepers' clocks
        self.slot_ms = self.chance.choice((10, 300, 900))  # that an effect takes to begin, at most
        self.drifts = self.happens(0.5)
        self.resumes = bool(seed % 3)  # takeovers as keepers of version 5 claim them
        self.policy = Policy(
            placement=self.chance.choice(list(Placement)),
            every_s=self.chance.choice((0.0, 2.0)),
            every_rounds=self.chance.choice((0, 1, 2)),
        )
        self.platform = Platform(self, p_bad=self.p_bad)
        self.keepers = [Keeper(self, f"k{number + 1}") for number in range(self.chance.choice((1, 3, 3, 5)))]
        self.leader: Keeper | None = None
        self.reference = Reference()
        self.users = Users(self, self._write)

    # --- the course of things --------------------------------------------------------------------

    def run(self) -> None:
        """Raise AssertionError if a step breaks a rule, or a run does not end."""
        for number in range(self.chance.choice((1, 1, 2))):
            spec = self._spec(f"run-{number}")
            self.at(self.chance.randint(0, 2_000), partial(self._submit, SubmitRun(spec=spec, at_ms=0)))
            if self.happens(0.1):
                stop = StopRun(run=spec.run, reason="the user said so", at_ms=0)
                self.at(self.chance.randint(2_000, 6_000), partial(self._submit, stop))
        for keeper in self.keepers:
            self.at(self.chance.randint(0, 300), keeper.start)
        self.at(0, self._elect)
        self.users.start()
        while self.step():
            assert len(self.lines) < COMMANDS_MAX, f"no end after {COMMANDS_MAX} commands"
            if self.now_ms > self._submitting_until_ms and self._all_ended():
                self.end()
        self._check_the_end()

    def met(self) -> Counter[str]:
        """What it was made of, for a summary over many."""
        return Counter(
            {
                "commands": len(self.lines),
                "commands rejected": self.rejected.total(),
                "rounds committed": len(self.commits),
                "updates counted": len(self.counted),
                "epochs": self.state.epoch,
                "effects of deposed conductors": self.stale_acts,
                "dictionary writes": self.reference.version,
                "requests repeated": self.users.repeated,
                **{f"runs {run.phase}": 0 for run in self.state.runs.values()},
                **{f"faults: {kind}": count for kind, count in sorted(self.faults.items())},
            }
        ) + Counter(f"runs {run.phase}" for run in self.state.runs.values())

    def _all_ended(self) -> bool:
        return all(run.phase in machine.ENDED for run in self.state.runs.values())

    def _check_the_end(self) -> None:
        assert self._all_ended()
        self.replayed()
        self.reference.check_state(self.state)
        assert max(self.invoked.values(), default=1) == 1, "the machine asked for one attempt twice"
        assert len(set(self.counted)) == len(self.counted)
        assert len(set(self.commits)) == len(self.commits)
        if self.p_bad == 0:
            again = [
                one
                for one, count in self.platform.trained.items()
                if count > 1 and not self.state.runs[one[0]].spec.round_timeout_ms
            ]
            assert not again, "a client was trained twice only because a keeper died"
            for run in self.state.runs.values():
                assert run.phase is not Phase.FAILED or run.spec.round_timeout_ms, run.reason

    # --- the log ---------------------------------------------------------------------------------

    def can_commit(self, proposer: Keeper | None = None) -> bool:
        """Whether there is a leader with a majority, and the proposer reaches it."""
        leads = self.leader is not None and self.leader.up
        majority = sum(keeper.up for keeper in self.keepers) > len(self.keepers) / 2
        return leads and majority and (proposer is None or proposer.up)

    def commit(self, command: Command) -> Applied:
        """Apply, check, keep; then perhaps a fault, before anybody has heard of it."""
        line = codec.encode(command)
        before = self.state
        applied = machine.apply(before, command)
        check_step(before, command, applied)
        self.lines.append(line)
        self.committed.append((command, applied))
        self.state = applied.state
        self._take_note(before, command, applied)
        p_fault = self.p_fault * (3 if applied.intents else 1)  # when there is something to lose
        if self.happens(p_fault) and self.now_ms - self.began_ms < FAULTS_MS:
            if self.happens(0.3):
                self._fault()
            else:  # once the conductor has heard of it, and has perhaps begun
                self.at(self.chance.choice((5, 20, 50, 200)), self._fault)
        for keeper in self.keepers:
            self.at(self.chance.choice((0, 0, 5, 100)), keeper.hear)
        return applied

    def _take_note(self, before: State, command: Command, applied: Applied) -> None:
        if applied.rejected:
            self.rejected[type(command).__name__] += 1
        for name, run in applied.state.runs.items():
            earlier = before.runs.get(name)
            done = len(earlier.history) if earlier is not None else 0
            self.commits += [(name, record.round) for record in run.history[done:]]
        self.invoked.update(one.key for one in applied.intents if isinstance(one, Invoke))
        if isinstance(command, UpdateStored) and not applied.rejected:
            self.counted.append(command.key)
        if isinstance(command, (PutValue, DeleteValue)):
            self.reference.check(command, applied)
        if isinstance(command, ClaimConductor) and not applied.rejected:
            self._over_ms[before.epoch] = self.now_ms

    def replayed(self) -> State:
        """What the lines say, by way of a snapshot somewhere between them."""
        cut = self.chance.randint(0, len(self.lines))
        state = State() if cut == 0 else self.committed[cut - 1][1].state
        state = codec.decode_state(codec.encode_state(state))
        for line in self.lines[cut:]:
            state = machine.apply(state, codec.decode(line)).state
        assert state == self.state, "a replay made another state"
        assert list(state.kv) == list(self.state.kv), "a replay made another order"
        assert list(state.answered) == list(self.state.answered)
        return state

    def _submit(self, command: SubmitRun | StopRun) -> None:
        """From outside, through the leader, perhaps twice."""
        if not self.can_commit():
            self._submitting_until_ms = max(self._submitting_until_ms, self.now_ms + 1_000)
            self.at(200, partial(self._submit, command))
            return
        at_ms = self.state.now_ms or self.now_ms
        again = replace(command, at_ms=at_ms)
        self.commit(again)
        if self.happens(0.3):
            assert self.commit(again).rejected

    def _write(self, command: Write) -> Applied | None:
        if not self.can_commit():
            return None
        applied = self.commit(command)
        return None if self.happens(self.p_bad) else applied  # the answer was lost

    # --- what goes wrong with keepers ------------------------------------------------------------

    def _fault(self) -> None:
        """To the conductor, mostly."""
        victims = [one for one in self.keepers if one.name == self.state.conductor] or self.keepers
        keeper = self.chance.choice(victims if self.happens(0.7) else self.keepers)
        kind = self.chance.choice(("kill", "kill", "freeze", "freeze", "cut", "cut", "leader"))
        self.faults[kind] += 1
        back_ms = self.chance.choice((1, 500, 2_500, 5_000))  # of which the shorter are not noticed
        if kind == "kill":
            keeper.kill()
            self.at(back_ms, partial(self._start, keeper))
        elif kind == "freeze":
            keeper.frozen = True
            self.at(back_ms, keeper.thaw)
        elif kind == "cut":
            keeper.cut = True
            self.at(back_ms, partial(setattr, keeper, "cut", False))
            self.at(back_ms + 5, keeper.hear)
        else:
            self.leader = None

    @staticmethod
    def _start(keeper: Keeper) -> None:
        if not keeper.alive:
            keeper.start()

    def _elect(self) -> None:
        """Somebody leads, soon after nobody does."""
        up = [keeper for keeper in self.keepers if keeper.up]
        if (self.leader is None or not self.leader.up) and len(up) > len(self.keepers) / 2:
            self.leader = self.chance.choice(up)
            self.leader.hear()
        self.at(self.chance.randint(50, 300), self._elect)

    # --- what keepers ask the world ----------------------------------------------------------------

    def act(self, keeper: Keeper, epoch: int, run: Run, key: str) -> tuple[str, int] | None:
        """An effect: of the conductor, or of one that was it so shortly ago that it could not know."""
        if epoch != self.state.epoch:
            self.stale_acts += 1
            late_ms = self.now_ms - self._over_ms[epoch]
            assert late_ms <= LEASE_S * 1000 / RATE_MIN + 1, (
                f"{keeper.name} acted {late_ms} ms after its time"
            )
        return self.platform.invoke(run, key)

    def copies(self) -> int:
        """How often something is said."""
        return 1 + self.happens(self.p_bad) + self.happens(self.p_bad)

    def latencies(self, keeper: Keeper) -> dict[str, float]:
        """As it measures them now; what it does not reach is missing."""
        others = [f"keeper/{one.name}" for one in self.keepers if one.up and one is not keeper]
        names = [*others, "cluster/c0", "cluster/c1"]
        return {name: self.chance.uniform(0.1, 9) for name in names if not self.happens(self.p_bad / 3)}

    # --- what is to be done ------------------------------------------------------------------------

    def _spec(self, name: str) -> RunSpec:
        clients = self.chance.randint(1, 7)
        per_round = self.chance.randint(1, clients)
        return RunSpec(
            run=name,
            digest="d",
            seed=self.chance.randint(0, 99),
            clients=tuple(
                ClientPlace(
                    client=f"client_{number}",
                    cluster=f"c{number % 2}",
                    route=self.chance.choice(("direct", "invoker")),
                )
                for number in range(clients)
            ),
            server_cluster="c0",
            clients_per_round=per_round,
            rounds_max=self.chance.randint(1, 5),
            target_accuracy=self.chance.choice((None, 0.9)),
            min_updates=self.chance.randint(1, per_round),
            attempts_max=self.chance.randint(1, 4),
            # Where platforms are perfect, no attempt is given up only because keepers are away.
            client_timeout_ms=self.chance.choice((500, 2_000)) if self.p_bad else 60_000,
            server_timeout_ms=self.chance.choice((500, 2_000)) if self.p_bad else 60_000,
            round_timeout_ms=self.chance.choice((0, 0, 1_500)),
            retry_backoff_ms=self.chance.choice((0, 100, 1_000)),
            deploy_timeout_ms=self.chance.choice((0, 3_000 if self.p_bad else 60_000)),
            # The weights are some bytes long, so by the rule there are several.
            shards=self.chance.choice((0, 1, 1, 2, 3)),
            shard_bytes_max=self.chance.choice((1, 4, 1_000)),
            shard_updates_bytes_max=10,
            early_updates_min=self.chance.choice((0, 1, 2)),
            early_bytes_min=self.chance.choice((0, 10)),
        )
