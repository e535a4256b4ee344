"""Keepers on hosts of their own: each with its own config and folder, here all on one machine's loopback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.replication.raft.membership import FAREWELL_S
from tests.e2e.lab import Lab, kill, status, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECRET = "only-for-these-tests-0123456789"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Hosts:
    """k1, k2, k3 of an experiment, and k4 that may come later; a folder each, and one for the commands."""

    def __init__(self, folder: Path, shared: Path) -> None:
        ports = free_ports(8)
        self.members = {
            f"k{number}": {
                "raft": f"127.0.0.1:{ports[2 * number - 2]}",
                "api": f"http://127.0.0.1:{ports[2 * number - 1]}",
            }
            for number in (1, 2, 3, 4)
        }
        self.labs = {name: Lab(folder=folder / name, shared=shared) for name in self.members}
        self.desk = Lab(folder=folder / "desk", shared=shared)
        for name, lab in self.labs.items():
            known = self.members if name == "k4" else self.first_three()
            self._write(lab, known, data_dir=str(lab.folder / "data"))
        self._write(self.desk, self.first_three())
        self.running: dict[str, subprocess.Popen[str]] = {}

    def first_three(self) -> dict[str, Any]:
        return {name: one for name, one in self.members.items() if name != "k4"}

    def _write(self, lab: Lab, members: dict[str, Any], **keepers: Any) -> None:
        section = {"members": members, "secret": SECRET, "timing": "patient", **keepers}
        logs = {"folder": str(self.desk.folder / "logs")}
        lab.write("hosts", keepers=section, logs=logs, learning={"stopping": {"rounds_max": 3}})

    def start(self, *names: str) -> None:
        """Run these keepers, each as `main.py -k` on its own host would be."""
        for name in names:
            self.running[name] = self.labs[name].start("-k", name, into="keeper")

    def status(self) -> dict[str, Any]:
        """What the keepers say, once they have a leader."""
        found: list[dict[str, Any]] = []

        def known() -> bool:
            said = [status(self.members[name]["api"]) for name in self.running]
            found[:] = [one for one in said if one is not None and one["leader"] and one["conductor"]]
            return bool(found)

        until(known, f"a leader: { {name: lab.said('keeper')[-500:] for name, lab in self.labs.items()} }")
        return max(found, key=lambda one: int(one["applied_index"]))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> dict[str, int]:
        """End all keepers; their exit codes."""
        for process in self.running.values():
            process.send_signal(how)
        codes = {name: process.wait(60) for name, process in self.running.items()}
        self.running.clear()
        return codes


@pytest.fixture(scope="module")
def hosts(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """The three keepers, up."""
    made = Hosts(tmp_path_factory.mktemp("hosts"), shared)
    made.start("k1", "k2", "k3")
    yield made
    made.stop(signal.SIGKILL)


def test_a_run_is_submitted_from_anywhere(hosts: Hosts, calm: str):
    """The command needs the keepers' addresses only; Ctrl-C leaves the run to them."""
    command = hosts.desk.start()
    until(lambda: "round 1/3 started" in hosts.desk.said(), "the first round")
    assert kill(command, signal.SIGINT) == 130
    assert "leaving: the run goes on" in hosts.desk.said()
    seen = hosts.desk.run(program="attach")
    assert seen.returncode == 0, seen.stdout
    assert hosts.desk.weights_hash("hosts-1") == calm


def test_a_handover_in_mid_round_costs_no_activation(hosts: Hosts, calm: str):
    """By hand, to each in turn; `--auto` gives the choice back."""
    command = hosts.desk.start(into="handed")
    for number, line in ((1, "round 1/3 started"), (2, "round 2/3 started"), (3, "round 3/3 started")):
        until(lambda line=line: line in hosts.desk.said("handed"), line)
        done = hosts.desk.run(f"k{number}", program="handover")
        assert done.returncode == 0, done.stdout
        assert f"k{number} conducts (by hand" in done.stdout
    assert command.wait(120) == 0, hosts.desk.said("handed")
    assert hosts.desk.weights_hash("hosts-2") == calm
    attempts = hosts.desk.rows("hosts-2", "activations")
    assert len(attempts) == 1 + 3 * 5
    assert {row["attempt"] for row in attempts} == {"0"}
    assert hosts.desk.run("--auto", program="handover").returncode == 0


def test_the_dictionary_is_the_same_everywhere(hosts: Hosts):
    """Written through one keeper, read through the others."""
    desk = hosts.desk
    done = desk.run("set", "lr", "0.05", program="dict")
    assert done.returncode == 0, done.stdout
    assert desk.run("get", "lr", program="dict").stdout == "0.05\n"
    assert "found version 1" in desk.run("set", "lr", "0.1", "--expected", "0", program="dict").stdout
    assert desk.run("delete", "lr", program="dict").returncode == 0
    assert desk.run("get", "lr", program="dict").returncode == 1


def test_all_of_them_stop_and_come_back_from_disk(hosts: Hosts, calm: str):
    """In order (exit code 0), in mid-run; what began before goes on, and ends with the same weights."""
    command = hosts.desk.start(into="stopped")
    until(lambda: "round 2/3 started" in hosts.desk.said("stopped"), "the second round")
    assert hosts.stop() == {"k1": 0, "k2": 0, "k3": 0}
    hosts.start("k1", "k2", "k3")
    assert command.wait(150) == 0, hosts.desk.said("stopped")
    assert hosts.desk.weights_hash("hosts-3") == calm


def test_a_keeper_joins_and_another_one_leaves(hosts: Hosts):
    """`keeper add` and `keeper remove`: each is confirmed, the removed one stops by itself and says why."""
    hosts.start("k4")
    until(lambda: status(hosts.members["k4"]["api"]) is not None, "k4 to listen")
    added = hosts.desk.run("add", "k4", hosts.members["k4"]["raft"], program="keeper")
    assert added.returncode == 0, added.stdout
    until(lambda: "k4" in hosts.status()["members"], "k4 to be a member")
    removed = hosts.desk.run("remove", "k1", program="keeper")
    assert removed.returncode == 0, removed.stdout
    assert hosts.running.pop("k1").wait(60) == 1
    assert "removed" in hosts.labs["k1"].said("keeper")
    seen = hosts.desk.run("--json", program="status")
    assert seen.returncode == 0, (seen.returncode, seen.stdout)
    told = json.loads(seen.stdout)
    assert sorted(told["status"]["members"]) == ["k2", "k3", "k4"]
    assert told["majority"] is True


def test_a_keeper_that_was_removed_while_it_was_down_is_told_when_it_comes_back(hosts: Hosts):
    """Nobody remembers it any more, and nobody lets it connect: it asks the others' APIs, and stops."""
    kill(hosts.running.pop("k2"))
    removed = hosts.desk.run("remove", "k2", program="keeper")
    assert removed.returncode == 0, removed.stdout
    forgotten = time.monotonic() + FAREWELL_S + 1
    until(lambda: time.monotonic() > forgotten, "the others to have forgotten it")
    hosts.start("k2")
    assert hosts.running.pop("k2").wait(60) == 1
    assert "k2 was removed from the cluster while it was away" in hosts.labs["k2"].said("keeper")


def test_an_unsafe_keeper_is_not_started(hosts: Hosts, tmp_path: Path):
    """Off loopback without a secret: every reason at once, and nothing listens."""
    lab = Lab(folder=tmp_path, shared=hosts.desk.shared)
    here = {"raft": "127.0.0.1:7000", "raft_bind": "0.0.0.0:7000", "api": "http://127.0.0.1:7001"}
    lab.write("open", keepers={"members": {"k1": here}})
    refused = lab.run("-k", "k1")
    assert refused.returncode == 2
    assert "keepers.secret: is missing, and 0.0.0.0:7000 is not loopback" in refused.stdout
