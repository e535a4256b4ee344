"""What the commands do with the keepers, against a keeper's real API."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from fedkeeper.errors import RunChanged
from fedkeeper.keeper.api.schemas import RunSummary
from fedkeeper.keeper.client import KeeperClient
from fedkeeper.wiring.cluster import ClusterSession
from tests.keeper.lab import Lab, open_lab
from tests.wiring.test_submitting import experiment

HERE = {
    "keepers": {"embedded": False, "members": {"k1": {"raft": "127.0.0.1:1", "api": "http://127.0.0.1:2"}}}
}


class Together(KeeperClient):
    """Asks for the runs at the same time as the other command, the first time."""

    def __init__(self, lab: Lab, meet: threading.Barrier) -> None:
        super().__init__(lab.urls, timeout_s=20.0)
        self.asked = 0
        self._meet = meet

    def runs(self) -> tuple[RunSummary, ...]:
        """As ever."""
        found = super().runs()
        self.asked += 1
        if self.asked == 1:
            self._meet.wait(20)
        return found


def session_of(folder: Path, client: KeeperClient, **changes: object) -> ClusterSession:
    """Of a command that was given this config."""
    folder.mkdir(exist_ok=True)
    return ClusterSession(
        experiment=experiment(folder, HERE | changes), client=client, keepers=None, stack=AsyncExitStack()
    )


@pytest.mark.parametrize("changes", [{}, {"seed": 9}], ids=["the same config", "another one"])
async def test_two_new_runs_at_once_get_a_name_each(tmp_path: Path, changes: dict[str, object]):
    """Both have seen the same runs, and choose the same name: the second one takes the next."""
    meet = threading.Barrier(2)
    async with open_lab() as lab:
        clients = [Together(lab, meet), Together(lab, meet)]
        one, two = session_of(tmp_path / "a", clients[0]), session_of(tmp_path / "b", clients[1], **changes)
        begun = await asyncio.gather(one.begin(fresh=False, new=True), two.begin(fresh=False, new=True))
        assert sorted(name for name, _ in begun) == ["small-1", "small-2"]
        assert [run for _, run in begun] == [None, None]
        assert sorted(lab.group.state.runs) == ["small-1", "small-2"]
        assert sorted(client.asked for client in clients) == [1, 2]
        for client in clients:
            client.close()


async def test_two_plain_starts_at_once_share_the_run(tmp_path: Path):
    """The same experiment: the second one goes on with the first one's."""
    meet = threading.Barrier(2)
    async with open_lab() as lab:
        clients = [Together(lab, meet), Together(lab, meet)]
        sessions = [session_of(tmp_path, client) for client in clients]
        begun = await asyncio.gather(*(one.begin(fresh=False, new=False) for one in sessions))
        assert [name for name, _ in begun] == ["small-1", "small-1"]
        assert list(lab.group.state.runs) == ["small-1"]
        for client in clients:
            client.close()


async def test_a_plain_start_with_another_config_is_refused(tmp_path: Path):
    """It would not be the same experiment."""
    meet = threading.Barrier(2)
    async with open_lab() as lab:
        clients = [Together(lab, meet), Together(lab, meet)]
        one, two = session_of(tmp_path / "a", clients[0]), session_of(tmp_path / "b", clients[1], seed=9)
        begun = await asyncio.gather(
            one.begin(fresh=False, new=False), two.begin(fresh=False, new=False), return_exceptions=True
        )
        assert sum(isinstance(result, RunChanged) for result in begun) == 1
        assert list(lab.group.state.runs) == ["small-1"]
        for client in clients:
            client.close()
