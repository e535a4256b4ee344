"""A world in which everything goes wrong: platforms, messages, clocks and conductors, all from one seed.

The world's time jumps from event to event. Conductors propose commands to one log, kept as encoded lines,
and perform intents on a platform that fails, hangs, is slow, and answers twice. Conductors crash between
any command and its intents, come back from the lines, and the commands of dead ones may still arrive.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fedkeeper.core import machine, rounds
from fedkeeper.core.model import (
    Applied,
    AttemptStatus,
    ClaimConductor,
    ClientPlace,
    Command,
    InvocationFailed,
    InvocationSent,
    Invoke,
    Kind,
    ObjectRef,
    RoundAggregated,
    Run,
    RunSpec,
    State,
    StopRun,
    SubmitRun,
    Tick,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.replication import codec
from tests.core.invariants import check_step

Answer = Callable[[int, int], Command]  # epoch, at_ms


def ref(name: str) -> ObjectRef:
    """A pointer to an object that nobody will look for."""
    return ObjectRef(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), nbytes=len(name))


class Simulation:
    """`run()` until every run has ended; every step is checked, and `lines` replays to `state`."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - no secret, and a seed must replay
        self.now_ms = self.chance.randint(0, 10**12)
        self.state = State()
        self.lines: list[bytes] = []
        self.rejected: Counter[str] = Counter()
        self.invoked: Counter[str] = Counter()  # intents, by key
        self.counted: list[str] = []  # update keys, as they were accepted
        self.commits: list[tuple[str, int]] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._submitting_until_ms = self.now_ms + 2_000
        self._alive = False
        self._epoch = 0  # of the conductor that lives, or lived last
        self._skew_ms = 0
        self._claimed: set[str] = set()  # keys that a worker has taken
        self._store: dict[str, Answer] = {}
        # How bad this world is; some are nearly perfect.
        self.p_bad = self.chance.choice((0.0, 0.02, 0.1, 0.3))
        self.p_crash = self.chance.choice((0.0, 0.01, 0.05, 0.15))
        self.skews_ms = self.chance.choice(((0,), (0, -3_000, 1_500)))  # of the conductors' clocks

    # --- the course of things --------------------------------------------------------------------

    def run(self, *, commands_max: int = 5_000) -> None:
        """Raise AssertionError if a step breaks a rule, or a run does not end."""
        for number in range(self.chance.choice((1, 1, 2))):
            spec = self._spec(f"run-{number}")
            self._at(self.chance.randint(0, 2_000), partial(self._submit, spec))
            if self._happens(0.1):
                self._at(self.chance.randint(0, 6_000), partial(self._stop, spec.run))
        self._at(0, self._start_conductor)
        self._at(1, self._beat)
        while self._events and len(self.lines) < commands_max:
            self.now_ms, _, event = heapq.heappop(self._events)
            event()
        assert len(self.lines) < commands_max, f"no end after {commands_max} commands"
        for run in self.state.runs.values():
            assert run.phase in machine.ENDED
        assert max(self.invoked.values(), default=1) == 1, "the machine asked for one attempt twice"
        assert len(set(self.counted)) == len(self.counted)
        assert len(set(self.commits)) == len(self.commits)
        if self.p_bad == 0 and self.skews_ms == (0,):
            again = [
                key
                for key in self.invoked
                if not key.endswith("/a0") and not self.state.runs[key.split("/")[0]].spec.round_timeout_ms
            ]
            assert not again, "work was done again only because a conductor died"

    def _beat(self) -> None:
        """The conductor looks at the store and at the clock; the world ends when all runs have."""
        runs = self.state.runs.values()
        if self.now_ms > self._submitting_until_ms and all(run.phase in machine.ENDED for run in runs):
            self._events.clear()
            return
        if self._alive:
            for key in [key for run in self.state.runs.values() for key in run.outbox if key in self._store]:
                self._deliver(key)
        if self._alive:  # still
            due_ms = machine.next_due_ms(self.state)
            if due_ms is not None and (due_ms <= self._clock_ms() or self._happens(0.2)):
                self._propose(Tick(epoch=self._epoch, at_ms=self._clock_ms()))
        self._at(self.chance.choice((50, 200, 700)), self._beat)

    def _start_conductor(self) -> None:
        """It knows the lines and nothing else."""
        self.state = self.replayed()
        self._skew_ms = self.chance.choice(self.skews_ms)
        self._alive = True
        claim = ClaimConductor(
            keeper=f"k{self.state.epoch % 3 + 1}", expected_epoch=self.state.epoch, at_ms=self._clock_ms()
        )
        self._propose(claim)
        self._epoch = self.state.epoch
        if not self._alive:
            return  # it crashed at once
        for run in tuple(self.state.runs.values()):
            for attempt in run.outbox.values():
                if attempt.status is AttemptStatus.SENDING and attempt.key not in self._claimed:
                    self._invoke(run, attempt.key)

    def _crash(self) -> None:
        self._alive = False
        self._at(self.chance.choice((1, 500, 5_000)), self._start_conductor)

    def replayed(self) -> State:
        """What the lines say, by way of a snapshot somewhere between them."""
        cut = self.chance.randint(0, len(self.lines))
        state = State()
        for line in self.lines[:cut]:
            state = machine.apply(state, codec.decode(line)).state
        state = codec.decode_state(codec.encode_state(state))
        for line in self.lines[cut:]:
            state = machine.apply(state, codec.decode(line)).state
        assert state == self.state, "a replay made another state"
        return state

    # --- the log ---------------------------------------------------------------------------------

    def _propose(self, command: Command) -> Applied:
        line = codec.encode(command)
        before = self.state
        applied = machine.apply(before, command)
        check_step(before, command, applied)
        self.lines.append(line)
        self.state = applied.state
        if applied.rejected:
            self.rejected[type(command).__name__] += 1
        self._take_note(before, command, applied)
        if self._alive and self._happens(self.p_crash):
            self._crash()  # between the command and its intents
        for intent in applied.intents:
            if isinstance(intent, Invoke):
                self.invoked[intent.key] += 1
                if self._alive:
                    self._invoke(self.state.runs[intent.run], intent.key)
        return applied

    def _propose_from_outside(self, command: Command) -> None:
        self._propose(command)
        if self._happens(0.3):
            assert self._propose(command).rejected

    def _take_note(self, before: State, command: Command, applied: Applied) -> None:
        for name, run in applied.state.runs.items():
            earlier = before.runs.get(name)
            done = len(earlier.history) if earlier is not None else 0
            self.commits += [(name, record.round) for record in run.history[done:]]
        if isinstance(command, UpdateStored) and not applied.rejected:
            self.counted.append(command.key)

    def _submit(self, spec: RunSpec) -> None:
        self._propose_from_outside(SubmitRun(spec=spec, at_ms=self.now_ms))

    def _stop(self, run: str) -> None:
        self._propose_from_outside(StopRun(run=run, reason="the user said so", at_ms=self.now_ms))

    # --- the platform ----------------------------------------------------------------------------

    def _invoke(self, run: Run, key: str) -> None:
        if self._happens(self.p_bad):
            self._answer_later(key, 0, self._failing(key, "refused by the platform"))
            return
        if self._happens(self.p_bad):
            return  # the request was lost
        if not self._happens(self.p_bad):
            sent = InvocationSent(
                key=key, activation_id=f"{next(self._order):x}", epoch=self._epoch, at_ms=self._clock_ms()
            )
            for _ in range(self._copies()):
                self._at(self.chance.randint(1, 400), lambda: self._propose(sent))
        if key in self._claimed:
            return  # a second activation of a key stands back
        self._claimed.add(key)
        attempt = run.outbox[key]
        timeout_ms = run.spec.client_timeout_ms if attempt.kind is Kind.TRAIN else run.spec.server_timeout_ms
        took_ms = self.chance.randint(1, timeout_ms * 2 if self._happens(self.p_bad) else timeout_ms // 2)
        if self._happens(self.p_bad):
            self._answer_later(key, took_ms, self._failing(key, "the function raised"))
        elif not self._happens(self.p_bad):  # else it hangs
            self._answer_later(key, took_ms, self._working(run, key))

    def _answer_later(self, key: str, after_ms: int, answer: Answer) -> None:
        def publish() -> None:
            self._store.setdefault(key, answer)
            for _ in range(self._copies()):
                self._at(self.chance.randint(0, 3_000), lambda: self._deliver(key))

        self._at(after_ms, publish)

    def _deliver(self, key: str) -> None:
        """Somebody tells the log: the conductor, or one that does not know that it no longer is."""
        if self._happens(self.p_bad) and self._epoch > 1:
            old = self.chance.randint(1, self._epoch - 1)
            assert self._propose(self._store[key](old, self._clock_ms())).rejected
        elif self._alive:
            self._propose(self._store[key](self._epoch, self._clock_ms()))

    def _failing(self, key: str, reason: str) -> Answer:
        return lambda epoch, at_ms: InvocationFailed(key=key, reason=reason, epoch=epoch, at_ms=at_ms)

    def _working(self, run: Run, key: str) -> Answer:
        match run.outbox[key].kind:
            case Kind.INIT:
                rows = {place.client: self.chance.randint(1, 600) for place in run.spec.clients}
                if self._happens(self.p_bad):
                    rows.popitem()
                return lambda epoch, at_ms: WeightsInitialised(
                    key=key, weights=ref(f"{run.spec.run}/w0"), samples=rows, epoch=epoch, at_ms=at_ms
                )
            case Kind.TRAIN:
                samples = 0 if self._happens(self.p_bad / 2) else self.chance.randint(1, 600)
                loss = self.chance.choice((None, self.chance.random()))
                return lambda epoch, at_ms: UpdateStored(
                    key=key, ref=ref(key), samples=samples, loss=loss, accuracy=loss, epoch=epoch, at_ms=at_ms
                )
            case Kind.AGGREGATE:
                return self._aggregating(run, key)

    def _aggregating(self, run: Run, key: str) -> Answer:
        assert run.weights is not None
        keys = tuple(update.key for update in rounds.ordered_updates(run))
        if self._happens(self.p_bad):
            bad = {one: "NaN" for one in keys if self._happens(0.5)}
            return lambda epoch, at_ms: UpdatesRefused(key=key, refused=bad, epoch=epoch, at_ms=at_ms)
        accuracy = self.chance.choice((None, self.chance.random()))
        done = RoundAggregated(
            key=key,
            base=run.weights,
            weights=ref(f"{run.spec.run}/w{run.round}"),
            updates=keys,
            loss=accuracy,
            accuracy=accuracy,
            aggregate_s=0.25,
            evaluate_s=0.5,
            epoch=0,
            at_ms=0,
        )
        if self._happens(self.p_bad):
            done = replace(done, base=ref("other")) if self._happens(0.5) else replace(done, updates=keys[1:])
        return lambda epoch, at_ms: replace(done, epoch=epoch, at_ms=at_ms)

    # --- chance and time ---------------------------------------------------------------------------

    def _spec(self, name: str) -> RunSpec:
        clients = self.chance.randint(1, 6)
        per_round = self.chance.randint(1, clients)
        return RunSpec(
            run=name,
            digest="d",
            seed=self.chance.randint(0, 99),
            clients=tuple(
                ClientPlace(client=f"client_{number}", cluster=f"c{number % 2}", route="direct")
                for number in range(clients)
            ),
            server_cluster="c0",
            clients_per_round=per_round,
            rounds_max=self.chance.randint(1, 4),
            target_accuracy=self.chance.choice((None, 0.9)),
            min_updates=self.chance.randint(1, per_round),
            attempts_max=self.chance.randint(1, 4),
            client_timeout_ms=self.chance.choice((500, 2_000)),
            server_timeout_ms=self.chance.choice((500, 2_000)),
            round_timeout_ms=self.chance.choice((0, 0, 1_500)),
            retry_backoff_ms=self.chance.choice((0, 100, 1_000)),
        )

    def _clock_ms(self) -> int:
        return self.now_ms + self._skew_ms

    def _happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    def _copies(self) -> int:
        return 1 + self._happens(self.p_bad) + self._happens(self.p_bad)

    def _at(self, after_ms: int, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now_ms + after_ms, next(self._order), event))
