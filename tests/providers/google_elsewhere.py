"""A process of its own that calls a function with whatever Application Default Credentials it finds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from fedkeeper.errors import FedKeeperError
from fedkeeper.providers.google import resources
from fedkeeper.providers.google.login import IdTokens
from fedkeeper.providers.google.provider import Google

async def main(url):
    async with Google.open("gcf", project="p", region="l", api_endpoint=url) as provider:
        await provider.check()
        one = await provider.invoke("client_3", {}, key="k", timeout_s=10)
        async with asyncio.timeout(10):
            while not (ended := await provider.ended([one], since_ms=0)):
                await asyncio.sleep(0.01)
        print("ok" if ended[one].ok else ended[one].reason)

try:
    asyncio.run(main(sys.argv[1]))
except FedKeeperError as exc:
    print(type(exc).__name__, exc, exc.hint)
"""


async def elsewhere(url: str, folder: Path, **environment: str) -> str:
    """What a process says that has only Application Default Credentials, of that environment."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "NO_GCE_CHECK": "true", **environment}

    def run() -> str:
        argv = [sys.executable, "-c", PROGRAM, url]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            argv, env=bare, cwd=root, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return await asyncio.to_thread(run)
