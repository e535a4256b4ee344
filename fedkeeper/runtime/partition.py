"""How the training rows are dealt to the clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import TaskError
from fedkeeper.runtime.chance import generator
from fedkeeper.runtime.wire import PartitionSpec

Rows = NDArray[np.int64]


def deal(labels: NDArray[Any], clients: Sequence[str], spec: PartitionSpec, *, seed: int) -> dict[str, Rows]:
    """The rows of every client: int64 indices into `labels`, ascending, at least one each.

    Every row is dealt exactly once (`dirichlet`: at most once, and the same number to every client).
    The same labels, clients, spec and seed give the same rows.

    Raises TaskError: no clients, a client twice, fewer rows than shares to deal, an unknown scheme, or
    labels that are not one number per row where the scheme needs classes.
    """
    if not clients or len(set(clients)) != len(clients):
        raise TaskError(f"cannot deal rows to {list(clients)}: there must be clients, each named once")
    if spec.scheme not in _SCHEMES:
        raise TaskError(f"unknown partition scheme {spec.scheme!r}", hint=f"known: {', '.join(_SCHEMES)}")
    shares = len(clients) * (max(spec.shards_per_client, 1) if spec.scheme == "shards" else 1)
    if len(labels) < shares:
        raise TaskError(
            f"{len(labels)} training rows cannot be dealt as {shares} shares to {len(clients)} clients",
            hint="fewer clients, fewer shards_per_client, or more data",
        )
    parts = _SCHEMES[spec.scheme](labels, len(clients), spec, generator("partition", seed))
    return {name: np.sort(rows).astype(np.int64) for name, rows in zip(clients, parts, strict=True)}


def _iid(labels: NDArray[Any], clients: int, _spec: PartitionSpec, chance: np.random.Generator) -> list[Rows]:
    """All rows shuffled and cut into equal parts (sizes differ by one at most)."""
    return np.array_split(chance.permutation(len(labels)), clients)


def _shards(
    labels: NDArray[Any], clients: int, spec: PartitionSpec, chance: np.random.Generator
) -> list[Rows]:
    """Sorted by label, cut into clients x shards_per_client shards, dealt at random.

    Source: McMahan et al., arXiv:1602.05629, section 3: with 2 shards most clients see two digits only.
    """
    each = spec.shards_per_client
    if each < 1:
        raise TaskError(f"shards_per_client is {each}, and must be 1 or more")
    by_label = np.argsort(_classes(labels), kind="stable")
    shards = np.array_split(by_label, clients * each)
    order = chance.permutation(len(shards))
    return [np.concatenate([shards[i] for i in order[c * each : (c + 1) * each]]) for c in range(clients)]


def _dirichlet(
    labels: NDArray[Any], clients: int, spec: PartitionSpec, chance: np.random.Generator
) -> list[Rows]:
    """Each client's mix of classes is drawn from Dirichlet(alpha x overall mix); equal numbers of rows.

    Source: Hsu et al., arXiv:1909.06335, section 3. Rows are not put back: as a class runs out, the mixes
    of the clients still to come are drawn from the classes that are left.
    """
    if not (np.isfinite(spec.alpha) and spec.alpha > 0):
        raise TaskError(f"alpha is {spec.alpha}, and must be above 0")
    classes, of_row = np.unique(_classes(labels), return_inverse=True)
    pools = [chance.permutation(np.flatnonzero(of_row == c)) for c in range(len(classes))]
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    parts = []
    for _ in range(clients):
        mix = chance.dirichlet(spec.alpha * prior)
        counts = _draw_counts(mix, left, len(labels) // clients, chance)
        taken = [pool[n - k : n] for pool, n, k in zip(pools, left, counts, strict=True)]
        left = left - counts
        parts.append(np.concatenate(taken))
    return parts


def _draw_counts(
    mix: NDArray[np.float64], left: NDArray[np.int64], wanted: int, chance: np.random.Generator
) -> NDArray[np.int64]:
    """How many rows of each class, `wanted` in all, by `mix` among the classes that are not used up."""
    counts = np.zeros_like(left)
    while wanted:
        free = left - counts
        odds = np.where(free > 0, np.nan_to_num(mix), 0.0)
        if odds.sum() <= 0:  # a small alpha puts all the weight on classes that are used up
            odds = free.astype(np.float64)
        drawn = np.minimum(chance.multinomial(wanted, odds / odds.sum()), free)
        counts += drawn
        wanted -= int(drawn.sum())
    return counts


def _classes(labels: NDArray[Any]) -> NDArray[Any]:
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise TaskError(
            f"labels are {labels.dtype}{list(labels.shape)}: dealing by class needs one whole number per row",
            hint="use the scheme iid, or give class numbers as labels",
        )
    return labels


_Scheme = Callable[[NDArray[Any], int, PartitionSpec, np.random.Generator], list[Rows]]
_SCHEMES: Final[Mapping[str, _Scheme]] = {"iid": _iid, "shards": _shards, "dirichlet": _dirichlet}
