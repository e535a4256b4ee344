"""The dictionary of three real keepers, through their HTTP API, while they are killed, frozen and cut off.

    python -m tests.linearizability_keepers --minutes 2 [--seed S] [--faults kill,freeze,partition]

Clients get, set, compare-and-set and delete with KeeperClient, each beginning at a keeper of its own. The
keepers are `main.py -k`, with mongod and fabric, on loopback. A partition lets no packet pass between one
keeper and the others, in both directions or in one; the API stays in the clients' reach, so that a deposed
leader is asked as well. That takes a network namespace, hence root: without it, the run says so and leaves
partitions out. At the end, when all is whole again, every client reads every key.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.lab import KeeperProcess, Lab, LabError, cut_off, heal, in_own_network, wait_for
from benchmarks.moments import ready
from fedkeeper.errors import FedKeeperError, NotThere, Rejected
from fedkeeper.keeper.client import KeeperClient
from tests.linearizability import Act, Operation, check

FAULTS = ("kill", "freeze", "partition")
CLIENTS = 9
KEYS = ("x", "y", "z")
ERA_S = 10.0  # then new keys are used: a search takes longer, the longer a key's history is
CALL_S = 4.0  # limit of one call
SNAPSHOT_EVERY = 200  # commands: so that the log is cut many times


class Client(threading.Thread):
    """One operation after the other; what it saw is in `history`."""

    def __init__(self, name: str, apis: Sequence[str], begun: float, ending: threading.Event) -> None:
        super().__init__(name=name)
        self.history: list[Operation] = []
        self.failed = 0  # calls that certainly had no effect
        self._apis = apis
        self._begun = begun
        self._ending = ending
        self._chance = random.Random(name)  # noqa: S311 - no secret
        self._known: dict[str, tuple[str | None, int]] = {}  # last read: value and version

    def run(self) -> None:
        """Until the end is near; and then read all there is."""
        number = 0
        with KeeperClient(self._apis, timeout_s=CALL_S) as client:
            while not self._ending.is_set():
                number += 1
                key = f"{self._chance.choice(KEYS)}{int((time.monotonic() - self._begun) / ERA_S)}"
                act = Act(self._chance.choice(("get", "get", "put", "cas", "cas", "delete")))
                self._one(client, key, act, f"{self.name}-{number}")
                self._ending.wait(0.03 * self._chance.random())

    def read_all(self) -> None:
        """Every key, once all keepers are well."""
        with KeeperClient(self._apis, timeout_s=30.0) as client:
            for era in range(int((time.monotonic() - self._begun) / ERA_S) + 1):
                for key in KEYS:
                    self._one(client, f"{key}{era}", Act.GET, "")

    def _one(self, client: KeeperClient, key: str, act: Act, value: str) -> None:
        expected, version = self._known.get(key, (None, 0))
        called = time.monotonic()
        operation = Operation(
            client=self.name,
            key=key,
            act=act,
            called=called,
            ended=None,
            value=value,
            expected=expected if act is Act.CAS else None,
        )
        try:
            seen, done = _call(client, key, act, value, version)
        except FedKeeperError as exc:
            if exc.definite or act is Act.GET:
                self.failed += 1
            else:
                self.history.append(operation)
            return
        ended = time.monotonic()
        if act is Act.GET:
            self._known[key] = seen
            operation = replace(operation, value=seen[0])
        self.history.append(replace(operation, ended=ended, done=done))


def _call(
    client: KeeperClient, key: str, act: Act, value: str, version: int
) -> tuple[tuple[str | None, int], bool]:
    """What was read (value and version; nothing is version 0), and whether it was done."""
    nothing: tuple[str | None, int] = (None, 0)
    try:
        match act:
            case Act.GET:
                read = client.read(key)
                return (read.value, read.version), True
            case Act.PUT:
                client.set(key, value)
            case Act.CAS:
                client.compare_and_set(key, value, version)
            case Act.DELETE:
                client.delete(key)
    except NotThere:
        return nothing, act is Act.GET
    except Rejected:
        return nothing, False
    return nothing, True


class Faults:
    """Does one thing after the other to the keepers, oftener to the leader than to others."""

    def __init__(self, lab: Lab, kinds: Sequence[str], seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._lab = lab
        self._kinds = kinds
        self._chance = random.Random(seed)  # noqa: S311 - no secret

    def go_on(self, until: float) -> None:
        """Until then (monotonic)."""
        while time.monotonic() < until:
            time.sleep(self._chance.uniform(0.5, 1.5))
            kind = self._chance.choice(self._kinds)
            count = self._chance.choice((1, 1, 1, 1, 2, 3))
            with contextlib.ExitStack() as stack:
                for victim in self._victims(count):
                    self.done[kind] += 1
                    stack.enter_context(self._harmed(kind, victim))
                if kind != "kill":
                    time.sleep(self._chance.choice((0.1, 0.5, 1.5 * self._lab.lease_s, 2.0)))
            if kind == "kill":  # or hardly anything but starting would be seen
                wait_for(lambda: ready(self._lab), "the keepers to be up again", every_s=0.05)

    def _victims(self, count: int) -> list[KeeperProcess]:
        keepers = self._chance.sample(self._lab.keepers, len(self._lab.keepers))
        if self._chance.random() < 0.5:
            status = self._lab.status()
            leader = status["leader"] if status is not None else ""
            keepers.sort(key=lambda one: one.name != leader)
        return keepers[:count]

    @contextlib.contextmanager
    def _harmed(self, kind: str, victim: KeeperProcess) -> Iterator[None]:
        if kind == "partition":
            others = [one.host for one in self._lab.keepers if one is not victim]
            cut_off(victim.host, others, directions=self._chance.choice(("both", "both", "from", "to")))
        else:
            victim.signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        try:
            yield
        finally:
            if kind == "partition":
                heal()
            elif kind == "kill":
                victim.start()
            else:
                victim.signal(signal.SIGCONT)


def run(
    folder: Path, *, seconds: float, seed: int, kinds: Sequence[str]
) -> tuple[list[Operation], int, Counter[str]]:
    """The history of all clients, how many calls certainly had no effect, and what faults there were."""
    lab = Lab(folder, keepers_changes={"snapshot_every": SNAPSHOT_EVERY})
    with lab.opened():
        wait_for(lambda: ready(lab), "all keepers to be up", every_s=0.05)
        begun, ending = time.monotonic(), threading.Event()
        urls = [keeper.api for keeper in lab.keepers]
        clients = [
            Client(f"c{n}", urls[n % len(urls) :] + urls[: n % len(urls)], begun, ending)
            for n in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        faults = Faults(lab, kinds, seed)
        try:
            faults.go_on(begun + seconds)
        finally:
            ending.set()
            for client in clients:
                client.join(10 * CALL_S)
        wait_for(lambda: ready(lab), "all keepers to be up at the end", every_s=0.05)
        for client in clients:
            client.read_all()
    history = [one for client in clients for one in client.history]
    return history, sum(client.failed for client in clients), faults.done


def main() -> int:
    """Return 0 if the history is linearizable."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.linearizability_keepers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join(FAULTS))
    chosen = parser.parse_args()
    kinds = chosen.faults.split(",")
    if "partition" in kinds:
        try:
            in_own_network()
        except LabError as exc:
            print(f"without partitions: {exc}", flush=True)
            kinds.remove("partition")
    with tempfile.TemporaryDirectory(prefix="linearizability") as folder:
        history, failed, done = run(Path(folder), seconds=chosen.minutes * 60, seed=chosen.seed, kinds=kinds)
    unknown = sum(one.ended is None for one in history)
    faults = ", ".join(f"{done[kind]} {kind}" for kind in kinds)
    print(
        f"{len(history)} operations of {CLIENTS} clients over HTTP ({unknown} of unknown outcome, {failed} "
        f"more that failed); faults: {faults}",
        flush=True,
    )
    check(history)
    print("linearizable")
    return 0


if __name__ == "__main__":
    sys.exit(main())
