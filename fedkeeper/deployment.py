"""Bring functions to where they are wanted: concurrent, idempotent, and every one is tried.

A cluster is listed once; a function whose digest is there already is left alone. Two refusals are waited
out, within a bound each: "too many requests", and "somebody else is changing it" (a conductor that has just
died, say), after which it is looked at anew. Nothing else is sent again.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self, TypeVar

import structlog

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.config import Limits
from fedkeeper.errors import Changing, ConfigError, FedKeeperError, Throttled
from fedkeeper.providers.base import Deployed, Package, Provider

THROTTLE_WAIT_S_MIN: Final = 1.0
CHANGING_WAIT_S: Final = (1.0, 15.0)  # first and longest pause between looks; each twice the last

T = TypeVar("T")
log = structlog.get_logger()


class LineState(StrEnum):
    """What became of a function on a cluster."""

    WORKING = "working"  # not final: the platform is at it
    UNCHANGED = "unchanged"
    OUTDATED = "outdated"  # another version is there, and only missing ones were asked for
    CREATED = "created"
    UPDATED = "updated"
    REMOVED = "removed"
    ABSENT = "absent"  # nothing to remove, or to describe
    FOUND = "found"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a function waits in all (seconds) for what a platform says will pass."""

    throttled_s: float = 180.0  # limits.throttle_wait_s; OpenWhisk counts by clock minutes
    changing_s: float = 600.0  # limits.deploy_timeout_s: that is how long somebody else's deployment may take

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """As the experiment says."""
        return cls(throttled_s=limits.throttle_wait_s, changing_s=limits.deploy_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function on a cluster, by name."""

    cluster: str
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A package, and the cluster it is to run on."""

    cluster: str
    package: Package

    @property
    def target(self) -> Target:
        """Where it goes, by name."""
        return Target(cluster=self.cluster, function=self.package.function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How one function fared; `problem` and `hint` are for people."""

    cluster: str
    function: str
    state: LineState
    seconds: float = 0.0
    problem: str = ""
    hint: str = ""
    url: str = ""
    deployed: Deployed | None = None  # as the platform describes it, where it was asked


Progress = Callable[[Line], None]


async def deploy(
    wanted: Sequence[Wanted],
    providers: Mapping[str, Provider],
    *,
    in_flight_max: int,
    progress: Progress,
    only_missing: bool = False,
    take_over: Collection[str] = (),
    before: Callable[[], Awaitable[None]] | None = None,
    patience: Patience = Patience(),
    clock: Clock | None = None,
) -> tuple[Line, ...]:
    """Create what is missing and update what differs; a final line per function, in the order given.

    `only_missing`: leave active functions alone even if they differ (they are reported as outdated).
    `take_over`: clusters where a function of another experiment may be replaced; elsewhere that is a failure.
    `before`: awaited right before each is created or updated; what it raises is that function's failure.
    `in_flight_max` bounds the deployments under way at one time. ConfigError for an unknown cluster.
    """
    work = _Work(
        providers,
        in_flight_max=in_flight_max,
        progress=progress,
        patience=patience,
        clock=clock or SystemClock(),
    )

    async def one(item: Wanted, found: Deployed | None, provider: Provider) -> Line:
        if found is not None and found.state == "active":
            if found.digest == item.package.digest:
                return _line(item.target, LineState.UNCHANGED, url=found.url)
            if only_missing:
                problem = "another version of it is deployed"
                return _line(item.target, LineState.OUTDATED, url=found.url, problem=problem)
        foreign = found is not None and _foreign(found, item.package.owner)
        if foreign and item.target.cluster not in take_over:
            return _line(item.target, LineState.FAILED, problem=_whose(found), hint=_SHARED)
        work.progress(_line(item.target, LineState.WORKING))

        def told(text: str) -> None:
            work.progress(_line(item.target, LineState.WORKING, problem=text))

        async def bring(changes: int) -> Deployed:
            if changes and (there := await _there(provider, item.package)) is not None:
                return there
            if before is not None:
                await before()
            return await provider.deploy(item.package, told)

        deployed = await work.patiently(bring, item.target)
        note = "" if found is None or found.digest else "replaced one that FedKeeper had not deployed"
        if foreign:
            note = f"it {_whose(found)}, and was taken over"
        state = LineState.CREATED if found is None else LineState.UPDATED
        return _line(item.target, state, url=deployed.url, problem=note)

    return await work.each([(item.target, item) for item in wanted], one)


async def remove(
    targets: Iterable[Target],
    providers: Mapping[str, Provider],
    *,
    in_flight_max: int,
    progress: Progress,
    owner: str = "",
    patience: Patience = Patience(),
    clock: Clock | None = None,
) -> tuple[Line, ...]:
    """Remove the functions that are there; those that FedKeeper did not deploy are left alone, as failed.

    With `owner`, whatever else of that experiment is on the `providers` goes as well (an older config of it
    may have had more clients), and functions of other experiments are left alone.
    """
    work = _Work(
        providers,
        in_flight_max=in_flight_max,
        progress=progress,
        patience=patience,
        clock=clock or SystemClock(),
    )
    targets = dict.fromkeys(targets)
    if owner:
        targets |= dict.fromkeys(await work.owned(owner))

    async def one(target: Target, found: Deployed | None, provider: Provider) -> Line:
        if found is None:
            return _line(target, LineState.ABSENT)
        if not found.digest:
            problem = "FedKeeper did not deploy it: left alone"
            return _line(
                target, LineState.FAILED, problem=problem, hint="remove it with the platform's tools"
            )
        if _foreign(found, owner):
            return _line(target, LineState.ABSENT, problem=f"the one there {_whose(found)}: left alone")
        work.progress(_line(target, LineState.WORKING))
        gone = await work.patiently(lambda _: provider.remove(target.function), target)
        return _line(target, LineState.REMOVED if gone else LineState.ABSENT)

    return await work.each([(target, target) for target in targets], one)


async def describe(
    targets: Iterable[Target],
    providers: Mapping[str, Provider],
    *,
    in_flight_max: int,
    patience: Patience = Patience(),
    clock: Clock | None = None,
) -> tuple[Line, ...]:
    """What the platforms say of the functions: `Line.deployed` where one was found."""
    work = _Work(
        providers,
        in_flight_max=in_flight_max,
        progress=lambda _: None,
        patience=patience,
        clock=clock or SystemClock(),
    )

    async def one(target: Target, found: Deployed | None, _: Provider) -> Line:
        if found is None:
            return _line(target, LineState.ABSENT)
        return Line(
            cluster=target.cluster,
            function=target.function,
            state=LineState.FOUND,
            problem=found.message,
            url=found.url,
            deployed=found,
        )

    return await work.each([(target, target) for target in targets], one)


def failures(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Those that failed."""
    return tuple(line for line in lines if line.state is LineState.FAILED)


_SHARED: Final = (
    "set function_prefix in one of the two configs, or remove the other experiment's functions with its own"
)


async def _there(provider: Provider, package: Package) -> Deployed | None:
    """The function, if it is there by now as it is wanted."""
    for found in await provider.list():
        if found.function == package.function and found.digest == package.digest:
            return found if found.state == "active" else None
    return None


def _foreign(found: Deployed, owner: str) -> bool:
    """Whether a function belongs to another experiment; one without a mark belongs to whoever asks."""
    return bool(owner and found.owner and found.owner != owner)


def _whose(found: Deployed | None) -> str:
    return f"belongs to another experiment ({found.owner if found else ''})"


def _line(target: Target, state: LineState, *, url: str = "", problem: str = "", hint: str = "") -> Line:
    return Line(
        cluster=target.cluster, function=target.function, state=state, url=url, problem=problem, hint=hint
    )


class _Work:
    """One pass over many functions: a listing per cluster, a bound on what is in flight, errors as lines."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        in_flight_max: int,
        progress: Progress,
        patience: Patience,
        clock: Clock,
    ) -> None:
        self.progress = progress
        self._providers = providers
        self._clock = clock
        self._patience = patience
        self._in_flight_max = max(1, in_flight_max)
        self._slots = asyncio.Semaphore(self._in_flight_max)
        self._listed: dict[str, asyncio.Task[dict[str, Deployed] | FedKeeperError]] = {}

    async def each(
        self,
        items: Sequence[tuple[Target, T]],
        act: Callable[[T, Deployed | None, Provider], Awaitable[Line]],
    ) -> tuple[Line, ...]:
        """`act` on every item, a function named twice only once; a FedKeeperError becomes its line."""
        unique, lines = dict(items), dict[Target, Line]()
        for target in unique:
            self._provider(target.cluster)
        async with asyncio.TaskGroup() as group:
            for cluster in {target.cluster for target in unique} - self._listed.keys():
                self._listed[cluster] = group.create_task(self._settled(cluster))
            for cluster in {target.cluster for target in unique}:
                left = iter([(target, item) for target, item in unique.items() if target.cluster == cluster])
                for _ in range(self._in_flight_max):  # whichever is free takes the next one
                    group.create_task(self._some(left, act, lines))
        return tuple(lines[target] for target in unique)

    async def _some(
        self,
        left: Iterator[tuple[Target, T]],
        act: Callable[[T, Deployed | None, Provider], Awaitable[Line]],
        lines: dict[Target, Line],
    ) -> None:
        for target, item in left:
            lines[target] = await self._one(target, item, act)

    async def owned(self, owner: str) -> list[Target]:
        """What is on any cluster and belongs to that experiment; nothing of one that cannot be listed."""
        async with asyncio.TaskGroup() as group:
            for cluster in self._providers:
                self._listed[cluster] = group.create_task(self._settled(cluster))
        return [
            Target(cluster=cluster, function=name)
            for cluster, listed in self._listed.items()
            if isinstance(found := listed.result(), dict)
            for name, one in found.items()
            if one.owner == owner
        ]

    async def patiently(self, send: Callable[[int], Awaitable[T]], target: Target | None = None) -> T:
        """`send`, again when what stood in the way has passed; its error when that takes too long.

        It is told how often somebody else was changing it. Waits for the sake of `target` are progress.
        """
        throttled_s = changing_s = 0.0
        changes, look_s = 0, CHANGING_WAIT_S[0]
        while True:
            try:
                return await send(changes)
            except Throttled as exc:
                pause_s = max(exc.retry_after_s, THROTTLE_WAIT_S_MIN)
                throttled_s += pause_s
                if throttled_s > self._patience.throttled_s:
                    raise
                log.info("throttled", cluster=exc.cluster, function=exc.function, wait_s=pause_s)
                why = "too many requests for the platform"
            except Changing as exc:
                changes, pause_s, look_s = changes + 1, look_s, min(look_s * 2, CHANGING_WAIT_S[1])
                changing_s += pause_s
                if changing_s > self._patience.changing_s:
                    raise
                log.info("changing", cluster=exc.cluster, function=exc.function, problem=exc.problem)
                why = "somebody else is changing it"
            if target is not None:
                problem = f"{why}, trying again in {pause_s:.0f} s"
                self.progress(_line(target, LineState.WORKING, problem=problem))
            await self._clock.sleep(pause_s)

    async def _one(
        self, target: Target, item: T, act: Callable[[T, Deployed | None, Provider], Awaitable[Line]]
    ) -> Line:
        found = await self._listed[target.cluster]
        if isinstance(found, FedKeeperError):
            line = _failed(target, found)
        else:
            async with self._slots:
                started_ms = self._clock.now_ms()
                try:
                    line = await act(item, found.get(target.function), self._provider(target.cluster))
                except FedKeeperError as exc:
                    line = _failed(target, exc)
                line = replace(line, seconds=(self._clock.now_ms() - started_ms) / 1000)
        _record(line)
        self.progress(line)
        return line

    async def _settled(self, cluster: str) -> dict[str, Deployed] | FedKeeperError:
        """The cluster's functions by name, or why it could not be listed: one bad cluster stops no other."""
        provider = self._provider(cluster)
        try:
            return {found.function: found for found in await self.patiently(lambda _: provider.list())}
        except FedKeeperError as exc:
            return exc

    def _provider(self, cluster: str) -> Provider:
        if cluster in self._providers:
            return self._providers[cluster]
        near = difflib.get_close_matches(cluster, self._providers, n=1)
        known = ", ".join(sorted(self._providers))
        raise ConfigError(
            f"unknown cluster {cluster!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known clusters: {known}",
        )


def _failed(target: Target, exc: FedKeeperError) -> Line:
    problem = getattr(exc, "problem", "") or str(exc)
    if not exc.definite:
        problem += " (it may have happened all the same)"
    hint = exc.hint or ("" if exc.definite else "the same command again looks before it acts")
    return _line(target, LineState.FAILED, problem=problem, hint=hint)


def _record(line: Line) -> None:
    log.info(
        "function",
        cluster=line.cluster,
        function=line.function,
        state=str(line.state),
        took_s=round(line.seconds, 3),
        problem=line.problem,
    )
