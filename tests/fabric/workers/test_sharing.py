"""Actions that are one package under many names share workers, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fedkeeper.fabric.front import FrontSettings
from tests.fabric.workers.conftest import eventually
from tests.fabric.workers.fabric import Whisk, open_whisk

CODE = """
import os
calls = 0
def main(args):
    global calls
    calls += 1
    if "mark" in args:
        open(args["mark"], "x").close()
        while not os.path.exists(args["go"]):
            pass
    return {"pid": os.getpid(), "calls": calls, "name": os.environ["__OW_ACTION_NAME"],
            "here": os.path.exists("__main__.py")}
"""


@pytest.fixture
async def whisk(tmp_path: Path) -> AsyncIterator[Whisk]:
    """With at most two busy workers of a key."""
    async with open_whisk(tmp_path / "fabric", busy_max=2) as whisk:
        yield whisk


async def result(whisk: Whisk, name: str, **payload: Any) -> dict[str, Any]:
    """What a blocking invocation returns."""
    status, record = await whisk.invoke(name, payload)
    assert status == 200, record
    answer: dict[str, Any] = record["response"]["result"]
    return answer


async def test_one_worker_serves_many_names(whisk: Whisk) -> None:
    """Each call is told the action that it is of; the module is imported once."""
    for number in range(5):
        await whisk.put(f"client_{number}", CODE)
    seen = [await result(whisk, f"client_{number}") for number in range(5)]
    assert len({answer["pid"] for answer in seen}) == 1
    assert [answer["calls"] for answer in seen] == [1, 2, 3, 4, 5]
    assert [answer["name"] for answer in seen] == [f"/guest/client_{number}" for number in range(5)]


@pytest.mark.parametrize(
    "other",
    [
        {"code": CODE + "\n"},
        {"parameters": [{"key": "A", "value": "1", "init": True}]},
        {"limits": {"memory": 512}},
        {"limits": {"timeout": 30_000}},
        {"version": "0.0.2"},
        {"kind": "python:3.11"},
    ],
)
async def test_what_differs_in_anything_has_its_own(whisk: Whisk, other: dict[str, Any]) -> None:
    """Code, init parameters, limits, version, kind."""
    await whisk.put("a", CODE)
    await whisk.put("b", **{"code": CODE, **other})
    assert (await result(whisk, "a"))["pid"] != (await result(whisk, "b"))["pid"]


async def test_an_update_uses_no_old_worker(whisk: Whisk) -> None:
    """Even with the same code; and the other names go on, in a worker that has its files."""
    await whisk.put("a", CODE)
    await whisk.put("b", CODE)
    first = await result(whisk, "a")
    assert (await result(whisk, "b"))["pid"] == first["pid"]
    await whisk.put("a", CODE)
    updated, other = await result(whisk, "a"), await result(whisk, "b")
    assert len({first["pid"], updated["pid"], other["pid"]}) == 3
    assert (updated["calls"], other["calls"], other["here"]) == (1, 1, True)


async def test_files_stay_as_long_as_a_shared_worker_runs_in_them(whisk: Whisk, tmp_path: Path) -> None:
    """The action of which it was made is deleted under it: it ends its call, then worker and files go."""
    await whisk.put("a", CODE)
    await whisk.put("b", CODE)
    await result(whisk, "a")
    mark, go = tmp_path / "mark", tmp_path / "go"
    activation = await whisk.begin("b", {"mark": str(mark), "go": str(go)})
    await eventually(mark.exists)
    assert (await whisk.call("DELETE", "actions/a"))[0] == 200
    assert len(list((whisk.folder / "revisions").iterdir())) == 2
    go.touch()
    record = await whisk.record(activation)
    assert record["response"]["result"]["here"] is True
    await eventually(lambda: len(list((whisk.folder / "revisions").iterdir())) == 1)
    await eventually(lambda: whisk.pool.stats()["workers"] == 0)
    assert (await result(whisk, "b"))["calls"] == 1


async def test_busy_workers_of_a_key_are_bounded_and_hold_up_nobody_else(
    whisk: Whisk, tmp_path: Path
) -> None:
    """Forty calls of twenty names run on two workers, in order; another action overtakes them."""
    for number in range(20):
        await whisk.put(f"client_{number}", CODE)
    await whisk.put("other", CODE + "\n# other")
    go = tmp_path / "go"
    ids = [
        await whisk.begin(f"client_{number % 20}", {"mark": str(tmp_path / f"m{number}"), "go": str(go)})
        for number in range(40)
    ]
    await eventually(lambda: whisk.pool.stats()["busy"] == 2)
    await eventually(lambda: whisk.pool.stats()["queued"] == 38)
    assert (await result(whisk, "other"))["calls"] == 1
    assert whisk.pool.stats()["queued"] == 38
    go.touch()
    records = await asyncio.gather(*map(whisk.record, ids))
    assert {record["response"]["status"] for record in records} == {"success"}
    assert len({record["response"]["result"]["pid"] for record in records}) == 2
    starts = [record["start"] for record in records]
    assert starts == sorted(starts)
    assert whisk.pool.stats()["cold"] == 3


async def test_sharing_can_be_switched_off(tmp_path: Path) -> None:
    """Then each action has workers of its own, as on a real cluster."""
    async with open_whisk(tmp_path / "fabric", settings=FrontSettings(share_workers=False)) as whisk:
        await whisk.put("a", CODE)
        await whisk.put("b", CODE)
        assert (await result(whisk, "a"))["pid"] != (await result(whisk, "b"))["pid"]
