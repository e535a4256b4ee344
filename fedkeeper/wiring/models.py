"""Weights out of the store, into a file."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

from fedkeeper.config import Experiment
from fedkeeper.core.model import ObjectRef
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.tensors import pack
from fedkeeper.wiring.session import open_store_address


async def write_model(experiment: Experiment, run: str, weights: ObjectRef, path: Path) -> None:
    """Write `weights` to `path` (safetensors), whole or not at all. StoreError, OSError."""
    async with AsyncExitStack() as stack:
        address = await open_store_address(experiment, stack)
        await asyncio.to_thread(_write, address, run, weights, path)


def _write(address: StoreAddress, run: str, weights: ObjectRef, path: Path) -> None:
    objects = open_store(address)
    try:
        tensors = objects.get(weights.name, sha256=weights.sha256)
    finally:
        objects.close()
    fresh = path.with_name(f"{path.name}.{os.getpid()}")  # a keeper may write the same at the same time
    try:
        fresh.write_bytes(pack(tensors, {"run": run, "sha256": weights.sha256}))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
