"""A machine so simple that a test can say what its state must be: it counts, and hashes the order."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fedkeeper.core.model import Applied, Command, Entry, State, StopRun


def command(number: int) -> StopRun:
    """The command with that number; they are numbered from 1."""
    return StopRun(run=f"run-{number}", reason="é" * (number % 7), at_ms=number)


def apply(state: State, command: Command) -> Applied:
    """As `kv_version` how many commands so far, and as `chain` a hash over them in their order."""
    assert isinstance(command, StopRun)
    if command.run == "poison":
        raise ZeroDivisionError("poison")
    before = state.kv["chain"].value if state.kv else ""
    chain = hashlib.sha256(f"{before} {command.at_ms}".encode()).hexdigest()
    count = state.kv_version + 1
    kv = {"chain": Entry(value=chain, version=count)}
    return Applied(state=replace(state, now_ms=command.at_ms, kv=kv, kv_version=count))


def after(count: int) -> State:
    """The state after the commands 1 … count."""
    state = State()
    for number in range(1, count + 1):
        state = apply(state, command(number)).state
    return state


def count(state: State) -> int:
    """How many commands are in `state`; fails if they are not 1 … count in their order."""
    found = state.kv_version
    assert state == after(found)
    return found
