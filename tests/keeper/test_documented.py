"""The examples in docs/api.md and docs/dictionary.md work as they stand."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from fedkeeper.keeper.api.answers import STATUSES
from tests.keeper.lab import Lab, open_lab
from tests.keeper.world import spec

DOCS = Path(__file__).parents[2] / "docs"


def examples(name: str, language: str) -> list[str]:
    """The blocks of that language."""
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / name).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    return found


async def submit(lab: Lab) -> None:
    """The run that the examples speak of."""
    body = {"spec": msgspec.to_builtins(spec("exp-1"))}
    assert (await lab.ask("POST", "/v1/runs", body)).status == 201


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_shell_examples():
    """Asked of a follower: all of them, one after the other."""
    async with open_lab("k1", "k2") as lab:
        await submit(lab)
        lines = [line for block in examples("api.md", "sh") for line in block.splitlines()]
        assert len(lines) > 10
        for line in lines:
            if "/events" in line:  # it goes on until the run ends
                line = f"{line} --max-time 1 | grep -q 'event: run'"  # noqa: PLW2901
            process = await asyncio.create_subprocess_shell(
                f"API={lab['k2'].url}; {line}",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await process.communicate()
            assert process.returncode == 0, f"{line}: {out.decode()}"
        assert lab.group.state.runs == {}


@pytest.mark.parametrize(("name", "said"), [("api.md", "{'tries': 4} k1"), ("dictionary.md", "0.01 2")])
async def test_the_python_examples(name, said, capsys):
    """With the address of a real keeper in place of theirs."""
    async with open_lab() as lab:
        for block in examples(name, "python"):
            code = re.sub(r"http://127\.0\.0\.1:\d+", lab["k1"].url, block)
            await asyncio.to_thread(exec, compile(code, name, "exec"), {})
        assert said in capsys.readouterr().out
        assert lab.group.state.kv_version > 0


def test_every_kind_of_error_has_its_line():
    """In the table of statuses."""
    text = (DOCS / "api.md").read_text("utf-8")
    for status in {status for _, status in STATUSES}:
        assert re.search(rf"^\| .*\b{status}\b.* \|", text, re.MULTILINE), status
