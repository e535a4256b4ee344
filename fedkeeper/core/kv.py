"""The users' dictionary: a write, if what it expects is so; the same request again, answered as before."""

from __future__ import annotations

from dataclasses import replace

from fedkeeper.core.model import Answer, Applied, DeleteValue, Entry, PutValue, State
from fedkeeper.core.persistent import Buckets, Recent

ANSWERS_MAX = 4096  # requests whose answers are remembered
NAME_CHARS_MAX = 512  # of a name, and of a request
VALUE_BYTES_MAX = 1024 * 1024  # of one value, as UTF-8


def write(state: State, command: PutValue | DeleteValue) -> Applied:
    """The state after a write. Its version is `state.answered[request].version`, also when it is repeated.

    Without a request it is `state.kv_version` of the state that is returned.
    """
    request = command.request
    if len(request) > NAME_CHARS_MAX:  # it could not even be remembered
        return Applied(state=state, rejected=f"the request's id has {len(request)} characters")
    if request and (known := state.answered.get(request)) is not None:
        return Applied(state=state, rejected=known.rejected)
    problem = _problem(state, command)
    if problem:
        after = state
    elif isinstance(command, PutValue):
        after = _put(state, command)
    else:
        after = _drop(state, command)
    if request:
        answer = Answer(version=0 if problem else after.kv_version, rejected=problem)
        after = replace(after, answered=Recent(after.answered).add(request, answer, limit=ANSWERS_MAX))
    return Applied(state=after, rejected=problem)


def _put(state: State, command: PutValue) -> State:
    old = state.kv.get(command.name)
    entry = Entry(value=command.value, version=state.kv_version + 1)
    return replace(
        state,
        kv=Buckets(state.kv).put(command.name, entry),
        kv_version=entry.version,
        kv_bytes=state.kv_bytes + _bytes(command.name, command.value) - _bytes_of(command.name, old),
    )


def _drop(state: State, command: DeleteValue) -> State:
    return replace(
        state,
        kv=Buckets(state.kv).drop(command.name),
        kv_version=state.kv_version + 1,
        kv_bytes=state.kv_bytes - _bytes_of(command.name, state.kv.get(command.name)),
    )


def _problem(state: State, command: PutValue | DeleteValue) -> str:
    """Why nothing is written; empty if it is."""
    if not 1 <= len(command.name) <= NAME_CHARS_MAX:
        return f"a name of {len(command.name)} characters; 1 to {NAME_CHARS_MAX} are possible"
    old = state.kv.get(command.name)
    found = old.version if old is not None else 0
    if command.fence:
        fence = state.kv.get(command.fence)
        if (fence.version if fence is not None else 0) != command.fence_version:
            return f"the lock {command.fence!r} is no longer held: {_found(fence)}"
    if command.expected is not None and command.expected != found:
        return f"{command.name!r}: expected {_version(command.expected)}, {_found(old)}"
    if isinstance(command, DeleteValue):
        return "" if old is not None else f"{command.name!r} is not there"
    size = _bytes_of_text(command.value)
    if size > VALUE_BYTES_MAX:
        return f"{command.name!r}: a value of {size} bytes; {VALUE_BYTES_MAX} are possible"
    total = state.kv_bytes + _bytes(command.name, command.value) - _bytes_of(command.name, old)
    if total > command.total_bytes_max and total > state.kv_bytes:
        most = command.total_bytes_max
        return f"{command.name!r}: the dictionary would have {total} bytes; {most} are possible"
    return ""


def _version(version: int) -> str:
    return f"version {version}" if version else "nothing"


def _found(entry: Entry | None) -> str:
    return f"found version {entry.version}" if entry is not None else "found nothing"


def _bytes_of(name: str, entry: Entry | None) -> int:
    return _bytes(name, entry.value) if entry is not None else 0


def _bytes(name: str, value: str) -> int:
    return _bytes_of_text(name) + _bytes_of_text(value)


def _bytes_of_text(text: str) -> int:
    """As UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
