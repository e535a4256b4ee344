"""Whenever the power goes, or the process is killed: what was promised is there, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkeeper.errors import JournalDamaged
from fedkeeper.replication.raft.simulated_disk import SimulatedDisk
from tests.replication.raft.lives import SCRIPT, Life, Step, live, on_a_new_disk

SEEDS = 12


def _operations() -> int:
    life = on_a_new_disk(0)
    live(life, SCRIPT)
    return life.platter.operations


def outlive_every_cut(*, fsync: bool = True, seeds: int = SEEDS) -> None:
    """The power is cut in each operation; what is on the disk then is drawn anew for each seed."""
    for number in range(1, _operations() + 1):
        for seed in range(seeds):
            life = on_a_new_disk(seed, fsync=fsync)
            life.platter.cut_at = number
            live(life, SCRIPT)


def test_the_power_may_be_cut_in_any_operation():
    """Of a life with every kind of write in it."""
    assert _operations() > 60
    outlive_every_cut()


def test_the_process_may_be_killed_after_any_operation_and_the_power_cut_after_the_restart():
    """What the restarted process found is there to stay, although the killed one had not synced it."""
    for number in range(1, _operations() + 1):
        for seed in range(SEEDS // 2):
            life = on_a_new_disk(seed)
            life.platter.kill_at = number
            life.platter.cut_at = number + 1 + seed * 3
            live(life, SCRIPT)


@pytest.mark.parametrize("forgotten", ["journal", "journal.new", "snapshot.new", "folder"])
def test_each_fsync_is_needed(monkeypatch, forgotten):
    """Without any one of them the same lives lose what was promised."""
    sync = SimulatedDisk.sync

    def forgetful(disk: SimulatedDisk, path: Path) -> None:
        if re.sub(r"\.\d+", "", path.name) != forgotten:
            sync(disk, path)

    monkeypatch.setattr(SimulatedDisk, "sync", forgetful)
    if forgotten == "folder":
        monkeypatch.setattr(SimulatedDisk, "sync_folder", lambda disk, folder: None)
    with pytest.raises((AssertionError, JournalDamaged)):
        outlive_every_cut()


def test_without_fsync_a_cut_loses_what_was_acknowledged():
    """Which is what `fsync: off` says, and what a simulation with a simulated disk finds."""
    with pytest.raises((AssertionError, JournalDamaged)):
        outlive_every_cut(fsync=False)


steps = st.one_of(
    st.builds(lambda n: lambda life: life.add(n), st.integers(1, 4)),
    st.builds(lambda n: lambda life: life.add(1, n), st.integers(0, 2000)),
    st.builds(lambda name: lambda life: life.vote(name), st.sampled_from([None, "k1", "k2"])),
    st.builds(lambda n: lambda life: life.cut(n), st.integers(1, 4)),
    st.builds(lambda n: lambda life: life.hear_of_commit(n), st.integers(1, 5)),
    st.builds(lambda n: lambda life: life.install(n), st.integers(0, 6)),
    st.sampled_from([Life.sync, Life.sync, Life.sync, Life.compact, Life.restart, Life.kill]),
)


@settings(max_examples=250, deadline=None)
@given(
    life=st.lists(steps, max_size=30),
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(1, 40), max_size=6),
)
def test_any_life_goes_on_through_cuts_and_kills(life, seed, cuts):
    """The power is cut so many operations after the last time, over and over; kills are among the steps."""
    keeper = on_a_new_disk(seed)
    waits = iter(cuts)

    def next_cut(_: Life) -> None:
        if keeper.platter.operations >= keeper.platter.cut_at:
            keeper.platter.cut_at = keeper.platter.operations + next(waits, 10**9)

    taken: list[Step] = [lambda life: life.join()]
    for step in life:
        taken += [next_cut, step]
    live(keeper, taken)
