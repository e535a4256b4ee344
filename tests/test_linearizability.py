"""The checker knows good histories from bad ones."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.linearizability import Act, NotLinearizable, Operation, Undecided, check


def op(client, act, called, ended, value=None, *, key="x", expected=None, done=True):
    """An operation, without the names of its fields."""
    return Operation(
        client=client,
        key=key,
        act=Act(act),
        called=called,
        ended=ended,
        value=value,
        expected=expected,
        done=done,
    )


GOOD = {
    "nothing": [],
    "one after the other": [op("a", "put", 0, 1, 1), op("b", "get", 2, 3, 1)],
    "a read beside a write may see it": [op("a", "put", 0, 3, 1), op("b", "get", 1, 2, 1)],
    "or not": [op("a", "put", 0, 3, 1), op("b", "get", 1, 2, None)],
    "an unknown write may never happen": [op("a", "put", 0, None, 1), op("b", "get", 5, 6, None)],
    "or late": [
        op("a", "put", 0, None, 1),
        op("b", "get", 1, 2, None),
        op("b", "get", 8, 9, 1),
    ],
    "a rejected compare-and-set": [
        op("a", "put", 0, 1, 1),
        op("b", "cas", 2, 3, 9, expected=7, done=False),
        op("b", "get", 4, 5, 1),
    ],
    "an unknown write explains a rejection, though nobody reads it": [
        op("a", "put", 0, 1, 1),
        op("b", "put", 2, None, 2),
        op("c", "cas", 3, 4, 3, expected=1, done=False),
    ],
    "of two racing compare-and-sets one wins": [
        op("a", "cas", 0, 5, 1, expected=None),
        op("b", "cas", 0, 5, 2, expected=None, done=False),
        op("c", "get", 6, 7, 1),
    ],
    "deleted": [
        op("a", "put", 0, 1, 1),
        op("a", "delete", 2, 3),
        op("b", "get", 4, 5, None),
        op("b", "delete", 6, 7, done=False),
    ],
    "touching ends are concurrent": [op("a", "put", 0, 1, 1), op("b", "get", 1, 2, None)],
    "two keys do not order each other": [
        op("a", "put", 0, 9, 1),
        op("b", "get", 1, 2, 1),
        op("a", "put", 0, 9, 1, key="y"),
        op("b", "get", 3, 4, None, key="y"),
    ],
}

BAD = {
    "a lost write": [op("a", "put", 0, 1, 1), op("b", "get", 2, 3, None)],
    "a stale read": [
        op("a", "put", 0, 1, 1),
        op("a", "put", 2, 3, 2),
        op("b", "get", 4, 5, 1),
    ],
    "a write undone": [
        op("a", "put", 0, 9, 1),
        op("b", "get", 1, 2, 1),
        op("c", "get", 3, 4, None),
    ],
    "two readers see two writes in different orders": [
        op("a", "put", 0, 9, 1),
        op("b", "put", 0, 9, 2),
        op("c", "get", 1, 2, 1),
        op("c", "get", 3, 4, 2),
        op("d", "get", 5, 6, 1),
    ],
    "both compare-and-sets win": [
        op("a", "cas", 0, 5, 1, expected=None),
        op("b", "cas", 0, 5, 2, expected=None),
    ],
    "a read of what nobody wrote": [op("a", "put", 0, 1, 1), op("b", "get", 2, 3, 7)],
    "an unknown write before its call": [op("b", "get", 1, 2, 1), op("a", "put", 3, None, 1)],
    "an unknown write twice": [
        op("a", "put", 0, None, 1),
        op("b", "get", 1, 2, 1),
        op("b", "put", 3, 4, 2),
        op("b", "get", 5, 6, 2),
        op("b", "get", 7, 8, 1),
    ],
    "a rejection without a reason": [
        op("a", "put", 0, 1, 1),
        op("b", "cas", 2, 3, 9, expected=1, done=False),
    ],
    "the second key is bad": [
        op("a", "put", 0, 1, 1),
        op("a", "put", 2, 3, 1, key="y"),
        op("b", "get", 4, 5, None, key="y"),
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_one_order_explains_passes(history):
    """Every operation is counted."""
    assert check(history) == len(history)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_no_order_explains_is_refused(history):
    """And the message names the key."""
    with pytest.raises(NotLinearizable, match=r"history of '[xy]'"):
        check(history)


def test_a_search_that_is_too_long_says_that_it_does_not_know():
    """It must not pass for a proof."""
    history = [op(f"c{n}", "put", 0, None, n) for n in range(12)] + [op("r", "get", 1, 2, "never")]
    with pytest.raises(Undecided):
        check(history, configurations_max=1000)


def brute_force(history):
    """Every order of every subset that holds what has ended: the definition itself."""
    unknown = [one for one in history if one.ended is None]
    ended = [one for one in history if one.ended is not None]
    for count in range(len(unknown) + 1):
        for extra in itertools.combinations(unknown, count):
            if any(_explains(order) for order in itertools.permutations([*ended, *extra])):
                return True
    return False


def _explains(order):
    for at, one in enumerate(order):
        if any(later.ended is not None and later.ended < one.called for later in order[at + 1 :]):
            return False
    state = None
    for one in order:
        known = one.ended is not None
        match one.act:
            case Act.GET:
                if known and one.value != state:
                    return False
            case Act.PUT:
                state = one.value
            case Act.CAS:
                held = state == one.expected
                if known and held is not one.done:
                    return False
                state = one.value if held else state
            case Act.DELETE:
                held = state is not None
                if known and held is not one.done:
                    return False
                state = None
    return True


def test_it_agrees_with_the_definition_on_small_histories():
    """1,500 random histories of six operations, against all permutations; both answers occur often."""
    answers = {True: 0, False: 0}
    chance = random.Random(1)  # noqa: S311 - no secret
    for _ in range(1500):
        history = []
        for n in range(6):
            called = chance.randint(0, 12)
            ended = None if chance.random() < 0.2 else called + chance.randint(1, 8)
            act = chance.choice(list(Act))
            value = chance.choice((None, 0, 1, 2)) if act is Act.GET else chance.choice((0, 1, 2))
            history.append(
                op(
                    f"c{n}",
                    act,
                    called,
                    ended,
                    value,
                    expected=chance.choice((None, 0, 1)),
                    done=act in (Act.GET, Act.PUT) or chance.random() < 0.5,
                )
            )
        try:
            check(history)
            answer = True
        except NotLinearizable:
            answer = False
        assert answer is brute_force(history), history
        answers[answer] += 1
    assert min(answers.values()) > 100
