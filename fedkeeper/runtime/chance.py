"""Chance that can be repeated: every draw is named by what it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*parts: object) -> np.random.Generator:
    """A generator seeded by SHA-256 over `parts`, e.g. ("rows", seed, round, client, epoch).

    The same parts give the same draws in every process and on every platform.
    """
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))


def seed_of(*parts: object, bits: int = 256) -> int:
    """A whole number of `bits` bits (a multiple of 8, at most 256) from SHA-256 over `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[: bits // 8], "big")
