"""Without any one of our guards PySyncObj's fault is there again, and a test notices."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from tests.replication.raft.guarding import Guard
from tests.replication.raft.guards import DISK_GUARDS, NODE_GUARDS
from tests.replication.raft.guards_network import NETWORK_GUARDS

GUARDS = (*NODE_GUARDS, *DISK_GUARDS, *NETWORK_GUARDS)


def _run(guard: Guard) -> None:
    running = guard.behaviour()
    if inspect.iscoroutine(running):
        asyncio.run(running)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.fault)
def test_the_behaviour_holds_with_the_guard_and_breaks_without(guard: Guard) -> None:
    """The scenario is the same; only the guard is gone."""
    _run(guard)
    with guard.without(), pytest.raises(guard.breaks, match=guard.match):
        _run(guard)
