"""How fast updates become weights, and in how much memory: the product's aggregation over a real mongod.

    python -m benchmarks.aggregation
    python -m benchmarks.aggregation --cases 100x6.65MB,10x100MB --shards 1,3 --json aggregation.json
    python -m benchmarks.aggregation --cases 4x5GB --shards 0 --memory-mb 1024

Each aggregator is a process of its own, as in a function; all shards of a case run one after the other, or
`--at-once` of them together, then one more puts them together. The floor is measured in the same run, in a
process of its own: the same bytes read by pymongo's GridFS and added by numpy, without a look at them, and
the sum written back. The first line is of the arithmetic alone: of ours, and of numpy's `sum += block`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gridfs
import numpy as np
import psutil
from pymongo import MongoClient

from benchmarks.cases import Case, Json
from fedkeeper.runtime import mongo
from fedkeeper.runtime import tensors as codec
from fedkeeper.runtime.aggregation import aggregate
from fedkeeper.runtime.averaging import Average
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.layout import Layout
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.wire import AggregateTask, DataSpec, ModelSpec, Ref, Source, UpdateRef
from fedkeeper.weights.embedded import open_embedded_mongo

RUN = "benchmark-1"
TENSOR = 2**18  # numbers
BLOCK = 2**20
SHARD_BYTES = 128 * 2**20  # as the config's default


@dataclass(frozen=True)
class Cost:
    """Of one process's work."""

    wall_s: float
    cpu_s: float
    start_mb: float  # resident before it, Python and its libraries
    peak_mb: float


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def measured(work: Callable[[], Any]) -> tuple[Any, Cost]:
    """What `work` returns, and what it cost. The peak is that of the process's life."""
    start_mb, cpu, wall = _resident_mb(), time.process_time(), time.perf_counter()
    result = work()
    took = time.perf_counter() - wall
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, Cost(took, time.process_time() - cpu, start_mb, peak_mb)


# --- what the processes do ------------------------------------------------------------------------------


def limit(memory_mb: int) -> None:
    """At most so much memory for this process beyond what it has mapped, as far as the kernel counts it."""
    if memory_mb:
        bound = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def store_updates(address: StoreAddress, clients: int, nbytes: int) -> tuple[Ref, list[Ref]]:
    """The base weights, and an update of each client."""
    base = store_update(address, f"{RUN}/w0", nbytes, 0, 0)
    names = [f"{RUN}/r1/client_{number}/a0" for number in range(clients)]
    return base, [store_update(address, name, nbytes, number, 1) for number, name in enumerate(names)]


def store_update(address: StoreAddress, name: str, nbytes: int, seed: int, round_no: int) -> Ref:
    """An update of random numbers; only some MB of it are in memory at a time."""
    sizes = [min(TENSOR, nbytes // 4 - at) for at in range(0, nbytes // 4, TENSOR)]
    header = _header(sizes)
    block = np.random.default_rng(seed).standard_normal(TENSOR, np.float32)

    def pieces() -> Iterator[bytes]:
        yield header
        for number, size in enumerate(sizes):
            yield (np.roll(block, number % 997)[:size] + np.float32(number % 7)).tobytes()

    return open_store(address).put_bytes(name, codec.describe(header), pieces, run=RUN, round_no=round_no)


def _header(sizes: list[int]) -> bytes:
    """As `pack` writes it, of float32 tensors of these sizes."""
    entries: dict[str, Any] = {}
    at = 0
    order = [f"{number:05d}:w" for number in range(len(sizes))]
    entries["__metadata__"] = {"fedkeeper.order": json.dumps(order)}
    for name, size in zip(order, sizes, strict=True):
        entries[name] = {"dtype": "F32", "shape": [size], "data_offsets": [at, at + 4 * size]}
        at += 4 * size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def one_aggregator(address: StoreAddress, task: AggregateTask, memory_mb: int) -> tuple[Ref, Cost]:
    """The product's own."""
    limit(memory_mb)
    done, cost = measured(lambda: aggregate(task, open_store(address)).ref)
    assert done is not None
    return done, cost


def floor(address: StoreAddress, blobs: list[Any], nbytes: int) -> tuple[None, Cost]:
    """pymongo and numpy: read, add, write."""
    client: MongoClient[Json] = MongoClient(**mongo.client_options(address))
    database = client.get_database(address.database, **mongo.database_options(address))
    bucket = gridfs.GridFSBucket(database, mongo.Names(address.collection).blobs)

    def work() -> None:
        total = np.zeros(nbytes // 4, np.float64)
        for blob in blobs:
            with bucket.open_download_stream(blob) as stream:
                data = stream.read()
            total += np.frombuffer(data, np.float32, nbytes // 4, len(data) - nbytes)
        written = bucket.upload_from_stream("floor", (total / len(blobs)).astype(np.float32).tobytes())
        bucket.delete(written)

    return measured(work)


def folds(seconds: float = 1.0) -> tuple[Json, Cost]:
    """GB/s of the arithmetic alone: numpy's, and ours."""
    data = codec.pack({"w": np.random.default_rng(0).standard_normal(4 * TENSOR, np.float32)})
    layout = Layout.of(codec.describe(data), len(data))
    average = Average(layout, 0, layout.data_bytes)
    blocks = [data[at : at + BLOCK] for at in range(layout.header_bytes, len(data), BLOCK)]
    total = np.zeros(4 * TENSOR, np.float64)

    def numpys() -> None:
        for number, block in enumerate(blocks):
            part = total[number * TENSOR : (number + 1) * TENSOR]
            part += np.frombuffer(block, np.float32)

    def ours() -> None:
        for number, block in enumerate(blocks):
            average.add(number * BLOCK, block, 600)

    def rate(work: Callable[[], None]) -> float:
        work()
        begun, times = time.process_time(), 0
        while (spent := time.process_time() - begun) < seconds:
            work()
            times += 1
        return times * layout.data_bytes / spent / 1e9

    return measured(lambda: {"numpy GB/s": rate(numpys), "ours GB/s": rate(ours)})


# --- a case ---------------------------------------------------------------------------------------------


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run it in a fresh process, and return what it returned."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _task(base: Ref, updates: tuple[UpdateRef, ...]) -> AggregateTask:
    nowhere = Source(url="file:///nowhere")
    return AggregateTask(
        key=f"{RUN}/r1/aggregate/s0/a0",
        run=RUN,
        round=1,
        base=base,
        updates=updates,
        model=ModelSpec(name="none", input_shape=(1,)),
        data=DataSpec(train_images=nowhere, train_labels=nowhere, test_images=nowhere, test_labels=nowhere),
        max_model_bytes=2**40,
    )


def sharded(
    address: StoreAddress, task: AggregateTask, shards: int, memory_mb: int, at_once: int
) -> tuple[Ref, list[Cost], Cost | None]:
    """The weights, what each shard cost, and what putting them together did."""
    if shards == 1:
        ref, cost = apart(one_aggregator, address, task, memory_mb)
        return ref, [cost], None
    tasks = [
        replace(task, shard=number, shards=shards, key=f"{RUN}/r1/aggregate/s{number}/a0")
        for number in range(shards)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(one_aggregator, address, one, memory_mb) for one in tasks]
        done = [one.result() for one in waiting]
    parts = tuple(ref for ref, _ in done)
    join = replace(task, updates=(), parts=parts, shards=shards, key=f"{RUN}/r1/aggregate/join/a0")
    ref, cost = apart(one_aggregator, address, join, memory_mb)
    return ref, [one for _, one in done], cost


def measure(case: Case, address: StoreAddress, chosen: argparse.Namespace) -> list[Json]:
    """One case, with each number of shards."""
    nbytes = case.nbytes // 4 * 4
    base, stored = apart(store_updates, address, case.clients, nbytes)
    updates = tuple(
        UpdateRef(client=f"client_{number}", update=ref, samples=600 + number)
        for number, ref in enumerate(stored)
    )
    client: MongoClient[Json] = MongoClient(**mongo.client_options(address))
    objects = client[address.database][mongo.Names(address.collection).objects]
    found = {one["_id"]: one.get("blob") for one in objects.find({}, {"blob": True})}
    blobs = [found[one.update.name] for one in updates]
    rows: list[Json] = []
    for wanted in chosen.shards:
        shards = wanted or -(-nbytes // SHARD_BYTES)
        least: Cost | None = None
        for _ in range(chosen.times):
            if all(blobs) and not chosen.no_floor:
                _, cost = apart(floor, address, blobs, nbytes)
                least = cost if least is None or cost.wall_s < least.wall_s else least
            ref, costs, join = sharded(
                address, _task(base, updates), shards, chosen.memory_mb, chosen.at_once
            )
            rows.append(_row(case, shards, ref, costs, join, chosen.at_once, least, nbytes))
            print(json.dumps(rows[-1], indent=1), flush=True)
    assert len({row["weights"] for row in rows}) == 1, "the weights depend on the number of shards"
    return rows


def _row(
    case: Case,
    shards: int,
    ref: Ref,
    costs: list[Cost],
    join: Cost | None,
    at_once: int,
    least: Cost | None,
    nbytes: int,
) -> Json:
    read = case.clients * nbytes
    spread_s = sum(one.wall_s for one in costs) / min(shards, at_once)  # without starting the processes
    work_s = spread_s + (join.wall_s if join else 0.0)
    shard_mb = nbytes / shards / 2**20
    all_costs = [*costs, *([join] if join else [])]
    peak = max(one.peak_mb - one.start_mb for one in all_costs)
    row = {
        "case": case.label,
        "shards": shards,
        "wall s": round(work_s, 3),
        "GB/s": round(read / work_s / 1e9, 3),
        "cpu s": round(sum(one.cpu_s for one in all_costs), 2),
        "largest growth MB": round(peak, 1),
        "2 x shard + 64 MB": round(2 * shard_mb + 64, 1),
        "largest resident MB": round(max(one.peak_mb for one in all_costs), 1),
        "join s": round(join.wall_s, 2) if join else 0,
        "weights": ref.sha256[:16],
        "load": round(os.getloadavg()[0], 1),
    }
    if least is not None:
        row |= {
            "floor GB/s": round(read / least.wall_s / 1e9, 3),
            "of floor": round(least.wall_s / work_s, 2),
            "floor cpu s": round(least.cpu_s, 2),
            "floor": asdict(least),
        }
    return row


async def _over_mongo(folder: Path, work: Callable[[StoreAddress], None]) -> None:
    opened = await open_embedded_mongo(folder, database="benchmark", collection="w")
    try:
        await asyncio.to_thread(work, opened.address)
    finally:
        await opened.close()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="100x6.65MB")
    parser.add_argument(
        "--shards",
        default="1,3",
        type=lambda text: [int(one) for one in text.split(",")],
        help="0: by the rule",
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="aggregators")
    parser.add_argument("--memory-mb", type=int, default=0, help="limit of each aggregator (MB); 0: none")
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[Json] = []

    def work(address: StoreAddress) -> None:
        fold, _ = apart(folds)
        fold["of numpy"] = fold["ours GB/s"] / fold["numpy GB/s"]
        print(json.dumps({name: round(value, 2) for name, value in fold.items()}), flush=True)
        for number, case in enumerate(map(Case.read, chosen.cases.split(","))):
            rows.extend(measure(case, replace(address, collection=f"w{number}"), chosen))

    with TemporaryDirectory(prefix="aggregation") as scratch:
        asyncio.run(_over_mongo(Path(scratch), work))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
