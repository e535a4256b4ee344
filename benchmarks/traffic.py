"""What Raft moves per round, next to what the models move: 1, 10, 100 clients; 3, 5, 7 keepers.

    python -m benchmarks.traffic

The commands of real rounds go through real nodes in a network of their own, whose loopback interface
counts every byte (headers, acknowledgements and heartbeats included). A model of 6.65 MB (the padded CNN of
McMahan et al.) goes to each client and comes back: that is the reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.lab import in_own_network
from benchmarks.nodes import Json, cluster, settled
from fedkeeper.core.machine import apply
from fedkeeper.core.model import (
    ClaimConductor,
    ClientPlace,
    Command,
    InvocationSent,
    Kind,
    ObjectRef,
    RoundAggregated,
    RunSpec,
    State,
    SubmitRun,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.replication import codec

MODEL_BYTES = 6_653_480
ROUNDS = 3


def _ref(name: str) -> ObjectRef:
    return ObjectRef(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), nbytes=MODEL_BYTES)


class Script:
    """The commands of a run, made by the machine itself."""

    def __init__(self, clients: int) -> None:
        self.state = State()
        self.clients = clients
        self.steps: list[list[bytes]] = []

    def step(self, commands: list[Command]) -> None:
        """Commands that a conductor proposes at the same time."""
        for command in commands:
            applied = apply(self.state, command)
            assert not applied.rejected, applied.rejected
            self.state = applied.state
        self.steps.append([codec.encode(command) for command in commands])

    def begin(self) -> None:
        """Until the first round has begun."""
        places = tuple(
            ClientPlace(client=f"client_{number}", cluster="ow", route="direct")
            for number in range(self.clients)
        )
        spec = RunSpec(
            run="traffic-1",
            digest="d" * 64,
            seed=0,
            clients=places,
            server_cluster="ow",
            clients_per_round=self.clients,
            rounds_max=ROUNDS,
            target_accuracy=None,
            min_updates=1,
            attempts_max=3,
            client_timeout_ms=300_000,
            server_timeout_ms=300_000,
            round_timeout_ms=0,
            retry_backoff_ms=1_000,
        )
        self.step([ClaimConductor(keeper="k1", expected_epoch=self.state.epoch, at_ms=1)])
        self.step([SubmitRun(spec=spec, at_ms=2)])
        key = next(iter(self.state.runs["traffic-1"].outbox))
        self.step([InvocationSent(key=key, activation_id="a" * 32, epoch=self.state.epoch, at_ms=3)])
        samples = {place.client: 600 for place in places}
        made = WeightsInitialised(
            key=key, weights=_ref("traffic-1/w0"), samples=samples, epoch=self.state.epoch, at_ms=4
        )
        self.step([made])

    def round(self) -> None:
        """One round: sent, updated, aggregated."""
        run, epoch = self.state.runs["traffic-1"], self.state.epoch
        keys = [key for key, one in run.outbox.items() if one.kind is Kind.TRAIN]
        self.step([InvocationSent(key=key, activation_id="a" * 32, epoch=epoch, at_ms=5) for key in keys])
        self.step(
            [
                UpdateStored(
                    key=key,
                    ref=_ref(key),
                    samples=600,
                    loss=0.123456,
                    accuracy=0.987654,
                    epoch=epoch,
                    at_ms=6,
                )
                for key in keys
            ]
        )
        run = self.state.runs["traffic-1"]
        [aggregate] = run.outbox
        self.step([InvocationSent(key=aggregate, activation_id="b" * 32, epoch=epoch, at_ms=7)])
        assert run.weights is not None
        self.step(
            [
                RoundAggregated(
                    key=aggregate,
                    base=run.weights,
                    weights=_ref(f"traffic-1/w{run.round}"),
                    updates=tuple(update.key for update in run.updates.values()),
                    loss=0.1,
                    accuracy=0.98,
                    aggregate_s=0.1,
                    evaluate_s=0.1,
                    epoch=epoch,
                    at_ms=8,
                )
            ]
        )


def sent_bytes() -> int:
    """Bytes that the loopback interface of this process's network has carried."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def measure(keepers: int, clients: int, timing: str) -> Json:
    """Raft's bytes of one round, without and with the heartbeats of a round of ten seconds."""
    with (
        TemporaryDirectory(prefix="traffic") as folder,
        cluster(keepers, Path(folder), {"timing": timing}) as nodes,
    ):
        leader = settled(nodes)
        before = sent_bytes()
        time.sleep(2)
        idle_per_s = (sent_bytes() - before) / 2
        script = Script(clients)
        script.begin()
        for lines in script.steps:
            assert not leader.ask(do="lines", lines=[line.decode() for line in lines])["rejected"]
        settled(nodes)
        script.steps.clear()
        for _ in range(ROUNDS - 1):
            script.round()
        before, begun = sent_bytes(), time.monotonic()
        for lines in script.steps:
            assert not leader.ask(do="lines", lines=[line.decode() for line in lines])["rejected"]
        settled(nodes)
        took_s = time.monotonic() - begun
        round_bytes = max(0.0, sent_bytes() - before - idle_per_s * took_s) / (ROUNDS - 1)
    model_bytes = 2 * clients * MODEL_BYTES
    return {
        "keepers": keepers,
        "clients": clients,
        "raft KB a round": round(round_bytes / 1000, 1),
        "heartbeats KB/s": round(idle_per_s / 1000, 1),
        "model MB a round": round(model_bytes / 1e6, 1),
        "raft / model": f"{round_bytes / model_bytes:.4%}",
        "with 10 s of heartbeats": f"{(round_bytes + 10 * idle_per_s) / model_bytes:.4%}",
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keepers", default="3,5,7")
    parser.add_argument("--clients", default="1,10,100")
    parser.add_argument("--timing", default="steady")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    in_own_network()
    rows = []
    for keepers in chosen.keepers.split(","):
        for clients in chosen.clients.split(","):
            rows.append(measure(int(keepers), int(clients), chosen.timing))
            print(rows[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
