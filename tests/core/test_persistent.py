"""Collections that change by making another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkeeper.core.persistent import CHUNK, Buckets, Grown, Recent
from tests.strategies import texts

_edits = st.lists(st.tuples(texts, st.one_of(st.none(), st.integers())), max_size=40)


@given(start=st.dictionaries(texts, st.integers()), edits=_edits)
def test_buckets_hold_what_a_dictionary_would(start, edits):
    """And every earlier one stays as it was."""
    plain, buckets = dict(start), Buckets(start)
    earlier = []
    for name, value in edits:
        earlier.append((dict(plain), buckets))
        if value is None:
            plain.pop(name, None)
            buckets = buckets.drop(name)
        else:
            plain[name] = value
            buckets = buckets.put(name, value)
        assert (len(buckets), buckets.get(name)) == (len(plain), plain.get(name))
    assert buckets == plain
    assert all(one == expected for expected, one in earlier)
    with pytest.raises(KeyError):
        buckets["\ud800 not there"]


@given(start=st.dictionaries(texts, st.integers()), edits=_edits)
def test_buckets_come_back_from_a_dictionary_in_the_same_order(start, edits):
    """A replica that was restored from a snapshot must iterate as one that was not."""
    buckets = Buckets(start)
    for name, value in edits:
        buckets = buckets.drop(name) if value is None else buckets.put(name, value)
    restored = Buckets(dict(buckets))
    assert list(restored) == list(buckets)
    assert list(restored.put("new", 1).drop("a")) == list(buckets.put("new", 1).drop("a"))


def test_every_version_sorts_into_the_same_buckets():
    """The order of a dictionary's names is part of what replicas agree on."""
    assert list(Buckets(dict.fromkeys(("a", "b", "c", "é", "\ud800"), 1))) == ["\ud800", "é", "a", "c", "b"]


@pytest.mark.parametrize("count", [0, 1, CHUNK, 10 * CHUNK, 10 * CHUNK + 1, 1_500])
def test_recent_keeps_the_latest_in_their_order(count):
    """At most `limit` of them, at least `limit` less a chunk, if so many have been there."""
    limit = 4 * CHUNK
    recent = Recent()
    for number in range(count):
        recent = recent.add(str(number), number, limit=limit)
        assert len(recent) <= limit
        assert str(number) in recent
    assert len(recent) >= min(count, limit - CHUNK)
    assert list(recent.items()) == [(str(n), n) for n in range(count - len(recent), count)]


def test_recent_comes_back_from_a_dictionary_with_the_same_chunks():
    """Or a restored replica would forget at another moment than the others."""
    recent = Recent()
    for number in range(1_000):
        recent = recent.add(str(number), number, limit=4 * CHUNK)
    restored = Recent(dict(recent))
    for number in range(1_000, 1_300):
        recent = recent.add(str(number), number, limit=4 * CHUNK)
        restored = restored.add(str(number), number, limit=4 * CHUNK)
        assert list(restored) == list(recent)


@given(start=st.lists(st.integers(), max_size=3 * CHUNK), more=st.lists(st.integers(), max_size=2 * CHUNK))
def test_a_grown_list_holds_what_a_list_would(start, more):
    """However it was made; and every earlier one stays as it was."""
    earlier = grown = Grown(start)
    for value in more:
        grown = grown.add(value)
    both = start + more
    assert (grown, len(grown), list(grown)) == (both, len(both), both)
    assert earlier == start
    assert Grown(both) == grown
    assert [grown[at] for at in range(-len(both), len(both))] == both + both
    assert grown[1:-1] == tuple(both[1:-1])
    assert grown != [*both, 0]
    assert grown != "neither"


@given(start=st.lists(st.integers(), max_size=3 * CHUNK), more=st.lists(st.integers(), max_size=2 * CHUNK))
def test_the_news_of_a_grown_list_are_its_end(start, more):
    """All that came since, and no more than one chunk of what was there."""
    before = grown = Grown(start)
    for value in more:
        grown = grown.add(value)
    news = list(grown.news(before))
    assert len(more) <= len(news) < len(more) + CHUNK
    assert news == (start + more)[len(start) + len(more) - len(news) :]
    assert list(grown.news([])) == start + more
