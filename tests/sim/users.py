"""Users of the dictionary, who send again what they are not sure of; and what must come of it."""

from __future__ import annotations

from collections.abc import Callable

from fedkeeper.core.model import Applied, DeleteValue, PutValue, State
from tests.sim.world import World

NAMES = ("a", "b", "lock", "é", "\ud800")
Write = PutValue | DeleteValue


class Reference:
    """The dictionary as a dict, without limits and tricks."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[str, int]] = {}  # value, version
        self.answers: dict[str, tuple[bool, int]] = {}  # done, version
        self.version = 0

    def check(self, command: Write, applied: Applied) -> None:
        """Assert that `applied` is what had to come of it."""
        done, version = self.answers.get(command.request) or self._write(command)
        if command.request:
            self.answers[command.request] = (done, version)
            told = applied.state.answered[command.request]
            assert (told.version, told.rejected) == (version, applied.rejected)
        assert bool(applied.rejected) is not done
        self.check_state(applied.state)

    def check_state(self, state: State) -> None:
        """Assert that the state's dictionary is this one."""
        assert {name: (one.value, one.version) for name, one in state.kv.items()} == self.entries
        assert state.kv_version == self.version
        size = sum(
            len(text.encode(errors="surrogatepass"))
            for name, (value, _) in self.entries.items()
            for text in (name, value)
        )
        assert state.kv_bytes == size

    def _write(self, command: Write) -> tuple[bool, int]:
        found = self.entries.get(command.name, ("", 0))[1]
        held = self.entries.get(command.fence, ("", 0))[1]
        if command.fence and held != command.fence_version:
            return False, 0
        if command.expected not in (None, found):
            return False, 0
        if isinstance(command, DeleteValue):
            if command.name not in self.entries:
                return False, 0
            del self.entries[command.name]
            self.version += 1
            return True, self.version
        self.version += 1
        self.entries[command.name] = (command.value, self.version)
        return True, self.version


class Users:
    """They write through `propose`, which says what came of it, or None if nobody knows."""

    def __init__(self, world: World, propose: Callable[[Write], Applied | None]) -> None:
        self.repeated = 0
        self._world = world
        self._propose = propose
        self._requests = 0

    def start(self) -> None:
        """From now on, for some seconds."""
        for _ in range(self._world.chance.choice((0, 4, 12))):
            self._world.at(self._world.chance.randint(0, 8_000), self._write)

    def _write(self) -> None:
        chance = self._world.chance
        self._requests += 1
        at_ms = chance.randint(0, 10**12)  # a user's clock has no say
        name, expected = chance.choice(NAMES), chance.choice((None, None, 0, chance.randint(0, 9)))
        request = chance.choice(("", f"u{self._requests}", f"u{self._requests}"))
        fence = chance.choice(("", "", "lock"))
        version = chance.randint(0, 9) if fence else 0
        command: Write
        if self._world.happens(0.3):
            command = DeleteValue(
                name=name, expected=expected, request=request, fence=fence, fence_version=version, at_ms=at_ms
            )
        else:
            value = f'"{"é" * chance.randint(0, 3)}{self._requests}"'
            command = PutValue(
                name=name,
                value=value,
                expected=expected,
                request=request,
                fence=fence,
                fence_version=version,
                at_ms=at_ms,
            )
        self._send(command, 0)

    def _send(self, command: Write, tries: int) -> None:
        """With a request, again and again until it is answered, and perhaps once more."""
        applied = self._propose(command)
        unsure = applied is None or self._world.happens(0.3)
        if command.request and unsure and tries < 50:
            self.repeated += applied is not None
            self._world.at(self._world.chance.choice((1, 100, 900)), lambda: self._send(command, tries + 1))
