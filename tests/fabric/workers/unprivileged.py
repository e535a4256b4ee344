"""`python -m tests.fabric.workers.unprivileged FOLDER`: workers that break their limits, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from tests.fabric.workers.conftest import Bench
from tests.fabric.workers.test_without_groups import over_the_limits


async def main(folder: Path) -> None:
    """Print it."""
    async with AsyncExitStack() as stack:
        bench = Bench(folder, stack)
        pool = await bench.open(processes_max=20)
        results = await over_the_limits(bench)
        told = {"uid": os.geteuid(), "controllers": pool._cgroups.controllers, "results": results}
        sys.stdout.write(f"\n{json.dumps(told)}\n")


asyncio.run(main(Path(sys.argv[1])))
