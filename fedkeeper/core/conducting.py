"""Who conducts: what is known of the keepers, the claim of a new epoch, and where the conductor belongs.

The leader asks `choose` now and then, and proposes the claim; nothing else makes a conductor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fedkeeper.core import rounds
from fedkeeper.core.model import (
    Applied,
    ClaimConductor,
    KeeperInfo,
    KeeperLost,
    KeeperMeasured,
    KeeperRemoved,
    KeeperStarted,
    State,
)

KEEPERS_MAX = 16  # known at a time: 7 members, and some that are coming or going
TEXT_CHARS_MAX = 512  # of a keeper's name, its URL, a reason
LATENCIES_MAX = 256  # of one keeper: to the others, and to every cluster


# --- what is known of the keepers -----------------------------------------------------------------


def started(state: State, command: KeeperStarted) -> Applied:
    """A keeper is up: known from now on, and alive."""
    known = state.keepers.get(command.keeper)
    if known is None and len(state.keepers) >= KEEPERS_MAX:
        return Applied(state=state, rejected=f"{len(state.keepers)} keepers are known, no more are possible")
    if not command.keeper or max(len(command.keeper), len(command.api)) > TEXT_CHARS_MAX:
        return Applied(state=state, rejected="a keeper's name is empty, or it or its URL is too long")
    info = KeeperInfo(
        name=command.keeper,
        api=command.api,
        version=command.version,
        started_ms=command.at_ms,
        seen_ms=command.at_ms,
    )
    if known is not None and known.started_ms == command.at_ms:  # it only says so again
        info = replace(
            info, unfit=known.unfit, unfit_times=known.unfit_times, unfit_until_ms=known.unfit_until_ms
        )
    return _with(state, info)


def measured(state: State, command: KeeperMeasured) -> Applied:
    """A known keeper is alive, and this far from the others and from the clusters."""
    known = state.keepers.get(command.keeper)
    if known is None:
        return _unknown(state, command.keeper)
    latencies = command.latencies
    if len(latencies) > LATENCIES_MAX or any(len(name) > TEXT_CHARS_MAX for name in latencies):
        return Applied(state=state, rejected=f"{command.keeper}: too many latencies, or a name is too long")
    if not all(0 <= ms < math.inf for ms in latencies.values()):
        return Applied(state=state, rejected=f"{command.keeper}: a latency is no number of 0 or more")
    info = replace(
        known, alive=True, reason="", seen_ms=command.at_ms, latencies=dict(latencies), measured=True
    )
    return _with(state, info)


def lost(state: State, command: KeeperLost) -> Applied:
    """The leader does not hear a keeper any more."""
    known = state.keepers.get(command.keeper)
    if known is None:
        return _unknown(state, command.keeper)
    if not known.alive:
        return Applied(state=state, rejected=f"keeper {command.keeper} is lost already")
    return _with(state, replace(known, alive=False, reason=command.reason[:TEXT_CHARS_MAX]))


def removed(state: State, command: KeeperRemoved) -> Applied:
    """A keeper is forgotten. If it conducts, its epoch goes on until the next claim."""
    if command.keeper not in state.keepers:
        return _unknown(state, command.keeper)
    keepers = {name: info for name, info in state.keepers.items() if name != command.keeper}
    return Applied(state=replace(state, keepers=keepers))


def claim(state: State, command: ClaimConductor) -> Applied:
    """A new epoch, also if the same keeper conducts on: it may have been started anew."""
    if command.expected_epoch != state.epoch:
        return Applied(state=state, rejected=f"expected epoch {command.expected_epoch}, now is {state.epoch}")
    return Applied(
        state=replace(
            state,
            epoch=state.epoch + 1,
            conductor=command.keeper,
            conductor_why=command.why,
            conductor_since_ms=state.now_ms,
            conductor_rounds=0,
            pinned=command.pinned,
            keepers=_fitness(state, command),
            runs={
                name: rounds.taken_over(run, state.now_ms, once=command.resumes)
                for name, run in state.runs.items()
            },
        )
    )


def _fitness(state: State, command: ClaimConductor) -> Mapping[str, KeeperInfo]:
    """The keepers, after the conductor so far could conduct, or could not. By hand, one is to try at once."""
    keepers = dict(state.keepers)
    before = keepers.get(state.conductor)
    if before is not None and command.unfit:
        keepers[before.name] = replace(
            before,
            unfit=command.unfit[:TEXT_CHARS_MAX],
            unfit_times=1 if state.conductor_rounds else before.unfit_times + 1,
            unfit_until_ms=state.now_ms + command.unfit_ms,
        )
    elif before is not None and state.conductor_rounds:
        keepers[before.name] = replace(before, unfit="", unfit_times=0, unfit_until_ms=0)
    if command.pinned and command.keeper in keepers:
        keepers[command.keeper] = replace(keepers[command.keeper], unfit_until_ms=0)
    return keepers


def _with(state: State, info: KeeperInfo) -> Applied:
    return Applied(state=replace(state, keepers={**state.keepers, info.name: info}))


def _unknown(state: State, keeper: str) -> Applied:
    return Applied(state=state, rejected=f"no keeper {keeper!r} has started here")


# --- where the conductor belongs ------------------------------------------------------------------


class Placement(StrEnum):
    """Who should conduct."""

    RAFT = "raft"  # the leader
    LATENCY = "latency"  # the keeper nearest to the others and to the clusters
    ROTATE = "rotate"  # each in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """As configured, see config.keepers."""

    placement: Placement = Placement.RAFT
    gain: float = 0.3  # latency: better by this part, another one takes over
    every_s: float = 0.0  # rotate: time that a keeper conducts; 0: no limit in time
    every_rounds: int = 1  # rotate: rounds that a keeper conducts; 0: no limit in rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who should conduct from now on, and why: one sentence for people."""

    keeper: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distance:
    """How far a keeper is from what it talks to, in ms."""

    keepers: float
    clusters: float

    @property
    def score(self) -> float:
        return self.keepers + self.clusters


def choose(state: State, policy: Policy, *, leader: str, now_ms: int) -> Choice | None:
    """Whom the leader should have conduct; None: leave it as it is.

    `now_ms` is the leader's clock, ahead by as much as the log's time is, as for commands.
    """
    alive = sorted({name for name, info in state.keepers.items() if info.alive} | {leader})
    stays = state.conductor in alive
    if stays and state.pinned:
        return None
    if fit := [name for name in alive if rest_ms(state, name, now_ms) == 0]:
        alive = fit
    elif stays:
        return None  # it tries again when its time has come
    match policy.placement:
        case Placement.RAFT:
            choice = _leader(state, alive, leader)
        case Placement.ROTATE:
            choice = _next(state, policy, alive, leader, now_ms) if stays else _first(state, alive, leader)
        case Placement.LATENCY:
            choice = _nearest(state, policy, alive, leader)
    if choice.keeper == state.conductor:
        return None
    return choice if stays else replace(choice, why=choice.why + _gone(state))


def rest_ms(state: State, keeper: str, now_ms: int) -> int:
    """For how long others shall conduct, because this keeper could not; 0: it may."""
    known = state.keepers.get(keeper)
    return 0 if known is None else max(0, known.unfit_until_ms - now_ms)


# raft


def _leader(state: State, fit: list[str], leader: str) -> Choice:
    if leader in fit:
        return Choice(keeper=leader, why=f"{leader} leads")
    if state.conductor in fit:
        return Choice(keeper=state.conductor, why=state.conductor_why)
    keeper = _after(state.conductor, fit)
    known = state.keepers.get(leader)
    return Choice(keeper=keeper, why=f"{leader} leads, but cannot conduct: {known.unfit if known else ''}")


def _gone(state: State) -> str:
    """What happened to the conductor so far, as the end of a sentence."""
    if not state.conductor:
        return ""
    info = state.keepers.get(state.conductor)
    reason = f": {info.reason}" if info is not None and info.reason else ""
    return f"; {state.conductor} is {'lost' if info is not None else 'no keeper any more'}{reason}"


# rotate


def _first(state: State, alive: list[str], leader: str) -> Choice:
    if not state.conductor:
        return Choice(keeper=leader, why=f"{leader} leads, so the rotation begins with it")
    keeper = _after(state.conductor, alive)
    return Choice(keeper=keeper, why=f"{keeper} follows {state.conductor}")


def _next(state: State, policy: Policy, alive: list[str], leader: str, now_ms: int) -> Choice:
    current = state.conductor
    keeper = _after(current, alive)
    if 0 < policy.every_rounds <= state.conductor_rounds:
        done = f"{state.conductor_rounds} round(s), its turn is {policy.every_rounds}"
        return Choice(keeper=keeper, why=f"{keeper} follows {current}, which conducted {done}")
    turn_ms = now_ms - state.conductor_since_ms
    if 0 < policy.every_s * 1000 <= turn_ms:
        done = f"{turn_ms / 1000:.1f} s, its turn is {policy.every_s:g} s"
        return Choice(keeper=keeper, why=f"{keeper} follows {current}, which conducted {done}")
    return Choice(keeper=current, why=state.conductor_why)


def _after(name: str, alive: list[str]) -> str:
    """The next by name, round and round."""
    return next((one for one in alive if one > name), alive[0])


# latency


def _nearest(state: State, policy: Policy, alive: list[str], leader: str) -> Choice:
    current = state.conductor if state.conductor in alive else ""
    distances = _distances(state, alive)
    if current and len(alive) == 1:
        return Choice(keeper=current, why=state.conductor_why)
    if not distances:
        why = f"{leader} leads, and conducts until another keeper is measured to be nearer"
        return Choice(keeper=current or leader, why=why)
    best = min(distances, key=lambda name: (distances[name].score, name))
    if current and not _has_measured(state, current):
        return Choice(keeper=current, why=state.conductor_why)  # it will have measured soon
    if current in distances and distances[best].score >= distances[current].score * (1 - policy.gain):
        return Choice(keeper=current, why=state.conductor_why)
    return Choice(keeper=best, why=_compared(state, best, [current] if current else alive, distances))


def _distances(state: State, alive: list[str]) -> Mapping[str, _Distance]:
    """Of those that have measured, and reach every cluster that anyone reaches and a majority of keepers."""
    latencies = {name: state.keepers[name].latencies for name in alive if _has_measured(state, name)}
    clusters = {name for own in latencies.values() for name in own if name.startswith("cluster/")}
    majority = len(state.keepers.keys() | set(alive)) // 2 + 1
    found = {}
    for name, own in latencies.items():
        near = [own[f"keeper/{one}"] for one in alive if one != name and f"keeper/{one}" in own]
        if clusters <= own.keys() and len(near) + 1 >= majority:
            found[name] = _Distance(
                keepers=statistics.median(near) if near else 0.0,
                clusters=statistics.fmean(own[one] for one in clusters) if clusters else 0.0,
            )
    return found


def _has_measured(state: State, name: str) -> bool:
    return name in state.keepers and state.keepers[name].measured


def _compared(state: State, best: str, names: list[str], distances: Mapping[str, _Distance]) -> str:
    """As "k2 is nearest: 0.8 ms to keepers, 1.9 ms to clusters; k1 has 2.1 and 4.0"."""
    one = distances[best]
    parts = [f"{best} is nearest: {one.keepers:.1f} ms to keepers, {one.clusters:.1f} ms to clusters"]
    for name in names:
        if name == best:
            continue
        if name in distances:
            parts.append(f"{name} has {distances[name].keepers:.1f} and {distances[name].clusters:.1f}")
        elif _has_measured(state, name):
            parts.append(f"{name} does not reach every cluster and a majority of the keepers")
        else:
            parts.append(f"{name} has not measured yet")
    return "; ".join(parts)
