"""Instances of Cloud Functions: the functions framework in workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from fedkeeper.fabric.model import Revision
from tests.fabric.workers.conftest import Bench, eventually

ECHO = """
    import os
    calls = 0
    def main(request):
        global calls
        calls += 1
        print("call", calls)
        return {"calls": calls, "method": request.method, "path": request.path, "query": request.args,
                "id": request.headers.get("Function-Execution-Id"), "pid": os.getpid(),
                "bytes": len(request.get_data()), "json": request.get_json(silent=True)}
"""


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    """A bench with a pool."""
    await bench.open()
    return bench


def google(bench: Bench, source: str, **options: object) -> Revision:
    """A revision of a Cloud Function."""
    return bench.revision(source, flavour="google", **options)  # type: ignore[arg-type]


async def test_requests_arrive_whole_and_instances_stay_warm(bench: Bench) -> None:
    """Method, path, query, headers and body; the log holds this request's lines."""
    function = google(bench, ECHO)
    headers = {"Content_Type": "application/json", "Function_Execution_Id": "abc"}
    first = await bench.get(function, "/a%20b?x=1&y=%2F", b'{"n": 1}', **headers)
    second = await bench.get(function)
    seen = json.loads(first.body)
    assert first.status == 200
    assert first.headers["Content-Type"] == "application/json"
    assert (seen["method"], seen["path"], seen["query"]) == ("POST", "/a b", {"x": "1", "y": "/"})
    assert (seen["id"], seen["json"], seen["bytes"]) == ("abc", {"n": 1}, 8)
    assert json.loads(second.body)["calls"] == 2
    assert [line[31:] for line in second.ran.logs] == ["stdout: call 2"]
    assert (first.ran.status, second.ran.init_ms) == ("success", None)
    assert first.ran.init_ms is not None


async def test_the_instance_is_told_what_it_is(bench: Bench) -> None:
    """The variables of Cloud Run and of the service; its own modules are importable."""
    function = bench.revision(
        {
            "main.py": "import os, helper\ndef hello(request): return {**os.environ, 'helper': helper.x}",
            "helper.py": "x = 'mine'",
        },
        flavour="google",
        entry="hello",
        environment={"STORE": "mongo"},
    )
    seen = json.loads((await bench.get(function)).body)
    assert (seen["FUNCTION_TARGET"], seen["K_SERVICE"], seen["K_REVISION"]) == ("hello", "f", function.id)
    assert (seen["STORE"], seen["helper"], seen["PORT"]) == ("mongo", "mine", "8080")


async def test_bodies_of_32_mib_pass_and_larger_ones_do_not(bench: Bench) -> None:
    """In both directions; the instance survives its own oversize response."""
    function = google(bench, "def main(request): return bytes(int(request.args.get('n', 0))) or request.data")
    most = 32 << 20
    whole = await bench.get(function, body=os.urandom(16) + bytes(most - 16))
    assert (whole.status, len(whole.body)) == (200, most)
    assert (await bench.get(function, body=bytes(most + 1))).status == 413
    assert (await bench.get(function, f"/?n={most}")).status == 200
    over = await bench.get(function, f"/?n={most + 1}")
    assert (over.status, over.ran.init_ms) == (500, None)
    assert (await bench.get(function, "/?n=1")).ran.init_ms is None


async def test_an_exception_is_a_crash_and_the_instance_stays(bench: Bench) -> None:
    """500 with X-Google-Status: crash, from the framework itself; the traceback is in the log."""
    function = google(bench, "def main(request): return 1 / int(request.args['n']) and 'fine'")
    answer = await bench.get(function, "/?n=0")
    assert (answer.status, answer.headers["X-Google-Status"]) == (500, "crash")
    assert answer.ran.status == "application error"
    assert any("ZeroDivisionError" in line for line in answer.ran.logs)
    after = await bench.get(function, "/?n=1")
    assert (after.status, after.body, after.ran.init_ms) == (200, b"fine", None)


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "raise SystemExit"])
async def test_an_instance_that_dies_is_a_500_and_is_replaced(bench: Bench, end: str) -> None:
    """The caller is told how it ended; the next request gets a new instance."""
    function = google(bench, f"import os\ndef main(request):\n    if request.args: {end}\n    return 'ok'")
    answer = await bench.get(function, "/?die=1")
    assert answer.status == 500
    assert b"exited with status" in answer.body or b"killed by signal 9" in answer.body
    assert answer.ran.status == "action developer error"
    assert (await bench.get(function)).status == 200


async def test_the_time_limit_is_a_504_and_the_instance_is_killed(bench: Bench) -> None:
    """Its work cannot leak into the next request."""
    function = google(
        bench,
        "import time\ndef main(request):\n    if request.args: time.sleep(60)\n    return 'ok'",
        timeout_ms=2_000,
    )
    answer = await bench.get(function, "/?hang=1")
    assert (answer.status, answer.ran.timed_out) == (504, True)
    assert bench.pool.stats()["workers"] == 0
    assert (await bench.get(function)).status == 200


async def test_memory_over_the_limit_is_a_500(bench: Bench) -> None:
    """The log's status says why."""
    source = (
        "import time\ndef main(request):\n    held = b'x' * (300 << 20)\n    time.sleep(60)\n    return 'ok'"
    )
    answer = await bench.get(google(bench, source, memory_mb=128))
    assert (answer.status, answer.body) == (500, b"The action exhausted its memory and was aborted.")


@pytest.mark.parametrize(("concurrency", "instances"), [(1, 3), (3, 1)])
async def test_an_instance_takes_as_many_requests_as_it_may(
    bench: Bench, tmp_path: Path, concurrency: int, instances: int
) -> None:
    """Three at once: one instance each, or all on one; each log has its own request's lines only."""
    source = """
        import os, time
        def main(request):
            open(request.args["mark"], "x").close()
            while not os.path.exists(request.args["go"]):
                time.sleep(0.01)
            return str(os.getpid())
    """
    function = google(bench, source, concurrency=concurrency)
    assert await bench.pool.check(function) == ""
    marks = [tmp_path / str(n) for n in range(3)]
    go = tmp_path / "go"
    running = [asyncio.create_task(bench.get(function, f"/?mark={mark}&go={go}")) for mark in marks]
    await eventually(lambda: all(mark.exists() for mark in marks))
    go.touch()
    answers = await asyncio.gather(*running)
    assert len({answer.body for answer in answers}) == instances
    assert bench.pool.stats()["workers"] == instances


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"main.py": "def other(request): return ''"}, "MissingTargetException"),
        ({"other.py": ""}, "MissingSourceException"),
        ({"main.py": "import nowhere"}, "No module named 'nowhere'"),
        ({"main.py": "def main(:"}, "SyntaxError"),
        ({"main.py": "import sys; sys.exit('no config')"}, "no config"),
    ],
)
async def test_a_function_that_does_not_load_fails_its_check(
    bench: Bench, files: dict[str, str], why: str
) -> None:
    """The last lines of stderr say why; a request gets a 500; no instance is kept."""
    function = bench.revision(files, flavour="google")
    assert why in await bench.pool.check(function)
    assert (await bench.get(function)).status == 500
    assert bench.pool.stats()["workers"] == 0


async def test_a_checked_instance_serves_the_first_request_warm(bench: Bench) -> None:
    """The instance of the deployment is kept."""
    function = google(bench, "def main(request): return 'ok'")
    assert await bench.pool.check(function) == ""
    assert (await bench.get(function)).ran.init_ms is None


async def test_an_idle_instance_killed_from_outside_is_not_used(bench: Bench) -> None:
    """The next request gets a new one."""
    function = google(bench, "import os\ndef main(request): return str(os.getpid())")
    os.kill(int((await bench.get(function)).body), signal.SIGKILL)
    await eventually(lambda: bench.pool.stats()["workers"] == 0)
    assert (await bench.get(function)).status == 200
