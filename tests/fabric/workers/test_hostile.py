"""Actions that try to break out, to lie or to use up the machine: each ends in the platform's words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fabric.workers.conftest import Bench, eventually, exists

DEVELOPER = "action developer error"
NOT_A_RESULT = {"error": "The action did not return a dictionary or array."}
# Finds the descriptor of the result channel, as an action could.
CHANNEL = """
import os, socket, stat
def channel():
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass
"""

TABLE: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "prints the sentinel": (
        "def main(args):\n    print('XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX')\n"
        "    print('after')\n    return {}",
        "success",
        {},
    ),
    "writes garbage on the result channel": (
        CHANNEL + "def main(args):\n    os.write(channel(), b'\\xff' * 64)\n    return {}",
        DEVELOPER,
        {"error": "The action broke the protocol and was aborted."},
    ),
    "announces an answer of many gigabytes": (
        CHANNEL + "import struct\n"
        "def main(args):\n    os.write(channel(), struct.pack('>IQ', 2, 1 << 40) + b'{}')\n    return {}",
        DEVELOPER,
        {"error": "The action broke the protocol and was aborted."},
    ),
    "sends a depth bomb as the answer's head": (
        CHANNEL + "import struct\ndef main(args):\n"
        "    os.write(channel(), struct.pack('>IQ', 100_000, 0) + b'[' * 100_000)\n    return {}",
        DEVELOPER,
        {"error": "The action broke the protocol and was aborted."},
    ),
    "closes all its descriptors": (
        "import os\ndef main(args):\n    os.closerange(0, 256)\n    return {}",
        DEVELOPER,
        None,
    ),
    "ignores signals": (
        "import signal\ndef main(args):\n"
        "    for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "        signal.signal(n, signal.SIG_IGN)\n"
        "    while True: pass",
        DEVELOPER,
        {"error": "The action exceeded its time limits of 2000 milliseconds."},
    ),
    "fills its directory with one file": (
        "import os\ndef main(args):\n"
        "    with open(os.path.join(os.environ['TMPDIR'], 'f'), 'wb') as f:\n"
        "        while True: f.write(bytes(1 << 20))",
        "application error",
        {"error": "[Errno 27] File too large"},
    ),
    "fills its directory with many files": (
        "import os, time\ndef main(args):\n"
        "    for n in range(6):\n"
        "        with open(os.path.join(os.environ['TMPDIR'], str(n)), 'wb') as f: f.write(bytes(7 << 20))\n"
        "    time.sleep(60)",
        DEVELOPER,
        {"error": "The action wrote more than 16 MB of files and was aborted."},
    ),
    "opens too many files": (
        "import os\ndef main(args):\n    kept = [open('/dev/null') for _ in range(2000)]",
        "application error",
        {"error": "[Errno 24] Too many open files: '/dev/null'"},
    ),
    "returns a depth bomb": (
        "def main(args):\n    v = {}\n    for _ in range(700): v = {'v': v}\n    return v",
        DEVELOPER,
        NOT_A_RESULT,
    ),
    "returns a value that has no end": (
        "def main(args):\n    v = {}\n    v['v'] = v\n    return v",
        DEVELOPER,
        {"error": "command exited"},
    ),
    "returns NaN": ("def main(args):\n    return {'loss': float('nan')}", DEVELOPER, NOT_A_RESULT),
    "returns a key twice": ("def main(args):\n    return {1: 'a', '1': 'b'}", DEVELOPER, NOT_A_RESULT),
    "crashes the interpreter": (
        "import ctypes\ndef main(args):\n    ctypes.string_at(0)",
        DEVELOPER,
        None,
    ),
}


@pytest.mark.parametrize("name", TABLE)
async def test_each_ends_in_the_platforms_words_and_the_next_is_served(bench: Bench, name: str) -> None:
    """One attempt each; then another action, and the same one again where it did no harm."""
    source, status, result = TABLE[name]
    pool = await bench.open(disk_mb=16)
    ran = await bench.run(bench.revision(source, timeout_ms=2_000 if "signals" in name else 60_000))
    assert ran.status == status, ran
    assert result is None or ran.result == result
    if name == "prints the sentinel":
        assert [line[31:] for line in ran.logs] == [
            "stdout: XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX",
            "stdout: after",
        ]
    assert (await bench.run(bench.revision("def main(args): return {'next': 1}"))).result == {"next": 1}
    assert pool.stats()["busy"] == 0


async def test_empty_lines_count_as_log_too(bench: Bench) -> None:
    """A flood of them is cut like any other, and does not fill the memory of the fabric."""
    await bench.open()
    action = bench.revision("def main(args):\n    print('\\n' * 1_100_000)\n    return {}", logs_mb=1)
    ran = await bench.run(action)
    assert ran.status == "success"
    assert len(ran.logs) <= (1 << 20) + 1
    assert "Logs were truncated" in ran.logs[-1]


async def test_a_fork_bomb_is_ended_to_the_last(bench: Bench) -> None:
    """By its deadline, whatever it has become; the next invocation is served."""
    await bench.open()
    bomb = bench.revision(
        """
        import os
        def main(args):
            print(os.getpid(), flush=True)
            while True:
                try:
                    if os.fork() == 0:
                        os.setsid()
                        print(os.getpid(), flush=True)
                except OSError:
                    pass
        """,
        timeout_ms=1_000,
        memory_mb=512,
    )
    ran = await bench.run(bomb)
    assert ran.status == DEVELOPER
    pids = [int(line.rpartition(" ")[2]) for line in ran.logs if line[31:].startswith("stdout: ")]
    assert len(pids) > 1
    await eventually(lambda: not any(map(exists, pids)))
    assert (await bench.run(bench.revision("def main(args): return {}"))).status == "success"
