"""The OpenWhisk action runtime: what an action sees, and what its end means."""

from __future__ import annotations

import json
import re

import pytest

from tests.fabric.workers.conftest import Bench

NO_BINARY = "The action failed to generate or locate a binary. See logs for details."
NO_START = "Cannot start action. Check logs for details."
NO_DICTIONARY = "The action did not return a dictionary or array."


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    """A bench with a pool."""
    await bench.open()
    return bench


async def test_an_action_gets_its_arguments_and_returns_a_dictionary(bench: Bench) -> None:
    """Cold first, warm after: init_ms is there only once, and state of the module stays."""
    action = bench.revision("""
        calls = 0
        def main(args):
            global calls
            calls += 1
            return {"args": args, "calls": calls, "name": __name__}
    """)
    first = await bench.run(action, x=[1, {"y": None}])
    second = await bench.run(action)
    assert (first.status, first.result) == (
        "success",
        {"args": {"x": [1, {"y": None}]}, "calls": 1, "name": "main__"},
    )
    assert (second.result["calls"], second.init_ms) == (2, None)
    assert first.init_ms is not None
    assert first.start_ms + first.init_ms <= first.end_ms
    assert bench.pool.stats()["cold"] == bench.pool.stats()["warm"] == 1


async def test_context_and_init_parameters_are_in_the_environment(bench: Bench) -> None:
    """Every context value is a string; the deadline is the run's own; nothing of ours leaks."""
    action = bench.revision(
        """
        import os
        def main(args):
            return dict(os.environ)
        """,
        environment={"STORE": "mongo"},
    )
    seen = (ran := await bench.run(action)).result
    assert seen["STORE"] == "mongo"
    assert seen["__OW_NAMESPACE"] == "guest"
    assert seen["__OW_ACTION_NAME"] == "/guest/f"
    assert re.fullmatch("[0-9a-f]{32}", seen["__OW_ACTIVATION_ID"])
    assert ran.start_ms + 60_000 <= int(seen["__OW_DEADLINE"]) <= ran.end_ms + 60_000
    assert "PYTHONPATH" not in seen
    assert not [name for name in seen if name.startswith("PYTEST")]


async def test_the_zips_own_packages_are_imported_and_never_the_checkout(bench: Bench) -> None:
    """A function's `fedkeeper.runtime` is the one in its zip; cwd is the extracted folder."""
    action = bench.revision(
        {
            "__main__.py": """
            import os, fedkeeper, fedkeeper.runtime, helper
            def go(args):
                return {"file": fedkeeper.__file__, "mark": fedkeeper.runtime.MARK, "cwd": os.getcwd(),
                        "helper": helper.name}
            """,
            "fedkeeper/__init__.py": "",
            "fedkeeper/runtime/__init__.py": "MARK = 'zip'",
            "helper.py": "name = __name__",
        },
        entry="go",
    )
    without = bench.revision("import fedkeeper.fabric\ndef main(args): return {}")
    ran = await bench.run(action)
    assert ran.result == {
        "file": f"{action.folder}/fedkeeper/__init__.py",
        "mark": "zip",
        "cwd": action.folder,
        "helper": "helper",
    }
    assert (await bench.run(without)).result == {"error": NO_START}


async def test_what_is_printed_is_logged_by_activation_and_never_in_the_result(bench: Bench) -> None:
    """Stamped as OpenWhisk does; a line without an end counts; one run's lines are not in the next's."""
    action = bench.revision("""
        import sys
        print("loaded")
        def main(args):
            print("out", args["n"])
            print("no newline", file=sys.stderr, end="")
            return {}
    """)
    first, second = await bench.run(action, n=1), await bench.run(action, n=2)
    plain = [line[31:] for line in first.logs]
    assert sorted(plain) == ["stderr: no newline", "stdout: loaded", "stdout: out 1"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z    stdout: loaded", first.logs[0])
    assert sorted(line[31:] for line in second.logs) == ["stderr: no newline", "stdout: out 2"]


async def test_logs_are_cut_at_their_limit(bench: Bench) -> None:
    """The last line says so; a limit of 0 keeps nothing; the action is never blocked by a full pipe."""
    source = """
        def main(args):
            for _ in range(200):
                print("x" * 9_999)
            return {}
    """
    one, none = bench.revision(source, logs_mb=1), bench.revision(source, logs_mb=0)
    ran = await bench.run(one)
    text = "Logs were truncated because the total bytes size exceeds the limit of 1048576 bytes."
    assert ran.logs[-1].endswith(text)
    assert len(ran.logs) == 1 + 1_048_576 // 9_999
    assert (await bench.run(none)).logs == ()


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("raise ValueError('no rows')", "application error", "no rows"),
        ("return {'error': 'bad', 'more': 1}", "application error", "bad"),
        ("return 'text'", "action developer error", NO_DICTIONARY),
        (
            "return {'loss': float('nan')}",
            "action developer error",
            "The action did not return a dictionary or array.",
        ),
        (
            "return None",
            "action developer error",
            "The action did not produce a valid JSON or JSON Array response: null",
        ),
        ("import os; os._exit(3)", "action developer error", "command exited"),
        ("raise SystemExit", "action developer error", "command exited"),
        ("import numpy; return {'a': numpy.float32(1)}", "action developer error", "command exited"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "action developer error",
            "The action did not produce a valid response and exited unexpectedly: "
            "killed by signal 9 (SIGKILL).",
        ),
    ],
)
async def test_bad_ends_have_the_platforms_words(bench: Bench, body: str, status: str, error: str) -> None:
    """And the next invocation is served, in a new worker after a developer error."""
    action = bench.revision(f"def main(args):\n    if args: {body}\n    return {{'ok': 1}}")
    ran = await bench.run(action, bad=1)
    assert (ran.status, ran.result) == (status, {"error": error})
    after = await bench.run(action)
    assert after.result == {"ok": 1}
    assert (after.init_ms is None) == (status == "application error")
    if status == "action developer error":
        assert ran.logs[-1].endswith("Log data might be missing.")


async def test_an_exception_leaves_its_traceback_in_the_logs(bench: Bench) -> None:
    """The result holds only the text of the exception."""
    ran = await bench.run(bench.revision("def main(args): return 1 / 0"))
    assert ran.result == {"error": "division by zero"}
    assert any("ZeroDivisionError" in line and " stderr: " in line for line in ran.logs)


@pytest.mark.parametrize(
    ("files", "entry", "error"),
    [
        ({"main.py": ""}, "main", NO_BINARY),
        (
            {"__main__.py": "def main(:"},
            "main",
            NO_BINARY,
        ),
        ({"__main__.py": "import nowhere"}, "main", NO_START),
        ({"__main__.py": "x = 1"}, "main", NO_START),
        ({"__main__.py": "import os; os._exit(1)"}, "main", NO_START),
    ],
)
async def test_an_action_that_does_not_load(
    bench: Bench, files: dict[str, str], entry: str, error: str
) -> None:
    """Its init fails with the proxy's words, and its worker is not kept."""
    ran = await bench.run(bench.revision(files, entry=entry))
    assert (ran.status, ran.result) == ("action developer error", {"error": error})
    assert bench.pool.stats()["workers"] == 0


async def test_a_result_over_1_mib_is_refused(bench: Bench) -> None:
    """At 1 MiB it is taken, one byte more and it is not; the worker stays."""
    action = bench.revision("def main(args): return {'x': 'a' * args['n']}")
    room = (1 << 20) - len(json.dumps({"x": ""}))
    assert (await bench.run(action, n=room)).status == "success"
    ran = await bench.run(action, n=room + 1)
    assert ran.status == "application error"
    assert "exceeded the allowed length: 1048577 > 1048576 bytes" in ran.result["error"]
    assert (await bench.run(action, n=1)).init_ms is None


async def test_standard_input_is_empty_and_results_may_be_lists(bench: Bench) -> None:
    """Reading stdin ends at once instead of hanging the action."""
    ran = await bench.run(bench.revision("import sys\ndef main(args): return [sys.stdin.read()]"))
    assert (ran.status, ran.result) == ("success", [""])
