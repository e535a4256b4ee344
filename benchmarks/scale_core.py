"""What a round costs the replicated core alone, with up to a million clients to choose from: CPU, no waiting.

    python -m benchmarks.scale_core --clients 10000,100000,1000000 --per-round 1000

Each row is a run of two rounds in memory, as every keeper applies it: all that are chosen are invoked, train,
and are averaged. Times are CPU of one keeper; bytes are lines of the log, and of a snapshot after the run.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.reference import piece_us
from fedkeeper.core.machine import apply, next_due_ms
from fedkeeper.core.model import (
    Attempt,
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
    UpdatesFolded,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.core.records import ordered_updates
from fedkeeper.replication import codec

Json = dict[str, Any]
RUN = "scale-1"
NBYTES = 6_653_480  # of an update: the padded CNN of the paper


class Core:
    """A state, and what its commands cost."""

    def __init__(self) -> None:
        self.state = State()
        self.log_bytes = 0
        self.at_ms = 1_000

    def apply(self, command: Command) -> float:
        """CPU seconds of applying it; its line is counted."""
        self.log_bytes += len(codec.encode(command)) + 1
        begun = time.process_time()
        applied = apply(self.state, command)
        took = time.process_time() - begun
        assert not applied.rejected, applied.rejected
        self.state = applied.state
        return took


def spec(clients: int, per_round: int) -> RunSpec:
    """A run of two rounds."""
    return RunSpec(
        run=RUN,
        digest="d",
        seed=1,
        clients=tuple(
            ClientPlace(client=f"client_{number}", cluster="ow", route="direct") for number in range(clients)
        ),
        server_cluster="ow",
        clients_per_round=per_round,
        rounds_max=2,
        target_accuracy=None,
        min_updates=1,
        attempts_max=3,
        client_timeout_ms=120_000,
        server_timeout_ms=120_000,
        round_timeout_ms=0,
        retry_backoff_ms=1_000,
        early_updates_min=16,
        early_bytes_min=64 * 2**20,
    )


def measure(clients: int, per_round: int) -> Json:
    """One row."""
    core = Core()
    core.apply(ClaimConductor(keeper="k1", expected_epoch=0, at_ms=1, resumes=True))
    submit_s = core.apply(SubmitRun(spec=spec(clients, per_round), at_ms=1))
    submit_bytes = core.log_bytes
    samples = {f"client_{number}": 600 for number in range(clients)}
    core.apply(
        WeightsInitialised(key=f"{RUN}/init/a0", weights=_ref(f"{RUN}/w0"), samples=samples, epoch=1, at_ms=1)
    )
    before = core.log_bytes
    due_s = _cpu(lambda: next_due_ms(core.state))
    claim_s = core.apply(ClaimConductor(keeper="k2", expected_epoch=1, at_ms=2, resumes=True))
    sent_s = sum(map(core.apply, _each(core, _sent)))
    update_s = sum(map(core.apply, _each(core, _stored)))
    while fold := next((one for one in core.state.runs[RUN].outbox.values() if one.kind == Kind.FOLD), None):
        core.apply(_folded(core, fold))
    commit_s = core.apply(_aggregated(core))  # and what begins the next round
    snapshot: list[bytes] = []
    snapshot_s = _cpu(lambda: snapshot.append(codec.encode_state(core.state)))
    return {
        "clients": clients,
        "per round": per_round,
        "submit ms": round(submit_s * 1000, 1),
        "submit KB": round(submit_bytes / 1000),
        "takeover ms": round(claim_s * 1000, 2),
        "next due ms": round(due_s * 1000, 1),
        "sent us": round(sent_s / per_round * 1e6, 1),
        "update us": round(update_s / per_round * 1e6, 1),
        "commit ms": round(commit_s * 1000, 1),
        "log KB / round": round((core.log_bytes - before) / 1000),
        "snapshot MB": round(len(snapshot[0]) / 1e6, 1),
        "snapshot s": round(snapshot_s, 2),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "piece us": round(piece_us(), 1),
    }


def _cpu(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


def _each(core: Core, made: Callable[[str], Command]) -> Iterator[Command]:
    """A command for every client's attempt that is outstanding, in the order of the outbox."""
    for key in [one.key for one in core.state.runs[RUN].outbox.values() if one.client]:
        yield made(key)


def _sent(key: str) -> Command:
    return InvocationSent(key=key, activation_id="0123456789abcdef" * 2, epoch=2, at_ms=2_000)


def _stored(key: str) -> Command:
    return UpdateStored(key=key, ref=_ref(key), samples=600, loss=0.5, accuracy=0.5, epoch=2, at_ms=5_000)


def _folded(core: Core, fold: Attempt) -> Command:
    run = core.state.runs[RUN]
    assert run.weights is not None
    keys = tuple(update.key for update in ordered_updates(run)[: fold.updates])
    return UpdatesFolded(
        key=fold.key, base=run.weights, ref=_ref(fold.key), updates=keys, epoch=2, at_ms=6_000
    )


def _aggregated(core: Core) -> Command:
    run = core.state.runs[RUN]
    assert run.weights is not None
    (key,) = (one.key for one in run.outbox.values() if one.kind is Kind.AGGREGATE)
    return RoundAggregated(
        key=key,
        base=run.weights,
        weights=_ref(f"{RUN}/w1"),
        updates=tuple(update.key for update in ordered_updates(run)),
        loss=0.5,
        accuracy=0.5,
        aggregate_s=1.0,
        evaluate_s=1.0,
        epoch=2,
        at_ms=9_000,
    )


def _ref(name: str) -> ObjectRef:
    return ObjectRef(name=name, sha256="0" * 64, nbytes=NBYTES)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", default="10000,100000,1000000", help="in the run")
    parser.add_argument("--per-round", default="1000", help="chosen of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for clients in map(int, options.clients.split(",")):
        for per_round in map(int, options.per_round.split(",")):
            if per_round <= clients:
                rows.append(measure(clients, per_round))
                print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
