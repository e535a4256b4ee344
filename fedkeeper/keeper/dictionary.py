"""A dictionary that all processes of a cluster share: a MutableMapping over the keepers' replicated entries.

What a read costs, and how fresh it is, is the `refresh` policy's choice; writes are committed when they
return. See docs/dictionary.md.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from fedkeeper.errors import ApiError, ClusterError, NotThere, OutcomeUnknown, Rejected
from fedkeeper.keeper.client import Fence, Json, KeeperClient, Versioned

LOCKS: Final = "!lock/"  # where locks are kept; such names are no entries of any DistributedDict
TRIES_MAX: Final = 100  # of a change by compare-and-set, before it gives up
POLL_S: Final = 0.05  # between two looks at a lock that somebody holds
_NONE: Final = object()  # no default was given
_GONE: Final = object()  # another one was faster


@dataclass(frozen=True, slots=True)
class ReadsEvery:
    """Every `count`th read asks the keepers for everything; the others are answered from memory."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"ReadsEvery({self.count}): 1 or more")


@dataclass(frozen=True, slots=True)
class SecondsEvery:
    """A read asks the keepers for everything if the last time was `seconds` ago or more."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"SecondsEvery({self.seconds}): 0 or more")


Refresh = Literal["always", "lock"] | ReadsEvery | SecondsEvery


class LockBusy(Rejected):
    """Another one holds the lock, and has held it for as long as we were to wait."""


class LockLost(Rejected):
    """The lock was held for longer than its lease, and another one took it: this write changed nothing."""


class DistributedDict(MutableMapping[str, Json]):
    """Names and JSON values below `prefix`, shared by all who use the same cluster and prefix.

    `refresh` says when a read asks the keepers:

    - "always": each read, linearizably.
    - "lock": only on entering a `with d.lock():` block, and the first time.
    - ReadsEvery(n), SecondsEvery(t): now and then, everything at once; in between from memory.

    What was read is kept as one state of one moment, plus this object's own writes since. Values that come
    out are one's own copies only under "always": treat them as read-only, and write to change them. One
    object serves one thread at a time (calls from several wait for each other).
    """

    def __init__(
        self,
        client: KeeperClient,
        prefix: str = "",
        *,
        refresh: Refresh = "always",
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        client: of the cluster; stays open.
        prefix: put before every name, for example "experiment-7/".
        refresh: see above.
        monotonic, sleep: the clock of SecondsEvery and of locks (seconds).
        """
        self._client = client
        self._prefix = prefix
        self._refresh = refresh
        self._monotonic = monotonic
        self._sleep = sleep
        self._mutex = threading.RLock()
        self._cache: dict[str, Versioned] | None = None  # by name without the prefix
        self._reads = 0  # from this cache
        self._read_at = 0.0
        self._fence: Fence | None = None  # while the lock is held

    def __repr__(self) -> str:
        return f"DistributedDict({self._prefix!r}, refresh={self._refresh!r})"

    # --- reading ---------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Json:
        return self.read(name).value

    def read(self, name: str) -> Versioned:
        """The value with its version. KeyError if there is none."""
        with self._mutex:
            if self._asks_each_time():
                try:
                    return self._client.read(self._full(name))
                except NotThere:
                    raise KeyError(name) from None
            return self._entries()[_checked(name)]

    def __contains__(self, name: object) -> bool:
        try:
            self.read(name)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def snapshot(self) -> dict[str, Json]:
        """All of it, of one moment."""
        with self._mutex:
            return {name: entry.value for name, entry in self._entries().items()}

    def __iter__(self) -> Iterator[str]:
        with self._mutex:
            return iter(list(self._entries()))

    def __len__(self) -> int:
        with self._mutex:
            return len(self._entries())

    def keys(self) -> KeysView[str]:
        """The names, of one moment."""
        return self.snapshot().keys()

    def values(self) -> ValuesView[Json]:
        """The values, of one moment."""
        return self.snapshot().values()

    def items(self) -> ItemsView[str, Json]:
        """Names and values, of one moment."""
        return self.snapshot().items()

    def refresh(self) -> None:
        """Read everything now, whatever the policy."""
        with self._mutex:
            self._load()

    # --- writing ---------------------------------------------------------------------------------

    def __setitem__(self, name: str, value: Json) -> None:
        self.write(name, value)

    def write(self, name: str, value: Json, *, expected: int | None = None) -> int:
        """Set it; the version it has then. With `expected` only if it has that version, 0: if there is none.

        Rejected if it has another; LockLost in a block whose lease has run out.
        """
        with self._mutex:
            with self._fenced():
                version = self._client.set(self._full(name), value, expected=expected, fence=self._fence)
            if self._cache is not None:
                self._cache[name] = Versioned(value=value, version=version)
            return version

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def remove(self, name: str, *, expected: int | None = None) -> None:
        """Delete it. KeyError if it is not there; Rejected and LockLost as for `write`."""
        with self._mutex:
            try:
                with self._fenced():
                    self._client.delete(self._full(name), expected=expected, fence=self._fence)
            except NotThere:
                self._drop(name)
                raise KeyError(name) from None
            self._drop(name)

    def change(self, name: str, how: Callable[[Json], Json], *, default: Json = None) -> Json:
        """Replace the value by `how(value)`, and nobody's change is lost; the new value.

        `how` gets `default` if there is none, must not change what it gets, and may be called several times.
        Rejected if others were faster TRIES_MAX times.
        """
        with self._mutex:
            for _ in range(TRIES_MAX):
                entry = self._now(name)
                value = how(default if entry is None else entry.value)
                try:
                    self.write(name, value, expected=0 if entry is None else entry.version)
                except LockLost:
                    raise
                except Rejected:
                    continue
                return value
        raise Rejected(f"{name!r} was changed by others each of {TRIES_MAX} times", status=409)

    def setdefault(self, name: str, default: Json = None) -> Json:
        """The value; if there is none, `default`, which is set then. Of several at once, one sets."""
        with self._mutex:
            for _ in range(TRIES_MAX):
                entry = self._now(name)
                if entry is not None:
                    return entry.value
                try:
                    self.write(name, default, expected=0)
                except LockLost:
                    raise
                except Rejected:
                    continue
                return default
        raise Rejected(f"{name!r} came and went {TRIES_MAX} times", status=409)

    def pop(self, name: str, default: Any = _NONE) -> Json:
        """Delete it, return its value; of several at once, one gets it. KeyError, or `default`, if none."""
        with self._mutex:
            for _ in range(TRIES_MAX):
                entry = self._now(name)
                if entry is None:
                    if default is _NONE:
                        raise KeyError(name)
                    return default
                try:
                    self.remove(name, expected=entry.version)
                except LockLost:
                    raise
                except (KeyError, Rejected):
                    continue
                return entry.value
        raise Rejected(f"{name!r} was changed by others each of {TRIES_MAX} times", status=409)

    def popitem(self) -> tuple[str, Json]:
        """Delete some entry and return it. KeyError if there is none."""
        with self._mutex:
            for name in list(self._load()):
                value = self.pop(name, _GONE)
                if value is not _GONE:
                    return name, value
        raise KeyError("the dictionary is empty")

    def clear(self) -> None:
        """Delete all entries that are there now, one by one."""
        with self._mutex:
            for name in list(self._load()):
                self.pop(name, None)

    # --- the lock --------------------------------------------------------------------------------

    @contextmanager
    def lock(self, *, lease_s: float = 30.0, wait_s: float = 30.0) -> Iterator[None]:
        """One block at a time, of all processes that use this prefix and this method.

        On entering everything is read once; reads in the block are answered from that, and from its own
        writes. Every write in it is fenced: it is rejected (LockLost) if another one has taken the lock
        meanwhile, which happens at the earliest `lease_s` after the lock was taken, as clocks of others
        measure it. So a block that slept through its lease changes nothing, whatever it still believes.

        Args:
            lease_s: after this long a block is taken for dead, and others need not wait (seconds).
            wait_s: LockBusy after this long (seconds).
        """
        with self._mutex:
            if self._fence is not None:
                raise RuntimeError("this object holds the lock already: blocks cannot be nested")
            self._fence = self._acquire(lease_s, wait_s)
            try:
                self._load()
                yield
            finally:
                fence, self._fence = self._fence, None
                # If it cannot be given back, it ends with its lease; if it is another's, it stays so.
                with suppress(ApiError, ClusterError):
                    self._client.delete(fence.name, expected=fence.version)

    def _acquire(self, lease_s: float, wait_s: float) -> Fence:
        name = LOCKS + self._prefix
        ours = {"holder": uuid.uuid4().hex, "lease_s": lease_s}
        give_up = self._monotonic() + wait_s
        seen, since = -1, 0.0  # a version of the entry, and when we first saw it
        while True:
            entry = self._lock_entry(name)
            now = self._monotonic()
            if entry is not None and entry.value == ours:  # taken, though its answer was lost
                return Fence(name=name, version=entry.version)
            if entry is not None and entry.version != seen:
                seen, since = entry.version, now
            if entry is None or now - since >= _lease_s(entry):
                # Another one may be faster; or the next look will tell whether it was us.
                with suppress(Rejected, OutcomeUnknown):
                    expected = entry.version if entry is not None else 0
                    return Fence(name=name, version=self._client.set(name, ours, expected=expected))
            if now >= give_up:
                raise LockBusy(
                    f"the lock of {self._prefix!r} is held by another one",
                    status=409,
                    hint="wait for longer than its lease, or find out what it does",
                )
            self._sleep(POLL_S)

    def _lock_entry(self, name: str) -> Versioned | None:
        try:
            return self._client.read(name)
        except NotThere:
            return None

    @contextmanager
    def _fenced(self) -> Iterator[None]:
        """Say of a rejected write in a block whether it was for the lock."""
        try:
            yield
        except Rejected as exc:
            if self._fence is None:
                raise
            entry = self._lock_entry(self._fence.name)
            if entry is not None and entry.version == self._fence.version:
                raise
            raise LockLost(
                f"the lock of {self._prefix!r} was lost: {exc}",
                status=409,
                hint="hold it for a shorter time, or with a longer lease_s",
            ) from exc

    # --- the cache -------------------------------------------------------------------------------

    def _asks_each_time(self) -> bool:
        return self._refresh == "always" and self._fence is None

    def _entries(self) -> dict[str, Versioned]:
        """All entries, as fresh as the policy wants them."""
        if self._cache is None or (self._fence is None and self._is_due()):
            return self._load()
        self._reads += 1
        return self._cache

    def _is_due(self) -> bool:
        match self._refresh:
            case ReadsEvery(count):
                return self._reads >= count
            case SecondsEvery(seconds):
                return self._monotonic() - self._read_at >= seconds
            case "lock":
                return False
            case _:
                return True

    def _load(self) -> dict[str, Versioned]:
        at = self._monotonic()  # before it is asked: what comes is at least as new
        found = self._client.entries(self._prefix)
        self._cache = {
            name.removeprefix(self._prefix): entry
            for name, entry in found.items()
            if name != self._prefix and not name.startswith(LOCKS)
        }
        self._reads, self._read_at = 1, at
        return self._cache

    def _drop(self, name: str) -> None:
        if self._cache is not None:
            self._cache.pop(name, None)

    def _now(self, name: str) -> Versioned | None:
        """The entry as it is, whatever the policy."""
        try:
            return self._client.read(self._full(name))
        except NotThere:
            return None

    def _full(self, name: str) -> str:
        full = self._prefix + _checked(name)
        if full.startswith(LOCKS):
            raise ValueError(f"names that begin with {LOCKS!r} are those of locks")
        return full


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names are texts, this is a {type(name).__name__}")
    if not name:
        raise ValueError("a name must not be empty")
    return name


def _lease_s(entry: Versioned) -> float:
    """Of a lock entry; one that no DistributedDict wrote is free."""
    lease_s = entry.value.get("lease_s") if isinstance(entry.value, dict) else None
    return float(lease_s) if isinstance(lease_s, int | float) else 0.0
