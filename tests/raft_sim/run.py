"""`python -m tests.raft_sim.run --seeds N`: many worlds, a line of progress now and then, a summary.

A seed that fails prints itself, the last events before it, and how to run it again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import structlog

from tests.raft_sim.mutations import MUTATIONS
from tests.raft_sim.simulation import Result, Simulation

CHUNK = 10  # seeds that a worker takes at once
STORY_LINES = 60


@dataclass(frozen=True)
class Failure:
    """A seed that broke a rule."""

    seed: int
    problem: str
    story: tuple[str, ...]


def be_quiet() -> None:
    """The nodes' own log lines: the story has what matters."""
    logging.disable(logging.CRITICAL)
    structlog.configure(
        processors=[lambda _logger, _method, _event: ""], logger_factory=structlog.ReturnLoggerFactory()
    )


def one(
    seed: int, *, seconds: float | None = None, mutation: str = "", only: Collection[str] = ()
) -> Result | Failure:
    """Run one world."""
    simulation = Simulation(seed, seconds=seconds, only=only)
    try:
        with MUTATIONS[mutation]() if mutation else contextlib.nullcontext():
            return simulation.run()
    except Exception as exc:  # noqa: BLE001 - whatever a node raises is a finding
        return Failure(seed, f"{type(exc).__name__}: {exc}", tuple(simulation.world.story))


def report(failure: Failure, *, seconds: float | None = None, mutation: str = "") -> str:
    """What whoever mends it needs."""
    options = "" if seconds is None else f" --seconds {seconds:g}"
    options += f" --mutation {mutation}" if mutation else ""
    return "\n".join(
        (
            f"seed {failure.seed}: {failure.problem}",
            *failure.story[-STORY_LINES:],
            f"again: python -m tests.raft_sim.run --seeds 1 --from {failure.seed}{options}",
        )
    )


def _chunk(seeds: Iterable[int], seconds: float | None, mutation: str) -> list[Result | Failure]:
    be_quiet()
    return [one(seed, seconds=seconds, mutation=mutation) for seed in seeds]


def run(
    seeds: range, *, workers: int = 1, seconds: float | None = None, mutation: str = ""
) -> Iterator[Result | Failure]:
    """All of them, in any order."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if workers == 1:
        for chunk in chunks:
            yield from _chunk(chunk, seconds, mutation)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(_chunk, chunk, seconds, mutation) for chunk in chunks]):
            yield from done.result()


def main() -> int:
    """Return 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.raft_sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, help="how many worlds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, help="of faults, in steady timing; default: 3 to 7")
    parser.add_argument("--mutation", default="", choices=("", *MUTATIONS), help="break the code like this")
    options = parser.parse_args()
    began, failed, done = time.monotonic(), 0, 0
    totals: Counter[str] = Counter()
    seeds = range(options.first, options.first + options.seeds)
    for outcome in run(seeds, workers=options.workers, seconds=options.seconds, mutation=options.mutation):
        done += 1
        if isinstance(outcome, Failure):
            failed += 1
            print(report(outcome, seconds=options.seconds, mutation=options.mutation), "\n")
        else:
            totals.update(outcome.seen)
            totals.update(entries=outcome.entries, operations=outcome.operations)
            totals.update({"simulated s": int(outcome.simulated_s)})
        if done % 100 == 0:
            print(f"{done} of {len(seeds)}, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{done} seeds from {options.first}: {failed} failed; {time.monotonic() - began:.1f} s")
    print(", ".join(f"{name}: {count}" for name, count in sorted(totals.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
