"""Writes per second over the keepers' HTTP API, of 1, 64 and 256 clients, with 100 and 1,000 bytes.

    python -m benchmarks.api --seconds 3

Clients are keep-alive connections of one process that each wait for their answer; written by hand, so that
the load costs little of the processors. In the same run: a bare aiohttp handler that answers what it is sent
(the ceiling of the HTTP server itself), the API over a log in memory, and the API of three keepers in three
processes with real network, disk and fsync. Reference: rafty, 100 requests/s with 1 client, 2,000 with 3
servers and 64 clients, 1,500 with 256.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.load import ECHO, Json, load, request, serving
from benchmarks.nodes import cluster, settled
from benchmarks.reference import piece_us
from fedkeeper.keeper.api.app import open_api
from fedkeeper.keeper.api.control import LogControl
from fedkeeper.keeper.api.server import listen
from fedkeeper.replication.memory import MemoryLog


def puts(url: str, *, clients: int, size: int) -> list[bytes]:
    """The request of each client: a PUT of its own key."""
    body = json.dumps({"value": "x" * (size - 2), "request": ""}).encode()
    return [request("PUT", url, f"/v1/kv/load/{number}", body) for number in range(clients)]


async def serve_memory() -> None:
    """The process of the API over a log in memory: prints its address, then serves for ever."""
    log = MemoryLog()
    async with open_api(log, LogControl(log), listen("127.0.0.1", 0)) as api:
        print(api.url, flush=True)
        await asyncio.Event().wait()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", default="1,64,256")
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--fsync", choices=("on", "off"), default="on")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve-memory", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve_memory:
        asyncio.run(serve_memory())
    rows: list[Json] = []
    loads = [(int(c), int(size)) for c in chosen.clients.split(",") for size in chosen.sizes.split(",")]
    with (
        TemporaryDirectory(prefix="api", dir=Path.cwd()) as scratch,
        serving(ECHO) as (echo, _),
        serving("benchmarks.api", "--serve-memory") as (memory, _),
        cluster(3, Path(scratch), {"timing": "patient", "fsync": chosen.fsync == "on"}) as nodes,
    ):
        urls = {node.name: node.ask(do="api")["url"] for node in nodes}
        for clients, size in loads:
            bare = asyncio.run(load(echo, puts(echo, clients=clients, size=size), seconds=chosen.seconds))
            leader = settled(nodes)
            for kind, url in (("memory", memory), ("3 keepers", urls[leader.name])):
                before = leader.cpu_s()
                requests = puts(url, clients=clients, size=size)
                got = asyncio.run(load(url, requests, seconds=chosen.seconds))
                row: Json = {"over": kind, "clients": clients, "bytes": size, **got}
                row |= {"of echo": round(got["per_s"] / bare["per_s"], 2), "piece us": round(piece_us(), 1)}
                if url != memory:
                    row["leader us"] = round((leader.cpu_s() - before) / got["count"] * 1e6)
                row["load"] = round(os.getloadavg()[0], 1)
                rows.append(row)
                print(row, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
