"""A machine so simple that a test can say what its state must be: it counts, and hashes the order."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fedkeeper.core.model import Applied, Command, State, StopRun


def command(number: int) -> StopRun:
    """The command with that number; they are numbered from 1."""
    return StopRun(run=f"run-{number}", reason="é" * (number % 7), at_ms=number)


def apply(state: State, command: Command) -> Applied:
    """`count` commands so far, and `chain`: a hash over them in their order."""
    assert isinstance(command, StopRun)
    if command.run == "poison":
        raise ZeroDivisionError("poison")
    chain = hashlib.sha256(f"{state.kv.get('chain')} {command.at_ms}".encode()).hexdigest()
    count = int(state.kv.get("count", "0")) + 1
    return Applied(state=replace(state, now_ms=command.at_ms, kv={"count": str(count), "chain": chain}))


def after(count: int) -> State:
    """The state after the commands 1 … count."""
    state = State()
    for number in range(1, count + 1):
        state = apply(state, command(number)).state
    return state


def count(state: State) -> int:
    """How many commands are in `state`; fails if they are not 1 … count in their order."""
    found = int(state.kv.get("count", "0"))
    assert state == after(found)
    return found
