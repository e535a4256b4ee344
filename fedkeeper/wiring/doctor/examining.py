"""The whole examination."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from fedkeeper.config import Experiment
from fedkeeper.wiring.doctor import limits, machine, places, reaching
from fedkeeper.wiring.doctor.findings import Finding
from fedkeeper.wiring.doctor.needs import NOTHING, needs_of


async def examine(experiment: Experiment | None, *, timeout_s: float) -> AsyncIterator[Finding]:
    """What this machine offers, and, with an `experiment`, what it lacks; findings as they come.

    `timeout_s` bounds each question on its own. Raises nothing on purpose.
    """
    needs = NOTHING if experiment is None else needs_of(experiment)
    # The import of TensorFlow takes longest: it goes on while the others are asked.
    import_ = asyncio.create_task(asyncio.to_thread(machine.tensorflow, needs, timeout_s=timeout_s))
    try:
        here: list[Callable[[], Finding | None]] = [
            machine.python,
            machine.packages,
            machine.processors,
            lambda: machine.memory(needs),
            lambda: machine.budget(needs),
            lambda: machine.disk(needs),
            lambda: machine.open_files(needs),
            machine.cgroup,
            lambda: machine.namespaces(timeout_s=timeout_s),
            lambda: machine.mongod(needs),
            lambda: machine.node(timeout_s=timeout_s),
        ]
        for probe in here:
            found = await asyncio.to_thread(probe)
            if found is not None:
                yield found
        for found in await asyncio.to_thread(lambda: list(places.ports(experiment))):
            yield found
        yield await import_
    finally:
        import_.cancel()
    if experiment is None:
        return
    for found in await asyncio.to_thread(reaching.functions, experiment):
        yield found
    for found in limits.of_embedded(experiment):
        yield found
    for ask in (reaching.platforms, reaching.store, reaching.keepers):
        async for found in ask(experiment, timeout_s=timeout_s):
            yield found
