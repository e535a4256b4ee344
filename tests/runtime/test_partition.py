from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkeeper.errors import TaskError
from fedkeeper.runtime.partition import deal
from fedkeeper.runtime.wire import PartitionSpec

schemes = st.one_of(
    st.just(PartitionSpec(scheme="iid")),
    st.builds(PartitionSpec, scheme=st.just("shards"), shards_per_client=st.integers(1, 4)),
    st.builds(PartitionSpec, scheme=st.just("dirichlet"), alpha=st.sampled_from((1e-3, 0.1, 0.5, 100.0))),
)
labelled = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(lambda rows: np.array(rows, np.uint8))


def names(count: int) -> tuple[str, ...]:
    """Client names."""
    return tuple(f"client_{i}" for i in range(count))


@given(labels=labelled, clients=st.integers(1, 12), spec=schemes, seed=st.integers(0, 2**64))
def test_rows_are_dealt_once_and_to_everybody(
    labels: np.ndarray, clients: int, spec: PartitionSpec, seed: int
) -> None:
    """At least one row each and none twice, or a clear refusal; iid and shards deal every row."""
    shares = clients * (spec.shards_per_client if spec.scheme == "shards" else 1)
    if len(labels) < shares:
        with pytest.raises(TaskError, match="cannot be dealt"):
            deal(labels, names(clients), spec, seed=seed)
        return
    rows = deal(labels, names(clients), spec, seed=seed)
    assert list(rows) == list(names(clients))
    assert all(len(part) and part.dtype == np.int64 for part in rows.values())
    dealt = np.concatenate(list(rows.values()))
    assert len(set(dealt.tolist())) == len(dealt)
    assert dealt.min() >= 0
    assert dealt.max() < len(labels)
    if spec.scheme == "dirichlet":
        assert {len(part) for part in rows.values()} == {len(labels) // clients}
    else:
        assert len(dealt) == len(labels)


@given(labels=labelled, spec=schemes, seed=st.integers(0, 2**32))
def test_the_same_seed_deals_the_same_rows(labels: np.ndarray, spec: PartitionSpec, seed: int) -> None:
    """Nothing but the arguments decides."""
    if len(labels) < 2 * spec.shards_per_client:
        return
    first, again = (deal(labels, names(2), spec, seed=seed) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_dealing_is_the_same_on_every_machine_and_version() -> None:
    """A resumed run must find the rows it began with: these numbers were written down once."""
    labels = np.arange(12) % 3
    dealt = {
        scheme: {
            n: r.tolist() for n, r in deal(labels, ("a", "b"), PartitionSpec(scheme=scheme), seed=1).items()
        }
        for scheme in ("iid", "shards", "dirichlet")
    }
    assert dealt == {
        "iid": {"a": [0, 2, 4, 7, 10, 11], "b": [1, 3, 5, 6, 8, 9]},
        "shards": {"a": [0, 2, 3, 6, 7, 10], "b": [1, 4, 5, 8, 9, 11]},
        "dirichlet": {"a": [1, 2, 4, 5, 7, 10], "b": [0, 3, 6, 8, 9, 11]},
    }


def test_two_shards_show_most_clients_two_classes() -> None:
    """McMahan et al.: 100 clients, 200 shards of sorted digits; a shard may straddle a border."""
    labels = np.repeat(np.arange(10), 600)
    rows = deal(labels, names(100), PartitionSpec(scheme="shards", shards_per_client=2), seed=3)
    assert max(len(np.unique(labels[part])) for part in rows.values()) <= 2
    assert {len(part) for part in rows.values()} == {60}


def test_alpha_says_how_alike_the_clients_are() -> None:
    """A small alpha gives clients of few classes, a large one gives everybody the overall mix."""
    labels = np.tile(np.arange(10), 500)

    def classes_seen(alpha: float) -> float:
        rows = deal(labels, names(10), PartitionSpec(scheme="dirichlet", alpha=alpha), seed=3)
        shares = [np.bincount(labels[part], minlength=10) / len(part) for part in rows.values()]
        return float(np.mean([share.max() for share in shares]))

    assert classes_seen(0.05) > 0.5
    assert classes_seen(1000.0) < 0.15


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (PartitionSpec(scheme="idd"), "unknown partition scheme 'idd'"),
        (PartitionSpec(scheme="dirichlet", alpha=0.0), "alpha is 0.0"),
        (PartitionSpec(scheme="dirichlet", alpha=float("nan")), "alpha is nan"),
        (PartitionSpec(scheme="shards", shards_per_client=0), "shards_per_client is 0"),
    ],
)
def test_impossible_schemes_are_named(spec: PartitionSpec, problem: str) -> None:
    """The value is in the message."""
    with pytest.raises(TaskError, match=problem):
        deal(np.arange(10), names(2), spec, seed=1)


@pytest.mark.parametrize("scheme", ["shards", "dirichlet"])
def test_dealing_by_class_needs_classes(scheme: str) -> None:
    """One-hot or fractional labels name the problem; iid takes them."""
    for labels in (np.eye(10), np.linspace(0, 1, 10)):
        with pytest.raises(TaskError, match="one whole number per row"):
            deal(labels, names(2), PartitionSpec(scheme=scheme), seed=1)
        assert deal(labels, names(2), PartitionSpec(scheme="iid"), seed=1)


def test_clients_are_named_once() -> None:
    """No clients, or the same twice: refused."""
    for clients in ((), ("a", "a")):
        with pytest.raises(TaskError, match="each named once"):
            deal(np.arange(10), clients, PartitionSpec(scheme="iid"), seed=1)
