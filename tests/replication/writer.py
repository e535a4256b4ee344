"""A process that writes to a log until it is killed, and prints the number of each acknowledged command.

Arguments: the folder, and the size in bytes beyond which the kernel refuses to write (0: no limit).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import sys
from pathlib import Path

from fedkeeper.errors import JournalError
from fedkeeper.replication.single import SingleLog
from tests.replication import toy

SIDE_BY_SIDE = 6


async def _propose(log: SingleLog, numbers: itertools.count[int]) -> None:
    while True:
        number = next(numbers)
        await log.propose(toy.command(number))
        os.write(1, b"%d\n" % number)


async def main(folder: Path, bytes_max: int) -> None:
    """Write until killed, or until the log refuses."""
    if bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    async with SingleLog.open(folder, snapshot_every=1_000_000 if bytes_max else 25, apply=toy.apply) as log:
        numbers = itertools.count(toy.count(log.state) + 1)
        try:
            await asyncio.gather(*(_propose(log, numbers) for _ in range(SIDE_BY_SIDE)))
        except JournalError as first:
            try:
                await log.propose(toy.command(1))
            except JournalError as second:
                os.write(1, f"{type(first).__name__}, then {type(second).__name__}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
