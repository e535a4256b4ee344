"""The users' dictionary on real processes that are killed and paused."""

from __future__ import annotations

from tests.linearizability import check
from tests.linearizability_run import run


def test_the_dictionary_is_linearizable_while_keepers_die(tmp_path):
    """Gets, puts, compare-and-sets and deletes of nine clients, with kill -9 and SIGSTOP of any keepers."""
    operations, faults = run(tmp_path, seconds=8.0, seed=1)
    assert faults >= 5
    assert sum(one.ended is not None for one in operations) > 100
    assert check(operations) == len(operations)
