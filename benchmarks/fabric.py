"""The embedded fabric under load, each figure beside a reference of the same run.

    python -m benchmarks.fabric --seconds 5

- warm: blocking invocations of an action that returns its argument, by 1, 8 and 64 callers, next to a bare
  aiohttp handler that answers what it is sent. Callers are keep-alive connections of one process that each
  wait for their answer. Aim: p50 of at most 1.4 ms for one caller, at least 1,000 invocations a second.
- cold: from the request to the answer of a first invocation, next to a plain `python` that does the same.
  Aim: a TensorFlow worker in at most 50 ms.
- memory: what each further TensorFlow worker adds, once it has answered and once it has trained (PSS: pages
  that n processes share count 1/n; private: pages of its own). Aim: at most 80 MB each.
- burst: 1,000 non-blocking invocations submitted at once, until all their records can be read.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from benchmarks.load import ECHO, Json, load, request, serving
from benchmarks.processes import split_cpu
from benchmarks.reference import piece_us
from fedkeeper import service
from fedkeeper.fabric.launch import open_fabric

ECHO_CODE = "def main(args):\n    return args\n"
PLAIN = "import os\ndef main(args):\n    return {'pid': os.getpid()}\n"
# What trains in FedKeeper's client: a compiled Keras model, some steps.
TRAINING = """
import os
import keras
import numpy as np
import tensorflow as tf
def main(args):
    if args.get("train"):
        model = keras.Sequential([
            keras.layers.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 5, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ])
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(np.random.rand(64, 28, 28, 1), np.arange(64) % 10, batch_size=32, verbose=0)
    return {"pid": os.getpid(), "version": tf.__version__}
"""


class Whisk:
    """A client of the fabric's OpenWhisk API."""

    def __init__(self, url: str, auth: str, http: aiohttp.ClientSession) -> None:
        self.url, self._http = url, http
        self.login = f"Basic {base64.b64encode(auth.encode()).decode()}"

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of a call under /namespaces/_/."""
        url = f"{self.url}/api/v1/namespaces/_/{path}"
        async with self._http.request(
            method, url, json=body, headers={"Authorization": self.login}
        ) as answer:
            return answer.status, await answer.json()

    async def put(self, name: str, code: str, requirements: str = "", memory_mb: int = 256) -> None:
        """An action of this code."""
        text = code if not requirements else base64.b64encode(_zip(code, requirements)).decode()
        limits = {"memory": memory_mb, "timeout": 120_000}
        body = {"exec": {"kind": "python:default", "code": text}, "limits": limits}
        status, answer = await self.call("PUT", f"actions/{name}?overwrite=true", body)
        if status != 200:
            raise RuntimeError(answer)

    async def result(self, name: str, payload: Json) -> Json:
        """What a blocking invocation returns."""
        status, record = await self.call("POST", f"actions/{name}?blocking=true", payload)
        if status != 200:
            raise RuntimeError(record)
        answer: Json = record["response"]["result"]
        return answer


def _zip(code: str, requirements: str) -> bytes:
    import io  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("__main__.py", code)
        bundle.writestr("requirements.txt", requirements)
    return packed.getvalue()


async def warm(whisk: Whisk, fabric_pid: int, echo: str, echo_pid: int, seconds: float) -> list[Json]:
    """Blocking invocations next to the bare server."""
    await whisk.put("echo", ECHO_CODE, memory_mb=128)
    body = json.dumps({"x": "y" * 64}).encode()
    path = "/api/v1/namespaces/_/actions/echo?blocking=true&result=true"
    invoke = request("POST", whisk.url, path, body, Authorization=whisk.login)
    bare = request("POST", echo, "/", body, Authorization=whisk.login)
    await load(whisk.url, [invoke] * 8, seconds=1)
    rows = []
    for callers in (1, 8, 64):
        reference, _, echo_us = await _loaded(echo, echo_pid, [bare] * callers, seconds)
        got, below_us, own_us = await _loaded(whisk.url, fabric_pid, [invoke] * callers, seconds)
        row = {
            **got,
            "fabric us": own_us,
            "workers us": below_us,
            "echo us": echo_us,
            "cpu of echo": round((own_us + below_us) / echo_us, 1),
            "of echo": round(got["per_s"] / reference["per_s"], 3),
            "p50 of echo": round(got["p50_ms"] / max(reference["p50_ms"], 0.01), 1),
        }
        rows.append(_shown({"warm, callers": callers, **row, "echo": reference}))
    return rows


async def _loaded(url: str, pid: int, requests: list[bytes], seconds: float) -> tuple[Json, int, int]:
    """What the callers saw, and CPU per request (us): of what the server has started, and its own."""
    before = split_cpu(pid)
    got = await load(url, requests, seconds=seconds)
    after = split_cpu(pid)
    below, own = ((after[part] - before[part]) / got["count"] * 1e6 for part in ("below", "own"))
    return got, round(below), round(own)


async def cold(whisk: Whisk, times: int) -> list[Json]:
    """First invocations next to plain starts."""
    rows = []
    for name, code, requirements in (("python", PLAIN, ""), ("tensorflow", TRAINING, "tensorflow")):
        await whisk.put(f"first-{name}", code, requirements)
        await whisk.result(f"first-{name}", {})  # starts the zygote, and has a spare forked
        took = []
        for number in range(times):
            # Its own code, so that it gets its own worker; not within the time that a spare takes to fork.
            await whisk.put(f"cold-{name}-{number}", f"{code}# {number}\n", requirements)
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await whisk.result(f"cold-{name}-{number}", {})
            took.append(time.monotonic() - began)
        starts = []
        for _ in range(3):
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", f"{code}\nmain({{}})"], check=True, env=_quiet())  # noqa: ASYNC221
            starts.append(time.monotonic() - began)
        row = {"cold": name, **_spread_ms(took), "plain_ms": round(statistics.median(starts) * 1000)}
        row["times faster"] = round(statistics.median(starts) / statistics.median(took), 1)
        rows.append(_shown(row))
    return rows


async def memory(whisk: Whisk, count: int) -> list[Json]:
    """What the last of several TensorFlow workers adds."""
    for number in range(count):
        await whisk.put(f"mem-{number}", f"{TRAINING}# mem {number}\n", "tensorflow")
    rows = []
    for what, payload in (("answered", {}), ("trained", {"train": True})):
        pids = [(await whisk.result(f"mem-{number}", payload))["pid"] for number in range(count)]
        held = [_memory_mb(pid) for pid in pids]
        means = {key: round(statistics.mean(one[key] for one in held)) for key in held[0]}
        rows.append(_shown({"memory, TensorFlow workers": count, "after it has": what, **means}))
    return rows


async def burst(whisk: Whisk, count: int) -> Json:
    """Non-blocking invocations at once, until every record can be read."""
    began = time.monotonic()
    answers = await asyncio.gather(*(whisk.call("POST", "actions/echo", {"n": n}) for n in range(count)))
    accepted = time.monotonic() - began
    ids = {answer["activationId"] for status, answer in answers if status == 202}
    missing = set(ids)
    while missing:
        for skip in range(0, count, 200):
            path = f"activations?docs=false&limit=200&skip={skip}&name=echo"
            _, listed = await whisk.call("GET", path)
            missing -= {one["activationId"] for one in listed}
    took = time.monotonic() - began
    row = {"burst": count, "accepted": len(ids), "accepted_s": round(accepted, 2)}
    return _shown({**row, "readable_s": round(took, 2), "per_s": round(count / took)})


def _memory_mb(pid: int) -> dict[str, float]:
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) / 1024
    private = fields["Private_Dirty"] + fields["Private_Clean"]
    return {"pss_mb": fields["Pss"], "private_mb": private, "rss_mb": fields["Rss"]}


def _spread_ms(took: list[float]) -> Json:
    took = sorted(took)
    return {
        "n": len(took),
        "min_ms": round(took[0] * 1000, 1),
        "p50_ms": round(statistics.median(took) * 1000, 1),
        "max_ms": round(took[-1] * 1000, 1),
    }


def _quiet() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def _shown(row: Json) -> Json:
    row |= {"piece us": round(piece_us(), 1), "load": round(os.getloadavg()[0], 1)}
    print(row, flush=True)
    return row


async def run(seconds: float, parts: set[str]) -> list[Json]:
    """All parts, one after the other."""
    rows: list[Json] = []
    with TemporaryDirectory(prefix="fabric") as scratch, serving(ECHO) as (echo, echo_pid):
        folder = Path(scratch) / "fabric"
        fabric = await open_fabric(folder, namespaces=["guest"], projects=[], linger_s=1, start_timeout_s=120)
        try:
            auth = fabric.address.openwhisk_auth["guest"].get_secret_value()
            timeout = aiohttp.ClientTimeout(total=300)
            connector = aiohttp.TCPConnector(limit=100)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
                whisk = Whisk(fabric.address.url, auth, http)
                pid = service.pid_of(folder, "fabric")
                assert pid is not None
                rows += await warm(whisk, pid, echo, echo_pid, seconds) if "warm" in parts else []
                rows += await cold(whisk, 10) if "cold" in parts else []
                rows += await memory(whisk, 8) if "memory" in parts else []
                if "burst" in parts:
                    await whisk.put("echo", ECHO_CODE, memory_mb=128)
                    rows.append(await burst(whisk, 1000))
        finally:
            await fabric.close()
    return rows


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--parts", default="warm,cold,memory,burst")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = asyncio.run(run(chosen.seconds, set(chosen.parts.split(","))))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
