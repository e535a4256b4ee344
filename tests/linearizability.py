"""Is there one order in which these concurrent operations could have happened, one at a time?

The algorithm is Wing & Gong's search ("Testing and verifying concurrent objects", 1993) with Lowe's memory
of configurations seen ("Testing for linearizability", 2016): a configuration is the set of operations placed
so far and the state after them. Histories are checked key by key: a set of registers is linearizable exactly
if each of them is (Herlihy & Wing 1990).

An operation whose outcome is not known (`ended` is None) may take effect at any time after its call, or
never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

CONFIGURATIONS_MAX = 2_000_000  # per key; beyond it the search says that it does not know


class Act(StrEnum):
    """What a client asked of a register."""

    GET = "get"
    PUT = "put"
    CAS = "cas"  # put, if it holds `expected`
    DELETE = "delete"  # if it is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client, as that client saw it. None stands for "not there"."""

    client: str
    key: str
    act: Act
    called: float  # by one clock for all clients
    ended: float | None  # None: its outcome is not known
    value: Hashable = None  # written; or what GET answered
    expected: Hashable = None  # of CAS
    done: bool = True  # False: CAS or DELETE was rejected


class NotLinearizable(AssertionError):
    """No order explains the history of `key`; the message shows how far the best attempt came."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"the history of {key!r} is not linearizable: {problem}")
        self.key = key


class Undecided(AssertionError):
    """The search was given up; not a proof of anything."""


def check(history: Iterable[Operation], *, configurations_max: int = CONFIGURATIONS_MAX) -> int:
    """Raise NotLinearizable if a key's history has no explanation; return how many operations there were."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    for key, operations in by_key.items():
        _check_register(key, sorted(operations, key=lambda one: one.called), configurations_max)
    return sum(map(len, by_key.values()))


def _check_register(key: str, history: Sequence[Operation], configurations_max: int) -> None:
    """Depth first over the operations that may come next: those called before any unplaced one ended."""
    ends = [inf if one.ended is None else one.ended for one in history]
    must = sum(1 << at for at, one in enumerate(history) if one.ended is not None)
    start: tuple[int, Hashable] = (0, None)
    seen = {start}
    stack = [(start, iter(_next(history, ends, start)))]
    deepest: tuple[int, list[int], Hashable] = (-1, [], None)
    path: list[int] = []  # placed, in order; as long as the stack without its first
    while stack:
        (placed, state), moves = stack[-1]
        if placed & must == must:
            return
        if len(path) > deepest[0]:
            deepest = (len(path), list(path), state)
        for at, after in moves:
            configuration = (placed | 1 << at, after)
            if configuration not in seen:
                if len(seen) >= configurations_max:
                    raise Undecided(f"{key!r}: gave up after {configurations_max} configurations")
                seen.add(configuration)
                path.append(at)
                stack.append((configuration, iter(_next(history, ends, configuration))))
                break
        else:
            stack.pop()
            if path:
                path.pop()
    _, order, state = deepest
    raise NotLinearizable(key, _explain(history, order, state))


def _next(
    history: Sequence[Operation], ends: Sequence[float], configuration: tuple[int, Hashable]
) -> list[tuple[int, Hashable]]:
    placed, state = configuration
    moves: list[tuple[int, Hashable]] = []
    first_end = inf
    candidates: list[int] = []
    for at, one in enumerate(history):
        if one.called > first_end:
            break  # everything from here on was called after an unplaced one had ended
        if not placed >> at & 1:
            candidates.append(at)
            first_end = min(first_end, ends[at])
    for at in candidates:
        one = history[at]
        if one.called <= first_end and _fits(one, state):
            moves.append((at, _after(one, state)))
    # What has ended goes first: operations of unknown outcome are tried only where nothing else explains it.
    moves.sort(key=lambda move: ends[move[0]])
    return moves


def _fits(one: Operation, state: Hashable) -> bool:
    """Whether its answer could have been given in `state`. An unknown outcome fits anywhere."""
    if one.ended is None or one.act is Act.PUT:
        return True
    if one.act is Act.GET:
        return one.value == state
    held = state == one.expected if one.act is Act.CAS else state is not None
    return held is one.done


def _after(one: Operation, state: Hashable) -> Hashable:
    """The register after it."""
    match one.act:
        case Act.GET:
            return state
        case Act.PUT:
            return one.value
        case Act.CAS:
            return one.value if state == one.expected else state
        case Act.DELETE:
            return None


def _explain(history: Sequence[Operation], order: Sequence[int], state: Hashable) -> str:
    placed = set(order)
    left = [one for at, one in enumerate(history) if at not in placed and one.ended is not None]
    lines = [
        f"{len(order)} of {len(history)} operations can be put in an order that ends with {state!r}; then"
    ]
    lines += [f"  {_line(history[at])}" for at in order[-5:]]
    lines += ["cannot be followed by any of", *(f"  {_line(one)}" for one in left[:8])]
    return "\n".join(lines)


def _line(one: Operation) -> str:
    end = "?" if one.ended is None else f"{one.ended:.4f}"
    what = {
        Act.GET: f"-> {one.value!r}",
        Act.PUT: repr(one.value),
        Act.CAS: f"{one.expected!r} -> {one.value!r}",
        Act.DELETE: "",
    }[one.act]
    return f"{one.client} [{one.called:.4f}, {end}] {one.act} {what}{'' if one.done else ' (rejected)'}"
