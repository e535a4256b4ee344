"""The functions as platforms get them: real zips, a real mongod, an interpreter without the repository."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from fedkeeper.packaging import build
from fedkeeper.platforms import PLATFORMS
from fedkeeper.runtime.activation import BINARY
from fedkeeper.runtime.environment import ClientAccess, StoreAddress
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.store import open_store
from fedkeeper.runtime.wire import (
    AggregateResult,
    DataSpec,
    ForwardTask,
    InitResult,
    Ref,
    TrainResult,
    UpdateRef,
    decode,
    encode,
    weights_name,
)
from fedkeeper.weights.embedded import open_embedded_mongo
from fedkeeper.weights.mongo import MongoUpdates
from tests.functions.experiment import CLIENTS, RUN, aggregate_task, init_task, train_task
from tests.runtime.web import Asked, Reply, serving

FUNCTIONS = Path(__file__).parents[2] / "functions"
DRIVER = Path(__file__).with_name("isolated.py")
_numbers = itertools.count()


class Interpreter:
    """A process that runs packaged functions, one order at a time."""

    def __init__(self, *preload: str, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-I", DRIVER, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd="/",
            text=True,
        )

    def run(self, folder: Path, *bodies: Mapping[str, Any], **env: str) -> dict[str, Any]:
        """Give the function in `folder` its requests; the driver's answer."""
        assert self._process.stdin
        assert self._process.stdout
        requests = [{"activation_id": f"{next(_numbers):032x}", "body": body} for body in bodies]
        order = {"folder": str(folder), "platform": folder.name, "env": env, "requests": requests}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or "null")
        assert answer, Path(self._log.name).read_text()[-4000:]
        assert answer["modules"]["handler"] == str(folder / "handler.py")
        assert not any(str(FUNCTIONS.parent) == path for path in answer["path"])
        if "fedkeeper" in answer["modules"]:
            assert answer["modules"]["fedkeeper"] == str(folder / "fedkeeper" / "__init__.py")
        return dict(answer)

    def close(self) -> None:
        """It ends with its input."""
        self._process.communicate(timeout=30)
        self._log.close()


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/<function>/<platform>: every package, unpacked."""
    folder = tmp_path_factory.mktemp("zips")
    for function in FUNCTIONS.iterdir():
        if (function / "handler.py").is_file():
            for platform in PLATFORMS:
                archive = build(function, platform)
                zipfile.ZipFile(io.BytesIO(archive)).extractall(folder / function.name / platform)
    return folder


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """An interpreter that has imported TensorFlow, and run nothing."""
    interpreter = Interpreter("tensorflow", "keras", log=tmp_path_factory.mktemp("log") / "trainer")
    yield interpreter
    interpreter.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """An interpreter for functions that need no TensorFlow."""
    interpreter = Interpreter(log=tmp_path_factory.mktemp("log") / "plain")
    yield interpreter
    interpreter.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAddress]:
    """A real mongod."""
    folder = tmp_path_factory.mktemp("mongod")
    opened = asyncio.run(open_embedded_mongo(folder, database="fedkeeper", collection="functions"))
    yield opened.address
    asyncio.run(opened.close())


@pytest.fixture(scope="module")
def store_env(address: StoreAddress) -> dict[str, str]:
    """What functions with access to the store are told."""
    return {"FEDKEEPER_STORE": msgspec.json.encode(address).decode()}


def test_a_round_over_both_platforms(
    zips: Path,
    trainer: Interpreter,
    plain: Interpreter,
    data: DataSpec,
    address: StoreAddress,
    store_env: dict[str, str],
) -> None:
    """Init on OpenWhisk; clients on OpenWhisk, on Google, and behind the forwarder; aggregation on Google.

    All three clients' updates and the outcomes of all five keys are in the store; the client behind the
    forwarder was given neither the store's address nor the task's.
    """
    order = trainer.run(zips / "fl_server_init" / "openwhisk", encode(init_task(data)), **store_env)
    initial = decode(InitResult, order["answers"][0]).weights

    tasks = [train_task(data, initial, client=name) for name in CLIENTS]
    (first,) = trainer.run(zips / "fl_client" / "openwhisk", encode(tasks[0]), **store_env)["answers"]
    second, again = trainer.run(
        zips / "fl_client" / "google", encode(tasks[1]), encode(tasks[1]), **store_env
    )["answers"]
    assert second["status"] == 200
    assert again == {"status": 200, "body": {"duplicate": True, "key": tasks[1].key}}
    third = _forwarded(
        zips,
        trainer,
        plain,
        ForwardTask(train=tasks[2], cluster="local", function=CLIENTS[2], url="", timeout_s=150.0),
        store_env,
    )

    updates = tuple(
        UpdateRef(client=name, update=result.update, samples=result.samples)
        for name, result in zip(
            CLIENTS, (decode(TrainResult, one) for one in (first, second["body"], third)), strict=True
        )
    )
    task = aggregate_task(data, initial, updates)
    (answer,) = trainer.run(zips / "fl_server_aggregator" / "google", encode(task), **store_env)["answers"]
    result = decode(AggregateResult, answer["body"])
    assert result.refused == ()
    assert result.weights
    assert result.weights.name == weights_name(RUN, 1)
    assert result.accuracy is not None

    store = open_store(address)
    assert store.get(result.weights.name, sha256=result.weights.sha256)
    store.close()
    keys = [init_task(data).key, *(one.key for one in tasks), task.key]
    outcomes = asyncio.run(_outcomes(address, keys))
    assert [key for key in keys if outcomes[key].ok] == keys
    assert outcomes[tasks[2].key].result == third


def test_a_round_behind_a_gateway(
    zips: Path,
    trainer: Interpreter,
    plain: Interpreter,
    data: DataSpec,
    address: StoreAddress,
    store_env: dict[str, str],
) -> None:
    """Every function on OpenFaaS: its call's ID is its activation, and the forwarder posts plain bytes.

    A second call of a key is told apart; a client behind the forwarder is given no credentials.
    """
    order = trainer.run(
        zips / "fl_server_init" / "openfaas",
        encode(replace(init_task(data), key="edge/init/a0", run="edge")),
        **store_env,
    )
    initial = decode(InitResult, order["answers"][0]["body"]).weights
    tasks = [
        replace(train_task(data, initial, client=name), key=f"edge/r1/{name}/a0", run="edge")
        for name in CLIENTS[:2]
    ]
    first, again = trainer.run(
        zips / "fl_client" / "openfaas", encode(tasks[0]), encode(tasks[0]), **store_env
    )["answers"]
    assert first["status"] == 200
    assert again == {"status": 200, "body": {"duplicate": True, "key": tasks[0].key}}

    def answer(asked: Asked) -> Reply:
        assert asked.headers["Content-Type"] == BINARY
        assert "Authorization" not in asked.headers
        blob = {"blob": base64.b64encode(asked.body).decode()}
        (result,) = trainer.run(zips / "fl_client" / "openfaas", blob)["answers"]
        return Reply(result["status"], base64.b64decode(result["blob"]), {"Content-Type": BINARY})

    with serving(answer) as web:
        url = f"{web.url}/function/client-1"
        task = ForwardTask(train=tasks[1], cluster="edge", function=CLIENTS[1], url=url, timeout_s=150.0)
        access = {"edge": ClientAccess(platform="openfaas")}
        env = {**store_env, "FEDKEEPER_CLIENTS": msgspec.json.encode(access).decode()}
        folder = zips / "fl_invoker_weights_update" / "openfaas"
        (second,) = plain.run(folder, encode(task), **env)["answers"]
    assert second["status"] == 200, second

    results = [decode(TrainResult, one["body"]) for one in (first, second)]
    updates = tuple(
        UpdateRef(client=name, update=result.update, samples=result.samples)
        for name, result in zip(CLIENTS[:2], results, strict=True)
    )
    task_ = replace(aggregate_task(data, initial, updates), key="edge/r1/aggregate/s0/a0", run="edge")
    (done,) = trainer.run(zips / "fl_server_aggregator" / "openfaas", encode(task_), **store_env)["answers"]
    assert done["status"] == 200, done
    assert decode(AggregateResult, done["body"]).refused == ()
    keys = ["edge/init/a0", *(one.key for one in tasks), task_.key]
    outcomes = asyncio.run(_outcomes(address, keys))
    assert [key for key in keys if outcomes[key].ok] == keys
    assert outcomes[tasks[1].key].result == second["body"]
    assert all(re.fullmatch("0{20}[0-9a-f]{12}", one.activation_id) for one in outcomes.values())


def test_another_process_gives_the_same_bits(
    zips: Path,
    trainer: Interpreter,
    init: ModuleType,
    client: ModuleType,
    data: DataSpec,
    store: MemoryObjects,
    store_env: dict[str, str],
) -> None:
    """Same task, same update, in a forked worker and in this process, which has trained other models."""
    task = replace(init_task(data), key="other/init/a0", run="other")
    there = trainer.run(zips / "fl_server_init" / "openwhisk", encode(task), **store_env)["answers"][0]
    initial = init.run(task, store).weights
    assert decode(InitResult, there).weights == initial
    training = replace(train_task(data, initial), key="other/r1/c/a0", run="other")
    there = trainer.run(zips / "fl_client" / "openwhisk", encode(training), **store_env)["answers"][0]
    assert decode(TrainResult, there).update == client.run(training, store).update


def _forwarded(
    zips: Path, trainer: Interpreter, plain: Interpreter, task: ForwardTask, store_env: dict[str, str]
) -> Any:
    """Run the forwarder against an OpenWhisk front that passes blobs to the client's package."""

    def answer(asked: Asked) -> Reply:
        arguments = json.loads(asked.body)
        assert set(arguments) == {"blob"}
        (result,) = trainer.run(zips / "fl_client" / "openwhisk", arguments)["answers"]
        return Reply(502 if "error" in result else 200, json.dumps(result).encode())

    with serving(answer) as web:
        access = ClientAccess(platform="openwhisk", auth="uuid:key")
        env = {**store_env, "FEDKEEPER_CLIENTS": msgspec.json.encode({"local": access}).decode()}
        url = f"{web.url}/api/v1/namespaces/guest/actions/{task.function}"
        folder = zips / "fl_invoker_weights_update" / "openwhisk"
        order = plain.run(folder, encode(replace(task, url=url)), **env)
        assert len(web.asked) == 1
        basic = base64.b64encode(b"uuid:key").decode()
        assert web.asked[0].headers["Authorization"] == f"Basic {basic}"
    assert "tensorflow" not in order["modules"]
    return order["answers"][0]


async def _outcomes(address: StoreAddress, keys: list[str]) -> Mapping[str, Any]:
    updates = MongoUpdates(address)
    try:
        return await updates.outcomes(keys)
    finally:
        await updates.close()


def test_a_failure_is_told_to_the_platform_and_the_store(
    zips: Path, trainer: Interpreter, data: DataSpec, address: StoreAddress, store_env: dict[str, str]
) -> None:
    """A client whose weights are missing: {"error"} on OpenWhisk, 500 elsewhere, one outcome a key."""
    missing = encode(train_task(data, init_ref(), client="nobody", round_no=8))
    other = {**missing, "key": f"{RUN}/r8/nobody/a1"}
    third = {**missing, "key": f"{RUN}/r8/nobody/a2"}
    (openwhisk,) = trainer.run(zips / "fl_client" / "openwhisk", missing, **store_env)["answers"]
    (google,) = trainer.run(zips / "fl_client" / "google", other, **store_env)["answers"]
    (openfaas,) = trainer.run(zips / "fl_client" / "openfaas", third, **store_env)["answers"]
    assert google == openfaas == {"status": 500, "body": openwhisk}
    assert openwhisk["error"].startswith("ObjectMissing: no object 'trial-1/w77'")
    outcomes = asyncio.run(_outcomes(address, [missing["key"], other["key"], third["key"]]))
    assert len(outcomes) == 3
    assert {one.reason for one in outcomes.values()} == {openwhisk["error"]}
    assert address.password not in str(outcomes)


def init_ref() -> Ref:
    """Weights that nobody stored."""
    return Ref(name=weights_name(RUN, 77), sha256="0" * 64, nbytes=1)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nodeinfo_describes_its_machine(zips: Path, plain: Interpreter, platform: str) -> None:
    """Hostname, platform, architecture, CPUs, memory, uptime; with the standard library alone."""
    order = plain.run(zips / "nodeinfo" / platform, {})
    (answer,) = order["answers"]
    facts = answer if platform == "openwhisk" else answer["body"]
    assert facts["python"] == sys.version.split()[0]
    assert facts["cpus"] >= 1
    assert facts["memory_total_bytes"] >= facts["memory_available_bytes"] > 0
    assert facts["uptime_s"] > 0
    assert {"hostname", "platform", "arch", "system"} <= set(facts)
    assert "fedkeeper" not in order["modules"]
