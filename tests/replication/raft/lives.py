"""What a keeper does with its storage, and a plain model that says what may be on disk after each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedkeeper.replication.raft.simulated_disk import Platter, PowerCut, SimulatedDisk
from fedkeeper.replication.raft.snapshots import Entry, Snapshot
from fedkeeper.replication.raft.storage import Storage

FOLDER = Path("/data/k1")


@dataclass(frozen=True)
class Known:
    """What a keeper knows; equal before and after a restart."""

    cluster: str = ""
    newcomer_until: int = 0
    term: int = 0
    voted: str | None = None
    log: tuple[Entry, ...] = ()  # the whole of it, from entry 1
    base: int = 0  # the snapshot's last entry

    @property
    def first(self) -> int:
        """Of the entries that are kept."""
        return self.base - 1 if self.base else 1


def state_after(log: tuple[Entry, ...]) -> bytes:
    """Of the machine: every command, in order."""
    return b",".join(command for command, _, _ in log)


def holds(storage: Storage, known: Known) -> bool:
    """Whether `storage` holds that, and nothing else."""
    snapshot = storage.snapshot()
    identity = storage.identity
    return (
        (identity.cluster, identity.newcomer_until) == (known.cluster, known.newcomer_until)
        and (storage.getCurrentTerm(), storage.getVotedForNodeId()) == (known.term, known.voted)
        and tuple(storage[:]) == known.log[known.first - 1 :]
        and (snapshot.index if snapshot else 0) == known.base
        and (snapshot is None or snapshot.state == state_after(known.log[: known.base]))
        and max(1, known.base) <= storage.getRaftCommitIndex() <= max(1, len(known.log))
        and storage.durable_index == len(known.log)
        and not storage.dirty
    )


@dataclass
class Life:
    """One keeper on a simulated disk, and what it may find there after a crash."""

    platter: Platter
    fsync: bool = True
    known: Known = field(default_factory=Known)  # in memory
    possible: list[Known] = field(default_factory=lambda: [Known()])  # the first: what was promised
    commit: int = 1
    serial: int = 0
    incarnation: str = ""
    disk: SimulatedDisk = field(init=False)
    storage: Storage = field(init=False)

    def start(self) -> None:
        """Open the folder; what is there must be what was promised, or what was under way as a whole."""
        self.disk = SimulatedDisk(self.platter)
        self.storage = Storage(FOLDER, disk=self.disk, fsync=self.fsync, owner="k1")
        found = [known for known in self.possible if holds(self.storage, known)]
        assert found, f"lost or invented: {vars(self.storage)} is none of {self.possible}"
        self.known = found[-1]
        self.possible = [self.known]
        assert self.storage.getRaftCommitIndex() <= self.commit
        self.commit = self.storage.getRaftCommitIndex()
        if self.known.cluster:
            assert self.storage.identity.incarnation == self.incarnation
        self.incarnation = self.storage.identity.incarnation

    def restart(self) -> None:
        """Stopped in good order."""
        self._attempt(self.storage.close, self.known)
        self.start()

    def kill(self) -> None:
        """What it had not written is lost, and nothing else."""
        self.disk.close()
        self.start()

    def sync(self) -> None:
        """From here on, all that is known is promised."""
        self._attempt(self.storage.sync, self.known)

    def join(self, newcomer_until: int = 0) -> None:
        """Of cluster "c"."""
        self.known = replace(self.known, cluster="c", newcomer_until=newcomer_until)
        self._attempt(lambda: self.storage.join("c", {"k1": ""}, newcomer_until=newcomer_until), self.known)

    def catch_up(self) -> None:
        """If it is a newcomer and has what it misses."""
        if 0 < self.known.newcomer_until <= len(self.known.log):
            self.known = replace(self.known, newcomer_until=0)
            self._attempt(self.storage.caught_up, self.known)

    def add(self, count: int, size: int = 0) -> None:
        """Entries, which nobody is told of before `sync`."""
        for _ in range(count):
            self.serial += 1
            new = (b"%d:" % self.serial + b"x" * size, len(self.known.log) + 1, self.known.term)
            self.known = replace(self.known, log=(*self.known.log, new))
            self.storage.add(*new)

    def vote(self, name: str | None) -> None:
        """In a new term."""
        self.known = replace(self.known, term=self.known.term + 1, voted=name)
        self.storage.setCurrentTerm(self.known.term, name)

    def cut(self, count: int) -> None:
        """Another leader has other entries: never instead of committed ones."""
        keep = max(self.commit, len(self.known.log) - count)
        self.known = replace(self.known, log=self.known.log[:keep])
        self.storage.deleteEntriesFrom(keep + 1 - self.known.first)

    def hear_of_commit(self, count: int) -> None:
        """Only of what is on disk here."""
        self.commit = max(self.commit, min(self.commit + count, len(self.possible[0].log)))
        self.commit = min(self.commit, max(1, len(self.known.log)))
        self.storage.setRaftCommitIndex(self.commit)

    def compact(self) -> None:
        """All that is committed goes into a snapshot."""
        log = self.known.log[: self.commit]
        if not self.known.cluster or len(log) < 2 or self.commit <= self.known.base:
            return
        before, self.known = self.known, replace(self.known, base=self.commit)
        self._attempt(
            lambda: self.storage.save_snapshot(state_after(log), (log[-2], log[-1]), {"k1": ""}),
            before,
            self.known,
        )

    def install(self, beyond: int) -> None:
        """A leader's snapshot: it ends beyond this log, or within it, with entries of another term."""
        if not self.known.cluster:
            return
        self.vote(None)
        self.serial += 1
        index = max(self.commit + 1, len(self.known.log) - 2 + beyond)
        log = self.known.log[: self.commit]
        log += tuple(
            (b"l%d-%d" % (self.serial, number), number, self.known.term)
            for number in range(len(log) + 1, index + 1)
        )
        if len(log) < 2:
            return
        data = Snapshot(
            cluster="c", previous=log[-2], last=log[-1], members={}, state=state_after(log)
        ).encode()
        before, self.known = self.known, replace(self.known, log=log, base=index)
        self.commit = index
        self._attempt(lambda: self.storage.install_snapshot(data, "k2"), before, self.known)

    def _attempt(self, act: Callable[[], object], *possible: Known) -> None:
        """Act; if it is interrupted, any of `possible` may be found, and what was promised before."""
        self.possible.extend(possible)
        act()
        self.possible = [self.known]


Step = Callable[[Life], None]

SCRIPT: list[Step] = [  # every kind of write, each after each that matters
    lambda life: life.join(newcomer_until=4),
    lambda life: life.add(1),
    lambda life: life.vote("k1"),
    lambda life: life.add(2),
    Life.sync,
    lambda life: life.hear_of_commit(2),
    lambda life: life.add(1, 1500),
    lambda life: life.vote("k2"),
    Life.sync,
    Life.catch_up,
    lambda life: life.cut(2),
    lambda life: life.vote(None),
    lambda life: life.add(3),
    Life.sync,
    lambda life: life.hear_of_commit(1),
    lambda life: life.add(1),
    Life.compact,
    lambda life: life.add(2),
    Life.kill,
    lambda life: life.add(2, 700),
    Life.sync,
    Life.restart,
    lambda life: life.install(1),
    lambda life: life.add(2),
    Life.sync,
    lambda life: life.install(6),
    lambda life: life.vote("k3"),
    lambda life: life.add(3),
    Life.sync,
    lambda life: life.hear_of_commit(2),
    Life.compact,
    lambda life: life.cut(1),
    lambda life: life.add(1),
    Life.restart,
]


def live(life: Life, steps: list[Step]) -> None:
    """Take the steps, through kills and cuts; at the end the power is cut once more."""
    _until_it_starts(life)
    for step in steps:
        try:
            step(life)
        except PowerCut:
            _until_it_starts(life)
    life.platter.cut_power()
    _until_it_starts(life)


def _until_it_starts(life: Life) -> None:
    while True:
        try:
            life.start()
        except PowerCut:
            continue
        return


def on_a_new_disk(seed: int, *, fsync: bool = True) -> Life:
    """A keeper whose folder is empty."""
    return Life(Platter(seed), fsync=fsync)
