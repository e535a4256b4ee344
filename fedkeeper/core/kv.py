"""The users' dictionary: a write, if what it expects is so; the same request again, answered as before."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any

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
    if (known := _repeated(state, request)) is not None:
        return Applied(state=state, rejected=known.rejected)
    old = state.kv.get(command.name)
    grows = _size(command.name, command.value) if isinstance(command, PutValue) else 0
    grows -= _size(command.name, old.value) if old is not None else 0
    problem = _problem(state, command, old, grows)
    changes: dict[str, Any] = {}
    if not problem:
        changes = {"kv_version": state.kv_version + 1, "kv_bytes": state.kv_bytes + grows}
        kv = Buckets.of(state.kv)
        if isinstance(command, PutValue):
            entry = Entry(value=command.value, version=state.kv_version + 1)
            changes["kv"] = kv.put(command.name, entry)
        else:
            changes["kv"] = kv.drop(command.name)
    if request:
        answer = Answer(version=changes.get("kv_version", 0), rejected=problem)
        answered = state.answered if isinstance(state.answered, Recent) else Recent(state.answered)
        changes["answered"] = answered.add(request, answer, limit=ANSWERS_MAX)
    return Applied(state=_changed(state, changes), rejected=problem)


def _repeated(state: State, request: str) -> Answer | None:
    """How the request was answered, if it has been there."""
    return state.answered.get(request) if request else None


_NAMES = tuple(field.name for field in fields(State))
_VALUES = attrgetter(*_NAMES)


def _changed(state: State, changes: dict[str, Any]) -> State:
    """As dataclasses.replace, which takes twice the time: a third of a write."""
    return State(**{**dict(zip(_NAMES, _VALUES(state), strict=True)), **changes}) if changes else state


def _problem(state: State, command: PutValue | DeleteValue, old: Entry | None, grows: int) -> str:
    """Why nothing is written; empty if it is."""
    name = command.name
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        return f"a name of {len(name)} characters; 1 to {NAME_CHARS_MAX} are possible"
    if command.fence:
        fence = state.kv.get(command.fence)
        if (fence.version if fence is not None else 0) != command.fence_version:
            return f"{command.fence[:NAME_CHARS_MAX]!r} is not held any more: {_found(fence)}"
    if command.expected is not None and command.expected != (old.version if old is not None else 0):
        return f"{name!r}: expected {_version(command.expected)}, {_found(old)}"
    if isinstance(command, DeleteValue):
        return "" if old is not None else f"{name!r} is not there"
    if (size := _bytes(command.value)) > VALUE_BYTES_MAX:
        return f"{name!r}: a value of {size} bytes; {VALUE_BYTES_MAX} are possible"
    total = state.kv_bytes + grows
    if total > command.total_bytes_max and grows > 0:
        return f"{name!r}: the dictionary would have {total} bytes; {command.total_bytes_max} are possible"
    return ""


def _version(version: int) -> str:
    return f"version {version}" if version else "nothing"


def _found(entry: Entry | None) -> str:
    return f"found version {entry.version}" if entry is not None else "found nothing"


def _size(name: str, value: str) -> int:
    return _bytes(name) + _bytes(value)


def _bytes(text: str) -> int:
    """As UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
