"""What earlier versions wrote is read, and decided alike; see journals/README.md."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from fedkeeper.core.machine import apply
from fedkeeper.core.model import Phase, State
from fedkeeper.replication import codec
from fedkeeper.replication.journal import Journal
from fedkeeper.replication.single import SingleLog
from tests.sim.simulation import Simulation

FOLDER = Path(__file__).parent / "journals"
SEEDS = range(60)  # of the simulations of which one is written


@pytest.mark.parametrize(
    "folder", sorted(path for path in FOLDER.iterdir() if path.is_dir()), ids=lambda path: path.name
)
async def test_an_old_journal_comes_to_the_same_state(tmp_path, folder):
    """Opened as a log, snapshot and all; a field that has been added since has its default."""
    shutil.copytree(folder, tmp_path / "log")
    expected = json.loads((folder / "state.json").read_bytes())
    codec.decode_state(json.dumps(expected).encode(), place="state.json")  # it can be read, too
    async with SingleLog.open(tmp_path / "log") as log:
        now = msgspec.to_builtins(log.state, enc_hook=dict)
    del expected["kind"], expected["v"]
    assert _as_far_as(expected, now) == expected


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
        return (finished * len(kinds) + len(sim.rejected), len(sim.lines))

    return max(sims, key=worth)


def _write(folder: Path, *, snapshot: bool) -> None:
    sim, state = _eventful(), State()
    with closing(Journal(folder)) as journal:
        journal.load(apply)
        for number, line in enumerate(sim.lines):
            journal.append([line])
            state = apply(state, codec.decode(line)).state
            if snapshot and number == len(sim.lines) // 2:
                journal.compact(state)
    (folder / "lock").unlink()
    (folder / "state.json").write_text(json.dumps(json.loads(codec.encode_state(state)), indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


if __name__ == "__main__":
    _write(FOLDER / sys.argv[1], snapshot=False)
    _write(FOLDER / f"{sys.argv[1]}-with-snapshot", snapshot=True)
