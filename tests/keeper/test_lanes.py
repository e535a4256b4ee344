"""Many calls, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fedkeeper.keeper.lanes import Lane, Work


class Calls:
    """Calls that note their beginning and end when they are let go."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.gates = [asyncio.Event() for _ in range(6)]
        self.tasks: list[asyncio.Task[None]] = []
        self.lane = Lane(2, self._start)

    def _start(self, work: Work) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def call(self, number: int, *, fails: bool = False) -> Callable[[], Work]:
        async def act() -> None:
            self.began.append(number)
            await self.gates[number].wait()
            if fails:
                raise ValueError(number)

        return act

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_calls_are_made_in_order_and_no_more_than_fit():
    """The next one begins when one ends, however it ends."""
    calls = Calls()
    for number in range(5):
        calls.lane.add(calls.call(number, fails=number == 1))
    await calls.settle()
    assert calls.began == [0, 1]
    calls.gates[1].set()
    await calls.settle()
    assert calls.began == [0, 1, 2]
    for gate in calls.gates:
        gate.set()
    await calls.settle()
    assert calls.began == [0, 1, 2, 3, 4]
    assert isinstance(calls.tasks[1].exception(), ValueError)
    calls.lane.add(calls.call(5))
    await calls.settle()
    assert calls.began[-1] == 5


async def test_what_is_cleared_is_never_called():
    """Neither then nor when those under way are cancelled."""
    calls = Calls()
    for number in range(5):
        calls.lane.add(calls.call(number))
    await calls.settle()
    calls.lane.clear()
    for task in calls.tasks:
        task.cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    await calls.settle()
    assert calls.began == [0, 1]
