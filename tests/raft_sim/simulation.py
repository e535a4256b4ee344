"""One world from one seed: keepers, clients, and all that goes wrong; then peace, and the reckoning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedkeeper.core.model import PutValue
from fedkeeper.replication.raft.timing import TIMINGS
from tests.linearizability import check
from tests.raft_sim.checks import Checks, Violation
from tests.raft_sim.clients import Client, histories
from tests.raft_sim.hosts import Host, Outcome
from tests.raft_sim.majorities import Majorities
from tests.raft_sim.nemesis import Nemesis
from tests.raft_sim.wires import Wires
from tests.raft_sim.world import World

PEACE_S = 20.0  # after the faults: until then a leader is there and a command is applied everywhere


@dataclass(frozen=True)
class Result:
    """What happened in a world that broke no rule."""

    seed: int
    simulated_s: float
    entries: int
    operations: int
    seen: dict[str, int]


class Simulation:
    """`run()` raises Violation, NotLinearizable, or returns what happened."""

    def __init__(self, seed: int, *, seconds: float | None = None, only: Collection[str] = ()) -> None:
        self.world = World(seed)
        self.chance = chance = self.world.chance("simulation")
        self.checks = Checks()
        self.wires = Wires(self.world)
        self.wires.spies += [self.checks.said, self._no_vote_of_one_that_forgot]
        count = chance.choices((1, 2, 3, 4, 5, 7), (2, 2, 50, 6, 36, 4))[0]
        founders = [f"k{number}" for number in range(1, count + 1)]
        spares = [f"k{number}" for number in range(count + 1, count + 1 + chance.choice((0, 1, 2)))]
        timing = chance.choices(("fast", "steady", "patient"), (4, 6, 1))[0]
        self.pace = TIMINGS[timing].silence_max_s / TIMINGS["steady"].silence_max_s
        self.seconds = self.pace * (chance.uniform(3.0, 7.0) if seconds is None else seconds)
        snapshot_every = chance.choice((5, 20, 80))
        self.hosts = {
            name: Host(
                self.world,
                self.wires,
                self.checks,
                name,
                founders if name in founders else [name, *founders],
                timing=timing,
                snapshot_every=snapshot_every,
            )
            for name in (*founders, *spares)
        }
        for host in self.hosts.values():
            host.majorities = Majorities(self.hosts)
        for name in spares:
            self.hosts[name].wanted = False
        self.clients = [
            Client(self.world, self.checks, self.hosts, f"c{number}")
            for number in range(chance.choice((1, 2, 3, 5)))
        ]
        self.nemesis = Nemesis(
            self.world, self.wires, self.checks, self.hosts, founders, pace=self.pace, only=only
        )

    def _no_vote_of_one_that_forgot(self, sender: str, _target: str, message: Mapping[str, Any]) -> None:
        if message["type"] in ("request_vote", "response_vote") and not self.hosts[sender].whole:
            raise Violation(f"{sender} votes in term {message['term']}, and has yet to catch up")

    def run(self) -> Result:
        """Faults for `seconds`, then peace; then every rule must hold."""
        for host in self.hosts.values():
            if host.wanted:
                self.world.after(self.chance.uniform(0.0, 0.3), host.start)
        for client in self.clients:
            client.pause_s = self.pace * self.chance.choice((0.01, 0.03, 0.1))
            client.start()
        self.nemesis.start()
        self.world.run(self.seconds)
        self.nemesis.make_peace()
        for client in self.clients:
            client.working = False
        self._must("every proposal ends", lambda: not any(client.busy for client in self.clients))
        self._must("every call is answered", lambda: not any(host.open_calls for host in self.hosts.values()))
        self._must("somebody leads", lambda: any(host.leads() for host in self.nemesis.members()))
        self._probe()
        operations = check(histories(self.clients))
        return Result(
            seed=self.world.seed,
            simulated_s=self.world.now,
            entries=self.checks.last,
            operations=operations,
            seen=dict(self.checks.seen),
        )

    def _must(self, what: str, holds: Callable[[], bool]) -> None:
        if not self.world.run(self.world.now + PEACE_S, done=holds):
            raise Violation(f"liveness: not within {PEACE_S} s of peace: {what}")

    def _probe(self) -> None:
        """A command is accepted by somebody, and applied by all."""
        answers: list[Outcome] = []

        def ask() -> None:
            if any(not isinstance(one, Exception) for one in answers):
                return
            for host in self.nemesis.members():
                if host.leads():
                    at_ms = self.checks.stamp()
                    host.propose(
                        PutValue(name="probe", value="1", request="probe", at_ms=at_ms), answers.append
                    )
                    break
            self.world.after(0.5, ask)

        ask()
        self._must("a command is accepted", lambda: any(not isinstance(one, Exception) for one in answers))
        self._must(
            "everybody has applied everything",
            lambda: all(
                host.node is not None and self.checks.has_all(host.name) for host in self.nemesis.members()
            ),
        )
        for host in self.nemesis.members():
            assert host.node is not None
            self.checks.same(host.name, host.node.state)
