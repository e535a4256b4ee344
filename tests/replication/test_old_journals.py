"""What earlier versions wrote is read, and decided alike; see journals/README.md."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fedkeeper.core.machine import apply
from fedkeeper.core.model import Phase, State
from fedkeeper.core.persistent import thawed
from fedkeeper.replication import codec
from fedkeeper.replication.raft.disk import FolderDisk
from fedkeeper.replication.raft.library import REGULAR
from fedkeeper.replication.raft.proposals import parts
from fedkeeper.replication.raft.storage import Storage
from tests.sim.simulation import Simulation

FOLDER = Path(__file__).parent / "journals"
SEEDS = range(60)  # of the simulations of which one is written


@pytest.mark.parametrize(
    "folder", sorted(path for path in FOLDER.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_an_old_journal_comes_to_the_same_state(tmp_path, folder):
    """Read with its snapshot and applied; a field that has been added since has its default."""
    shutil.copytree(folder, tmp_path / "log")
    expected = json.loads((folder / "state.json").read_bytes())
    codec.decode_state(json.dumps(expected).encode(), place="state.json")  # it can be read, too
    read = _of_one_keeper if (folder / "journal.jsonl").exists() else _of_a_cluster
    state, lines = read(tmp_path / "log")
    for line in lines:
        state = apply(state, codec.decode(line)).state
    now = msgspec.to_builtins(state, enc_hook=thawed)
    del expected["kind"], expected["v"]
    assert _as_far_as(expected, now) == expected


def _of_one_keeper(folder: Path) -> tuple[State, Iterator[bytes]]:
    """What version 1 wrote: lines of `crc32 seq first json`."""
    state, seen = State(), 0
    if (folder / "snapshot.json").exists():
        _, seq, _, payload = (folder / "snapshot.json").read_bytes().rstrip(b"\n").split(b" ", 3)
        state, seen = codec.decode_state(payload), int(seq)
    records = [line.split(b" ", 3) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    return state, (payload for _, seq, _, payload in records[1:] if int(seq) > seen)


def _of_a_cluster(folder: Path) -> tuple[State, Iterator[bytes]]:
    """What keepers write since version 2: the files of a Raft node."""
    storage = Storage(folder, disk=FolderDisk(), fsync=False, owner="k1")
    snapshot = storage.snapshot()
    state = State() if snapshot is None else codec.decode_state(snapshot.state)
    entries = [entry for entry, index, _ in storage[:] if index > storage.snapshot_index]
    storage.close()
    bodies = (parts(entry)[1] for entry in entries if entry[0] == REGULAR)
    return state, (line for body in bodies for line in codec.decode_batch(body))


def _as_far_as(old: object, new: object) -> object:
    """What `new` says of what `old` says something of: a field that has been added since is left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _as_far_as(old.get(key, value), value) for key, value in new.items() if key in old}
    if isinstance(old, list) and isinstance(new, (list, tuple)) and len(old) == len(new):
        return [_as_far_as(*pair) for pair in zip(old, new, strict=True)]
    return new


def test_there_is_a_journal():
    """An empty folder would pass."""
    assert any(path.is_dir() for path in FOLDER.iterdir())


def _eventful() -> Simulation:
    """Of some simulations, the one with the most kinds of commands, answers and ends."""
    sims = [Simulation(seed) for seed in SEEDS]
    for sim in sims:
        sim.run()

    def worth(sim: Simulation) -> tuple[int, int]:
        kinds = {json.loads(line)["kind"] for line in sim.lines}
        finished = any(run.phase is Phase.FINISHED for run in sim.state.runs.values())
        return (10 * finished * len(kinds) + len(sim.rejected), len(sim.lines))

    return max(sims, key=worth)


def _write(folder: Path, *, snapshot: bool) -> None:
    sim, state = _eventful(), State()
    storage = Storage(folder, disk=FolderDisk(), fsync=False, owner="k1", incarnation=lambda: "of-the-test")
    storage.join("of-the-test", {"k1": "127.0.0.1:47001"})
    storage.add(b"\x01", 1, 0)
    for number, line in enumerate(sim.lines, 2):
        storage.add(b"%c%b\n%b" % (REGULAR, b"k1.%d" % number, codec.encode_batch([line])), number, 1)
        state = apply(state, codec.decode(line)).state
        if snapshot and number == len(sim.lines) // 2:
            last = storage[-2:]
            storage.save_snapshot(codec.encode_state(state), (last[0], last[1]), {"k1": "127.0.0.1:47001"})
    storage.close()
    (folder / "lock").unlink()
    (folder / "state.json").write_text(json.dumps(json.loads(codec.encode_state(state)), indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


if __name__ == "__main__":
    _write(FOLDER / sys.argv[1], snapshot=False)
    _write(FOLDER / f"{sys.argv[1]}-with-snapshot", snapshot=True)
