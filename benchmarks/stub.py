"""A cluster that trains nothing: what its functions do comes from chance, how long it takes from real clouds.

    python -m benchmarks.stub   (reads Settings as a line of JSON, prints its port)

It speaks the part of OpenWhisk's API that a keeper uses, and writes claims and outcomes to the real store as
functions do. So everything on the keeper's side is real, with more clients than this machine could train.

Latencies are log-normal, as measured for functions by Shahrad et al., Serverless in the Wild, USENIX ATC
2020, section 3.4. A part of the activations fails, another part ends without a word.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from pymongo import AsyncMongoClient

from fedkeeper.runtime import mongo
from fedkeeper.runtime.environment import StoreAddress
from fedkeeper.runtime.wire import Outcome

Json = dict[str, Any]
FLUSH_S = 0.02  # writes of so long go to the store together: the stub must not be what is measured
NAMESPACES = "/api/v1/namespaces/{namespace}"


@dataclass(frozen=True)
class Settings:
    """Times in seconds, parts of 1."""

    store: Json  # a StoreAddress
    auth: str  # uuid:key
    seed: int
    median_s: float = 2.0  # of an activation
    sigma: float = 0.6  # of the logarithm of its duration
    cold_part: float = 0.1  # activations that wait for a container first
    cold_s: float = 1.5
    failing_part: float = 0.02  # activations that say that they failed
    silent_part: float = 0.005  # activations that end and leave nothing


class Stub:
    """One namespace."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.chance = random.Random(settings.seed)  # noqa: S311 - a simulation
        self.requests: Counter[str] = Counter()
        self.actions: dict[str, Json] = {}
        self.records: dict[str, Json] = {}
        self._claimed: dict[str, str] = {}
        self._ended: list[Json] = []  # in the order in which they ended
        self._running: set[asyncio.Task[None]] = set()
        self._writes: dict[str, list[Json]] = {"claims": [], "outcomes": []}
        address = StoreAddress(**settings.store)
        client: AsyncMongoClient[Json] = AsyncMongoClient(**mongo.client_options(address))
        database = client.get_database(address.database, **mongo.database_options(address))
        names = mongo.Names(address.collection)
        self._collections = {"claims": database[names.claims], "outcomes": database[names.outcomes]}
        self._authorization = "Basic " + base64.b64encode(settings.auth.encode()).decode()

    def app(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=8 * 2**20, middlewares=[self._counted])
        app.add_routes(
            [
                web.get("/requests", self._requests),
                web.get(f"{NAMESPACES}/limits", self._limits),
                web.get(f"{NAMESPACES}/actions", self._list),
                web.get(f"{NAMESPACES}/actions/{{name}}", self._get),
                web.put(f"{NAMESPACES}/actions/{{name}}", self._put),
                web.delete(f"{NAMESPACES}/actions/{{name}}", self._delete),
                web.post(f"{NAMESPACES}/actions/{{name}}", self._invoke),
                web.get(f"{NAMESPACES}/activations", self._activations),
                web.get(f"{NAMESPACES}/activations/{{id}}", self._activation),
            ]
        )
        return app

    async def flush(self) -> None:
        """Write what has gathered, for ever."""
        while True:
            await asyncio.sleep(FLUSH_S)
            for name, collection in self._collections.items():
                documents, self._writes[name] = self._writes[name], []
                if documents:
                    await collection.insert_many(documents, ordered=False)

    @web.middleware
    async def _counted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        route = request.match_info.route.resource
        self.requests[f"{request.method} {route.canonical.removeprefix(NAMESPACES) if route else ''}"] += 1
        if request.path.startswith("/api/") and request.headers.get("Authorization") != self._authorization:
            return web.json_response({"code": "", "error": "unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _requests(self, _: web.Request) -> web.Response:
        return web.json_response(self.requests)

    async def _limits(self, _: web.Request) -> web.Response:
        return web.json_response({})

    # --- actions -----------------------------------------------------------------------------------

    async def _put(self, request: web.Request) -> web.Response:
        body, name = await request.json(), request.match_info["name"]
        body["exec"].pop("code", None)
        version = f"0.0.{self.actions[name]['number'] + 1}" if name in self.actions else "0.0.1"
        entity = {
            **body,
            "name": name,
            "namespace": "_",
            "number": int(version.rpartition(".")[2]),
            "version": version,
            "updated": _now_ms(),
            "publish": False,
        }
        self.actions[name] = entity
        return web.json_response(entity)

    async def _list(self, request: web.Request) -> web.Response:
        skip, limit = int(request.query.get("skip", 0)), int(request.query.get("limit", 30))
        return web.json_response(list(self.actions.values())[skip : skip + limit])

    async def _get(self, request: web.Request) -> web.Response:
        entity = self.actions.get(request.match_info["name"])
        return web.json_response(entity) if entity else _missing()

    async def _delete(self, request: web.Request) -> web.Response:
        entity = self.actions.pop(request.match_info["name"], None)
        return web.json_response(entity) if entity else _missing()

    # --- activations -------------------------------------------------------------------------------

    async def _invoke(self, request: web.Request) -> web.Response:
        name, task = request.match_info["name"], await request.json()
        if name not in self.actions:
            return _missing()
        activation_id = f"{self.chance.getrandbits(128):032x}"
        running = asyncio.ensure_future(self._run(name, activation_id, task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return web.json_response({"activationId": activation_id}, status=202)

    async def _run(self, name: str, activation_id: str, task: Json) -> None:
        settings, chance = self.settings, self.chance
        start_ms = _now_ms()
        if chance.random() < settings.cold_part:
            await asyncio.sleep(settings.cold_s)
        key, run = task["key"], task["run"]
        if self._claimed.setdefault(key, activation_id) != activation_id:  # another one works on it
            self._end(name, activation_id, start_ms, well=True)
            return
        self._writes["claims"].append(mongo.claim_document(key, run, activation_id, _now_ms()))
        ok, silent = True, False
        if "client" in task:
            await asyncio.sleep(settings.median_s * chance.lognormvariate(0.0, settings.sigma))
            ok = chance.random() >= settings.failing_part
            silent = chance.random() < settings.silent_part
        if not silent:
            outcome = Outcome(
                key=key,
                run=run,
                ok=ok,
                result=_result(task) if ok else {},
                reason="" if ok else "the stub's client failed",
                activation_id=activation_id,
                at_ms=_now_ms(),
            )
            self._writes["outcomes"].append(mongo.outcome_document(outcome))
            await asyncio.sleep(2 * FLUSH_S)  # a function publishes before it ends
        self._end(name, activation_id, start_ms, well=ok and not silent)

    def _end(self, name: str, activation_id: str, start_ms: int, *, well: bool) -> None:
        end_ms = _now_ms()
        status = "success" if well else "application error"
        record = {
            "activationId": activation_id,
            "name": name,
            "namespace": "_",
            "start": start_ms,
            "end": end_ms,
            "duration": end_ms - start_ms,
            "annotations": [{"key": "path", "value": f"_/{name}"}],
            "logs": [f"2026-01-01T00:00:00.000000000Z stdout: {name}: done"],  # as functions do
            "response": {"status": status, "success": well, "result": {}},
        }
        self.records[activation_id] = record
        self._ended.append(record)

    async def _activations(self, request: web.Request) -> web.Response:
        query = request.query
        since, upto = int(query.get("since", 0)), int(query.get("upto", 2**62))
        skip, limit = int(query.get("skip", 0)), int(query.get("limit", 30))
        fitting = [one for one in reversed(self._ended) if since <= one["start"] <= upto]
        return web.json_response(fitting[skip : skip + limit])

    async def _activation(self, request: web.Request) -> web.Response:
        record = self.records.get(request.match_info["id"])
        return web.json_response(record) if record else _missing()


def _result(task: Json) -> Json:
    if "clients" in task:
        weights = {"name": f"{task['run']}/w0", "sha256": "0" * 64, "nbytes": 6_653_480}
        return {"weights": weights, "samples": dict.fromkeys(task["clients"], 600), "seconds": {}}
    ref = {"name": task["key"], "sha256": f"{binascii.crc32(task['key'].encode()):064x}", "nbytes": 6_653_480}
    if "client" in task:
        return {"update": ref, "samples": 600, "loss": 0.5, "accuracy": 0.5, "seconds": {}}
    ref["name"] = f"{task['run']}/w{task['round']}"
    return {"weights": ref, "loss": 0.5, "accuracy": 0.5, "refused": [], "seconds": {}}


def _missing() -> web.Response:
    return web.json_response({"code": "", "error": "The requested resource does not exist."}, status=404)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _serve(settings: Settings) -> None:
    stub = Stub(settings)
    runner = web.AppRunner(stub.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await stub.flush()


@contextmanager
def running(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(settings)) + "\n")  # holds secrets: not among the arguments
        process.stdin.flush()
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_serve(Settings(**json.loads(sys.stdin.readline()))))
