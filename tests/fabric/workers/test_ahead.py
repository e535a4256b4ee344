"""Workers that are there before they are called: for whom, how many, and never at anybody's cost."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedkeeper import packaging
from fedkeeper.fabric.front import FrontSettings
from fedkeeper.runtime.environment import AHEAD_VARIABLE, Ahead
from fedkeeper.runtime.wire import ModelSpec
from tests.fabric.workers.conftest import eventually, exists
from tests.fabric.workers.fabric import Whisk, open_whisk

AHEAD = [{"key": "fedkeeper-ahead", "value": True}]
CODE = """
import os, time
LOADED_AS = os.environ["__OW_ACTION_NAME"]
def main(args):
    if "mark" in args:
        open(args["mark"], "x").close()
        while not os.path.exists(args["go"]):
            time.sleep(0.005)
    return {"pid": os.getpid(), "loaded": LOADED_AS, "name": os.environ["__OW_ACTION_NAME"]}
"""
SLOW_LOAD = """
import os, time
open("{MARKS}/" + str(os.getpid()), "x").close()
while not os.path.exists("{MARKS}/go"):
    time.sleep(0.005)
def main(args):
    return {"pid": os.getpid()}
"""
TRACES = """
import handler
from fedkeeper.runtime import training
def main(args):
    return {"traces": [one._step.experimental_get_tracing_count() for one in training._kept.values()]}
"""
FUNCTIONS = Path(__file__).parents[3] / "functions"
BIG: dict[str, Any] = {"limits": {"memory": 256}, "annotations": AHEAD}


@pytest.fixture
async def whisk(tmp_path: Path) -> AsyncIterator[Whisk]:
    """Workers of their own, memory for four of 256 MB."""
    settings = FrontSettings(share_workers=False)
    async with open_whisk(tmp_path / "fabric", settings=settings, memory_mb=1024) as whisk:
        yield whisk


async def ready(whisk: Whisk, count: int) -> None:
    """Wait until so many workers have loaded ahead and wait for calls."""
    await eventually(lambda: whisk.pool.stats()["idle"] == whisk.pool.stats()["workers"] == count)


async def activation(whisk: Whisk, name: str, **payload: Any) -> dict[str, Any]:
    """The record of a blocking invocation that succeeded."""
    status, record = await whisk.invoke(name, payload)
    assert status == 200, record
    answer: dict[str, Any] = record
    return answer


def init_ms(record: dict[str, Any]) -> object:
    """What the record says of its initialisation; None of a warm call."""
    return next((note["value"] for note in record["annotations"] if note["key"] == "initTime"), None)


async def test_the_first_call_of_an_action_that_asks_for_it_is_warm(whisk: Whisk) -> None:
    """Its worker has loaded it when it is deployed; one that does not ask has none before it is called."""
    await whisk.put("asks", CODE, **BIG)
    await whisk.put("does_not", CODE, limits={"memory": 256})
    await ready(whisk, 1)
    record = await activation(whisk, "asks")
    assert init_ms(record) is None
    result = record["response"]["result"]
    assert result["loaded"] == result["name"] == "/guest/asks"
    assert init_ms(await activation(whisk, "does_not")) is not None
    stats = whisk.pool.stats()
    assert (stats["ahead"], stats["cold"], stats["warm"]) == (1, 1, 1)


async def test_memory_bounds_what_is_ready_and_nobody_is_evicted_for_it(whisk: Whisk) -> None:
    """Six actions ask, four fit; with one worker of another action there, three."""
    other = (await activation_after_put(whisk, "other", limits={"memory": 256}))["response"]["result"]["pid"]
    for number in range(6):
        await whisk.put(f"client_{number}", CODE, **BIG)
    await ready(whisk, 4)
    assert whisk.pool.stats()["memory_mb"] == 1024
    assert exists(other)
    assert whisk.pool.stats()["ahead"] == 3


async def activation_after_put(whisk: Whisk, name: str, **more: Any) -> dict[str, Any]:
    """Deploy it and call it once."""
    await whisk.put(name, CODE, **more)
    return await activation(whisk, name)


async def test_a_worker_that_was_killed_is_replaced_before_the_next_call(whisk: Whisk) -> None:
    """Between two rounds, say: the next one finds another that has loaded."""
    first = await activation_after_put(whisk, "client", **BIG)
    pid = first["response"]["result"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: whisk.pool.stats()["ahead"] + whisk.pool.stats()["cold"] == 2)
    await ready(whisk, 1)
    second = await activation(whisk, "client")
    assert second["response"]["result"]["pid"] != pid
    assert init_ms(second) is None


async def test_a_caller_waits_for_a_worker_that_loads_rather_than_for_a_second_one(
    whisk: Whisk, tmp_path: Path
) -> None:
    """One process has loaded the function when the call is answered."""
    code = SLOW_LOAD.replace("{MARKS}", str(tmp_path / "marks"))
    (tmp_path / "marks").mkdir()
    await whisk.put("client", code, **BIG)
    await eventually(lambda: list((tmp_path / "marks").iterdir()))
    called = asyncio.create_task(activation(whisk, "client"))
    await eventually(lambda: whisk.pool.stats()["queued"] == 1)
    (tmp_path / "marks" / "go").touch()
    pid = (await called)["response"]["result"]["pid"]
    assert {one.name for one in (tmp_path / "marks").iterdir()} == {"go", str(pid)}


async def test_actions_that_share_workers_have_as_many_ready_as_may_be_busy(tmp_path: Path) -> None:
    """Ten names and a bound of three; two names of another package have two."""
    async with open_whisk(tmp_path / "fabric", busy_max=3) as whisk:
        for number in range(10):
            await whisk.put(f"client_{number}", CODE, annotations=AHEAD)
        for number in range(2):
            await whisk.put(f"other_{number}", CODE + "\n# other", annotations=AHEAD)
        await ready(whisk, 5)
        records = await asyncio.gather(*(activation(whisk, f"client_{n}") for n in range(10)))
        assert [init_ms(record) for record in records] == [None] * 10
        assert {r["response"]["result"]["name"] for r in records} == {f"/guest/client_{n}" for n in range(10)}


async def test_a_caller_that_needs_memory_gets_it_from_workers_that_are_only_ready(whisk: Whisk) -> None:
    """The first call of another action runs, though four wait in all the memory there is."""
    for number in range(4):
        await whisk.put(f"client_{number}", CODE, **BIG)
    await ready(whisk, 4)
    assert (await activation_after_put(whisk, "other", limits={"memory": 512}))["response"]["success"]
    assert whisk.pool.stats()["memory_mb"] <= 1024


async def test_rounds_of_more_clients_than_fit_keep_most_workers_warm(whisk: Whisk) -> None:
    """Five clients in turn, memory for four: with the least recently used evicted, all would be cold."""
    for number in range(5):
        await whisk.put(f"client_{number}", CODE, **BIG)
    await ready(whisk, 4)
    cold = 0
    for _ in range(3):
        for number in range(5):
            cold += init_ms(await activation(whisk, f"client_{number}")) is not None
    assert cold <= 2 * 3


async def test_what_does_not_load_is_given_up_and_its_call_says_why(whisk: Whisk) -> None:
    """Started a few times, not for ever; the call is refused as ever."""
    await whisk.put("broken", "raise RuntimeError('no')", **BIG)
    await whisk.put("client", CODE, **BIG)
    await ready(whisk, 1)
    status, record = await whisk.invoke("broken")
    assert status == 502
    assert record["response"]["status"] == "action developer error"
    assert init_ms(await activation(whisk, "client")) is None


async def test_an_update_or_delete_leaves_no_worker_behind(whisk: Whisk, tmp_path: Path) -> None:
    """Not even one that was still loading: it ends, and its files are deleted."""
    (tmp_path / "marks").mkdir()
    await whisk.put("client", SLOW_LOAD.replace("{MARKS}", str(tmp_path / "marks")), **BIG)
    await eventually(lambda: list((tmp_path / "marks").iterdir()))
    assert (await whisk.call("DELETE", "actions/client"))[0] == 200
    (tmp_path / "marks" / "go").touch()
    await eventually(lambda: whisk.pool.stats()["workers"] == 0)
    await eventually(lambda: not list((whisk.folder / "revisions").iterdir()))
    assert whisk.pool.stats()["memory_mb"] == 0


async def test_the_products_client_has_traced_its_model_before_its_first_call(whisk: Whisk) -> None:
    """Its real package, told the model by the environment: TensorFlow, built and traced once."""
    archive = packaging.build(FUNCTIONS / "fl_client", "openwhisk", include=(), requirements=True, node=False)
    told = Ahead(
        model=ModelSpec(name="mnistnn", input_shape=(28, 28, 1), hidden_size=4),
        optimizer="adam",
        proximal_mu=0.0,
        batch_size=2,
    )
    parameters = [{"key": AHEAD_VARIABLE, "value": msgspec.json.encode(told).decode(), "init": True}]
    limits = {"memory": 512, "timeout": 300_000}
    await whisk.put(
        "client", with_main(archive, TRACES), parameters=parameters, limits=limits, annotations=AHEAD
    )
    await eventually(lambda: whisk.pool.stats()["idle"] == 1, seconds=180)
    record = await activation(whisk, "client")
    assert init_ms(record) is None
    assert record["response"]["result"] == {"traces": [1]}


def with_main(archive: bytes, main: str) -> bytes:
    """The zip with another __main__.py."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, main if name == "__main__.py" else old.read(name))
    return changed.getvalue()


async def test_ready_workers_stay_for_as_long_as_a_round_lasts(tmp_path: Path) -> None:
    """One client trains for longer than `idle_s`: another's worker is still there, that of others is not."""
    async with open_whisk(tmp_path / "fabric", busy_max=1, idle_s=0.5) as whisk:
        go = tmp_path / "go"
        for name in ("busy", "waits"):
            await whisk.put(name, f"{CODE}\n# {name}", annotations=AHEAD)
        running = await whisk.begin("busy", {"mark": str(tmp_path / "mark"), "go": str(go)})
        await eventually((tmp_path / "mark").exists)
        await eventually(lambda: whisk.pool.stats()["idle"] == 1)
        await activation_after_put(whisk, "other")
        await eventually(lambda: whisk.pool.stats()["workers"] == 2)
        assert init_ms(await activation(whisk, "waits")) is None
        go.touch()
        assert (await whisk.record(running))["response"]["success"]


async def test_ready_workers_expire_when_no_round_calls_any_of_them(tmp_path: Path) -> None:
    """`idle_s` after the last call of all that are expected, and they are not started again."""
    async with open_whisk(tmp_path / "fabric", idle_s=0.5) as whisk:
        await whisk.put("client", CODE, annotations=AHEAD)
        await eventually(lambda: whisk.pool.stats()["ahead"] == 1)
        await eventually(lambda: whisk.pool.stats()["workers"] == 0)
        assert whisk.pool.stats()["ahead"] == 1
        await activation(whisk, "client")
        assert whisk.pool.stats()["cold"] == 1
