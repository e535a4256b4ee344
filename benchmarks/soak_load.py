"""The mixed load of the soak: functions of three platforms, who calls them, and what they must answer."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import time
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from google.auth.transport.requests import Request
from google.cloud import functions_v2
from google.oauth2 import service_account

from fedkeeper.fabric.launch import FabricAddress

Json = dict[str, Any]
PROJECT: Final = "soak"
PARENT: Final = f"projects/{PROJECT}/locations/here"
READ_S_MAX: Final = 120.0  # from the acceptance of an activation until its record can be read
ANSWER_S_MAX: Final = 120.0
# What a killed worker's caller is told: by OpenWhisk (developer error), Cloud Run, of-watchdog; 429: no room.
KILLED: Final = {"whisk": {502, 500, 429}, "google": {500, 503, 429}, "openfaas": {500, 429}}
ENDS: Final = {"success", "application error", "action developer error", "whisk internal error"}
ACTIONS: Final = {
    "quick": "def main(args):\n    return args\n",
    "slow": (
        "import time\ndef main(args):\n    print('begun')\n    time.sleep(args['s'])\n"
        "    print('done')\n    return {'s': args['s']}\n"
    ),
    "large": "def main(args):\n    return {'n': len(args['text']), 'text': args['text']}\n",
    "hungry": "def main(args):\n    held = bytearray(60 << 20)\n    return {'n': len(held)}\n",
    "fails": "def main(args):\n    raise ValueError('on purpose')\n",
    # Once per worker: a child, a daemon that has left its family, a port and a file.
    "brood": """
import os, socket, tempfile, time
server = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    time.sleep(3600)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
open(os.path.join(tempfile.gettempdir(), "file"), "wb").write(bytes(1 << 20))
def main(args):
    return {"port": server.getsockname()[1]}
""",
}
FUNCTION: Final = "def hello(request):\n    return {'got': request.get_json()}\n"


class Load:
    """Deploys, calls and reads; counts what it sees and keeps what must not be."""

    def __init__(self, address: FabricAddress, http: aiohttp.ClientSession, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ports: set[int] = set()
        self.accepted: list[str] = []  # OpenWhisk activations, oldest first
        self._unread: asyncio.Queue[tuple[str, float]] = asyncio.Queue(10_000)
        self._url = address.url
        self._http = http
        self._random = random.Random(seed)  # noqa: S311 - which call comes next is no secret
        self._whisk = _basic(address.openwhisk_auth["guest"].get_secret_value())
        self._gateway = _basic(f"admin:{address.openfaas_password.get_secret_value()}")
        self._account = dict(address.service_accounts[PROJECT])
        self._token = ""
        self._function_url = ""

    # --- functions

    async def deploy(self) -> None:
        """All of them."""
        for name, code in ACTIONS.items():
            body = {
                "exec": {"kind": "python:default", "code": code},
                "limits": {"memory": 256, "timeout": 30_000},
            }
            await self._must("PUT", f"{self._actions(name)}?overwrite=true", body, self._whisk)
        await asyncio.to_thread(self._deploy_google)
        login = {"Authorization": self._gateway}
        async with self._http.post(
            f"{self._url}/fedkeeper/images/echo", data=_zip(FUNCTION), headers=login
        ) as answer:
            image = (await answer.json())["image"]
        body = {
            "service": "echo",
            "image": image,
            "envProcess": "functions-framework --target=hello",
            "envVars": {"mode": "http", "exec_timeout": "30s"},
            "limits": {"memory": "256Mi"},
        }
        await self._must("POST", f"{self._url}/system/functions", body, self._gateway)

    async def remove(self) -> None:
        """All of them again; their workers end."""
        for name in ACTIONS:
            await self._must("DELETE", self._actions(name), None, self._whisk)
        await asyncio.to_thread(self._remove_google)
        await self._must("DELETE", f"{self._url}/system/functions", {"functionName": "echo"}, self._gateway)

    # --- calls

    async def run(self, until: float, *, callers: int, pause_s: float) -> None:
        """Call at random, by `callers` at once, until the loop's clock says `until`; read all that began."""
        reading = [asyncio.create_task(self._read_all()) for _ in range(4)]

        async def calls(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311
            kinds: list[Callable[[random.Random], Awaitable[None]]] = [
                *[self._blocking] * 5, *[self._non_blocking] * 4, self._google, self._openfaas, self._queued,
            ]  # fmt: skip
            while asyncio.get_running_loop().time() < until:
                await self._counted(chance.choice(kinds), chance)
                await asyncio.sleep(chance.uniform(0, 2 * pause_s))

        try:
            await asyncio.gather(*(calls(self._random.getrandbits(32)) for _ in range(callers)))
            await self._unread.join()
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def read_again(self, most: int) -> None:
        """The last `most` activations once more, at the end: none of them has gone."""
        for activation_id in self.accepted[-most:]:
            if await self._record(activation_id) is None:
                self.faults[f"no record any more of {activation_id}"] += 1

    async def _counted(self, call: Callable[[random.Random], Awaitable[None]], chance: random.Random) -> None:
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await call(chance)
        except TimeoutError:
            self.faults[f"{call.__name__}: no answer in {ANSWER_S_MAX:.0f} s"] += 1
        except aiohttp.ClientError as exc:
            self.faults[f"{call.__name__}: {type(exc).__name__}"] += 1

    async def _blocking(self, chance: random.Random) -> None:
        await self._whisk_call(chance, "?blocking=true", {200, 202})

    async def _non_blocking(self, chance: random.Random) -> None:
        await self._whisk_call(chance, "", {202})

    async def _whisk_call(self, chance: random.Random, query: str, good: set[int]) -> None:
        name = chance.choice(list(ACTIONS))
        payload = {"n": chance.random(), "s": chance.uniform(0, 0.5)}
        if name == "large":
            payload["text"] = "x" * chance.randrange(500_000)  # type: ignore[assignment]
        status, told = await self._ask("POST", f"{self._actions(name)}{query}", payload, self._whisk)
        self._seen("whisk", status, good)
        if "activationId" not in told:
            return
        if name == "brood" and status == 200:
            self.ports.add(told["response"]["result"]["port"])
        self.accepted.append(told["activationId"])
        await self._unread.put((told["activationId"], time.monotonic()))

    async def _google(self, chance: random.Random) -> None:
        sent = {"x": chance.random()}
        status, told = await self._ask("POST", self._function_url, sent, f"Bearer {self._token}")
        self._seen("google", status, {200})
        if status == 200 and told != {"got": sent}:
            self.faults["google: another's answer"] += 1

    async def _openfaas(self, chance: random.Random) -> None:
        sent = {"x": chance.random()}
        status, told = await self._ask("POST", f"{self._url}/function/echo", sent, "")
        self._seen("openfaas", status, {200})
        if status == 200 and told != {"got": sent}:
            self.faults["openfaas: another's answer"] += 1

    async def _queued(self, chance: random.Random) -> None:
        status, _ = await self._ask("POST", f"{self._url}/async-function/echo", {"x": chance.random()}, "")
        self._seen("openfaas", status, {202})

    def _seen(self, platform: str, status: int, good: set[int]) -> None:
        self.counts[f"{platform} {status}"] += 1
        if status not in good | KILLED[platform]:
            self.faults[f"{platform}: answered {status}"] += 1

    # --- records

    async def _read_all(self) -> None:
        while True:
            activation_id, since = await self._unread.get()
            try:
                record = await self._record(activation_id)
                while record is None and time.monotonic() - since < READ_S_MAX:
                    await asyncio.sleep(0.05)
                    record = await self._record(activation_id)
                if record is None:
                    self.faults[f"no record of {activation_id}"] += 1
                    continue
                how = record["response"]["status"]
                self.counts[f"record: {how}"] += 1
                if how == "whisk internal error":
                    self.counts[f"record: {how}: {record['response']['result']['error']}"] += 1
                if how not in ENDS:
                    self.faults[f"record: {how}"] += 1
            except (aiohttp.ClientError, TimeoutError) as exc:
                self.faults[f"reading: {type(exc).__name__}"] += 1
            finally:
                self._unread.task_done()

    async def _record(self, activation_id: str) -> Json | None:
        url = f"{self._url}/api/v1/namespaces/_/activations/{activation_id}"
        status, record = await self._ask("GET", url, None, self._whisk)
        return record if status == 200 else None

    # --- ways

    def _actions(self, name: str) -> str:
        return f"{self._url}/api/v1/namespaces/_/actions/{name}"

    async def _ask(self, method: str, url: str, body: Json | None, login: str) -> tuple[int, Json]:
        headers = {"Authorization": login} if login else {}
        async with self._http.request(method, url, json=body, headers=headers) as answer:
            told = await answer.json() if answer.content_type == "application/json" else None
            await answer.read()
            return answer.status, told if isinstance(told, dict) else {}

    async def _must(self, method: str, url: str, body: Json | None, login: str) -> None:
        for _ in range(20):  # what is being killed may refuse a deployment
            status, told = await self._ask(method, url, body, login)
            if status in (200, 202):
                return
            await asyncio.sleep(0.5)
        raise RuntimeError(f"{method} {url} was answered {status}: {told}")

    def _deploy_google(self) -> None:
        client = self._google_client()
        told = client.generate_upload_url({"parent": PARENT, "environment": 2}, timeout=30)
        sent = urllib.request.Request(told.upload_url, _zip(FUNCTION), method="PUT")  # noqa: S310 - ours
        with urllib.request.urlopen(sent, timeout=30):  # noqa: S310
            pass
        function = functions_v2.Function(
            name=f"{PARENT}/functions/hello",
            build_config={
                "runtime": "python311",
                "entry_point": "hello",
                "source": {"storage_source": told.storage_source},
            },
            service_config={"available_memory": "256Mi", "timeout_seconds": 30, "max_instance_count": 4},
        )
        request = {"parent": PARENT, "function": function, "function_id": "hello"}
        made = client.create_function(request, timeout=30).result(timeout=120)
        client.transport.close()
        self._function_url = made.service_config.uri
        identity = service_account.IDTokenCredentials.from_service_account_info(
            self._account, target_audience=self._function_url
        )
        identity.refresh(Request())
        self._token = identity.token

    def _remove_google(self) -> None:
        client = self._google_client()
        client.delete_function({"name": f"{PARENT}/functions/hello"}, timeout=30).result(timeout=120)
        client.transport.close()

    def _google_client(self) -> Any:
        return functions_v2.FunctionServiceClient(
            credentials=service_account.Credentials.from_service_account_info(self._account),
            transport="rest",
            client_options={"api_endpoint": self._url},
        )


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _zip(code: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("main.py", code)
    return packed.getvalue()
