"""Clients of the keepers, and the histories that they see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedkeeper.core.model import (
    Applied,
    ClaimConductor,
    Command,
    DeleteValue,
    KeeperStarted,
    PutValue,
    State,
    Tick,
)
from fedkeeper.errors import FedKeeperError
from tests.linearizability import Act, Operation
from tests.raft_sim.checks import Checks
from tests.raft_sim.hosts import Host, Outcome
from tests.raft_sim.world import World

PATIENCE_S = 2.0  # a client waits this long for an answer; then it does not know
ATTEMPTS_MAX = 6  # of one operation
KEYS = ("x", "y", "z")
Call = Callable[[Host, Callable[[Outcome], None]], None]


class Client:
    """One thing at a time, again and again, on any keeper; what it learned goes into `history`."""

    def __init__(self, world: World, checks: Checks, hosts: Mapping[str, Host], name: str) -> None:
        self.world = world
        self.checks = checks
        self.hosts = hosts
        self.name = name
        self.history: list[Operation] = []
        self.working = True
        self.pause_s = 0.05
        self.busy = False
        self._chance = world.chance(f"client/{name}")
        self._count = 0
        self._versions: dict[str, tuple[Any, int]] = {}  # what this client last read: value and version
        self._epoch = 0
        self._keeper = ""  # that answered last

    def start(self) -> None:
        """Begin."""
        self.world.after(self._chance.uniform(0.0, 0.5), self._next)

    def _next(self) -> None:
        if not self.working:
            return
        self.busy = True
        self._count += 1
        act = self._chance.choices(
            (self._put, self._cas, self._delete, self._get, self._claim, self._tick, self._started),
            (25, 20, 4, 35, 3, 6, 2),
        )[0]
        act(self._chance.choice(KEYS))

    def _rest(self) -> None:
        self.busy = False
        self.world.after(self.pause_s * self._chance.expovariate(1.0), self._next)

    # --- what it does ----------------------------------------------------------------------------

    def _put(self, key: str) -> None:
        value = f"{self.name}-{self._count}"
        command = PutValue(name=key, value=json.dumps(value), request=self._request(), at_ms=0)
        self._write(command, Act.PUT, key, value)

    def _cas(self, key: str) -> None:
        value = f"{self.name}-{self._count}"
        expected, version = self._versions.get(key, (None, 0))
        command = PutValue(
            name=key,
            value=json.dumps(value),
            expected=version,
            request=self._request(),
            at_ms=0,
        )
        self._write(command, Act.CAS, key, value, expected)

    def _delete(self, key: str) -> None:
        command = DeleteValue(name=key, request=self._request(), at_ms=0)
        self._write(command, Act.DELETE, key)

    def _write(
        self, command: PutValue | DeleteValue, act: Act, key: str, value: Any = None, expected: Any = None
    ) -> None:
        called = self.world.now

        def call(host: Host, done: Callable[[Outcome], None]) -> None:
            host.propose(replace(command, at_ms=self.checks.stamp()), done)

        def ended(outcome: Outcome, maybe: bool) -> None:
            if isinstance(outcome, Applied):
                self._note(act, key, called, value, expected, done=not outcome.rejected)
            elif maybe:
                self._note(act, key, called, value, expected, known=False)
            self._rest()

        self._attempt(call, ended, ATTEMPTS_MAX)

    def _get(self, key: str) -> None:
        called = self.world.now

        def ended(outcome: Outcome, maybe: bool) -> None:
            if isinstance(outcome, State):
                entry = outcome.kv.get(key)
                value = None if entry is None else json.loads(entry.value)
                self._versions[key] = (value, 0 if entry is None else entry.version)
                self._epoch = outcome.epoch
                self._note(Act.GET, key, called, value)
            self._rest()

        self._attempt(lambda host, done: host.barrier(done), ended, ATTEMPTS_MAX)

    def _claim(self, key: str) -> None:
        command = ClaimConductor(
            keeper=self._chance.choice(tuple(self.hosts)),
            expected_epoch=self._epoch,
            at_ms=self.checks.stamp(),
        )
        self._once(command)

    def _tick(self, key: str) -> None:
        self._once(Tick(epoch=self._epoch - (self._chance.random() < 0.3), at_ms=self.checks.stamp()))

    def _started(self, key: str) -> None:
        name = self._chance.choice(tuple(self.hosts))
        self._once(KeeperStarted(keeper=name, api=f"http://{name}", version=1, at_ms=self.checks.stamp()))

    def _once(self, command: Command) -> None:
        """A command without a request id: never again if it may have happened."""

        def ended(outcome: Outcome, maybe: bool) -> None:
            if isinstance(outcome, Applied) and not outcome.rejected:
                self.checks.acknowledged(self._keeper, command)
            self._rest()

        self._attempt(lambda host, done: host.propose(command, done), ended, 1)

    # --- how it asks -----------------------------------------------------------------------------

    def _attempt(
        self, call: Call, ended: Callable[[Outcome, bool], None], left: int, *, maybe: bool = False
    ) -> None:
        """Ask a keeper; again, perhaps another, while `left` lasts. `maybe`: an earlier attempt may count."""
        name = self._choose()
        answered = False

        def answer(outcome: Outcome) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            if not isinstance(outcome, FedKeeperError):
                self._keeper = name
                ended(outcome, maybe)
                return
            self._keeper = ""
            now_maybe = maybe or not outcome.definite
            if left <= 1:
                ended(outcome, now_maybe)
                return
            self.world.after(
                self._chance.uniform(0.01, 0.1),
                lambda: self._attempt(call, ended, left - 1, maybe=now_maybe),
            )

        host = self.hosts[name]
        self.world.after(self._chance.uniform(0.0, 0.003), lambda: call(host, answer))
        self.world.after(PATIENCE_S, lambda: answer(TimeUp(f"{name} did not answer")))

    def _choose(self) -> str:
        """Whoever answered last, whoever says that it leads, or anybody."""
        leading = [name for name, host in self.hosts.items() if host.leads()]
        roll = self._chance.random()
        if self._keeper and roll < 0.7:
            return self._keeper
        if leading and roll < 0.9:
            return self._chance.choice(leading)
        return self._chance.choice(tuple(self.hosts))

    def _note(
        self,
        act: Act,
        key: str,
        called: float,
        value: Any = None,
        expected: Any = None,
        *,
        done: bool = True,
        known: bool = True,
    ) -> None:
        self.history.append(
            Operation(
                client=self.name,
                key=key,
                act=act,
                called=called,
                ended=self.world.now if known else None,
                value=value,
                expected=expected,
                done=done,
            )
        )

    def _request(self) -> str:
        return f"{self.name}/{self._count}"


class TimeUp(FedKeeperError):
    """The client gave up waiting: it does not know."""

    definite = False


def histories(clients: Sequence[Client]) -> list[Operation]:
    """Of all clients together."""
    return [operation for client in clients for operation in client.history]
