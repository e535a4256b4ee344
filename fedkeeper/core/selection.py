"""Which clients take part in a round: chance that every replica and every later version shares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def choose_clients(clients: Iterable[str], count: int, *, seed: int, round_no: int) -> tuple[str, ...]:
    """Draw `count` distinct clients (all, if there are fewer), in the order in which they were given.

    Ranked by SHA-256 of seed, round and id: `random.sample` may change between Python versions.
    """

    def rank(client: str) -> bytes:
        # A lone surrogate is no reason to raise: nothing in the core may.
        return hashlib.sha256(f"{seed}/{round_no}/{client}".encode(errors="surrogatepass")).digest()

    pool = tuple(clients)
    drawn = set(sorted(pool, key=rank)[:count])
    return tuple(client for client in pool if client in drawn)
