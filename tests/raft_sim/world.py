"""Time, chance and machines of the simulation.

Nothing here runs in threads: one heap of events, ordered by the true time. A machine reads its own clock,
which drifts, and does things only while it is on, runs and is not paused (SIGSTOP).
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from fedkeeper.replication.raft.simulated_disk import PowerCut

Event = Callable[[], object]
LOOK_S = 0.02  # between two looks at whether what is waited for has come
STORY_LINES = 400  # the last events, kept for whoever reads a failure


class World:
    """`at` plans events, `run` lets them happen; `now` is the true time in seconds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._order = itertools.count()
        self._planned: list[tuple[float, int, Event]] = []

    def chance(self, what: str) -> random.Random:
        """A stream of its own for each purpose: one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{what}")  # noqa: S311 - no secret, and a seed must replay

    def after(self, delay_s: float, event: Event) -> None:
        """Have `event` happen `delay_s` from now."""
        heapq.heappush(self._planned, (self.now + max(delay_s, 0.0), next(self._order), event))

    def run(self, until_s: float, *, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass until `until_s`, or until `done`, asked now and then; return whether `done`."""
        look_at = self.now
        while self._planned and self._planned[0][0] <= until_s:
            if done is not None and self.now >= look_at:
                if done():
                    return True
                look_at = self.now + LOOK_S
            self.now, _, event = heapq.heappop(self._planned)
            self.events += 1
            event()
        self.now = max(self.now, until_s)
        return done is not None and done()

    def tell(self, line: str) -> None:
        """Note something for whoever reads a failure."""
        self.story.append(f"{self.now:9.4f}  {line}")


class Machine:
    """A host: clock, power, and the process on it. What happens on it goes through `do`."""

    def __init__(self, world: World, name: str, *, rate: float, offset_s: float) -> None:
        self.world = world
        self.name = name
        self.rate = rate  # of its clock: 1.1 gains a tenth
        self.chance = world.chance(f"machine/{name}")
        self.running = False
        self.paused = False
        self.when_cut: Event = lambda: None  # told when the disk says that the power is gone
        self.life = 0  # counts starts: events of an earlier life never happen
        self._since = world.now
        self._read = offset_s
        self._waiting: list[tuple[int, Event]] = []

    def clock(self) -> float:
        """What its monotonic clock says."""
        return self._read + (self.world.now - self._since) * self.rate

    def drift(self, rate: float) -> None:
        """From now on its clock runs at `rate`."""
        self._read, self._since, self.rate = self.clock(), self.world.now, rate

    def start(self) -> None:
        """A new process starts."""
        assert not self.running
        self.running, self.paused = True, False
        self.life += 1
        self._waiting.clear()

    def stop(self) -> None:
        """The process is gone, at once, whatever it was about to do."""
        self.running = self.paused = False
        self.life += 1
        self._waiting.clear()

    def after(self, delay_s: float, event: Event) -> None:
        """`event` after `delay_s` of its own clock, in this life of it."""
        life = self.life
        self.world.after(delay_s / self.rate, lambda: self.do(event, life))

    def do(self, event: Event, life: int | None = None) -> None:
        """Now, if it runs; when it goes on, if it is paused; never, if it has died."""
        life = self.life if life is None else life
        if not self.running or life != self.life:
            return
        if self.paused:
            self._waiting.append((life, event))
            return
        try:
            event()
        except PowerCut:
            self.when_cut()

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: everything that came meanwhile happens now, in order."""
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for at, (life, event) in enumerate(waiting):
            if self.paused or not self.running:
                self._waiting.extend(waiting[at:])
                return
            self.do(event, life)
