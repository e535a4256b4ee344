"""Inside a worker: the OpenWhisk action runtime (openwhisk-runtime-python's launcher.py, /init and /run).

Entry module `__main__.py`, imported as `main__`; the entry function is called with one dict.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

RESULT_BYTES_MAX = 1 << 20
HEAD_OF_OVERSIZE_BYTES = 1024
NO_BINARY = "The action failed to generate or locate a binary. See logs for details."
NO_START = "Cannot start action. Check logs for details."


def serve(channel: socket.socket, order: dict[str, Any], frames: ModuleType) -> None:
    """Answer one init, then runs, one at a time, until the pool closes the channel."""
    entry: Callable[[Any], Any] | None = None
    with contextlib.suppress(ConnectionError):
        for head, body in frames.messages(channel):
            request = json.loads(body)  # of an init: {"main", "env"}; of a run: the arguments
            _environment(head["context"])
            if head["kind"] == "init":
                entry, problem = load(Path(order["folder"]), request["main"], request["env"])
                answer, result = ({"ok": not problem, "error": problem}, b"")
            else:
                assert entry is not None
                answer, result = {"ok": True}, call(entry, request)
            if len(result) > RESULT_BYTES_MAX:
                answer, result = {"ok": True, "bytes": len(result)}, result[:HEAD_OF_OVERSIZE_BYTES]
            for stream in (sys.stdout, sys.stderr):  # before the answer: then the pool reads the pipes
                with contextlib.suppress(OSError, ValueError):  # closed by the action
                    stream.flush()
            channel.sendall(frames.pack({"id": head["id"], **answer}, result))


def load(folder: Path, name: str, env: dict[str, str]) -> tuple[Callable[[Any], Any] | None, str]:
    """Import the action: (its entry function, "") or (None, the platform's words); details go to stderr."""
    os.environ.update(env)
    source = folder / "__main__.py"
    if not source.is_file():
        print("Zip file does not include '__main__.py'", file=sys.stderr)  # noqa: T201
        return None, NO_BINARY
    try:
        if (folder / "virtualenv").is_dir():
            _activate(folder / "virtualenv" / "bin" / "activate_this.py")
        compile(source.read_bytes(), str(source), "exec")  # does not parse: it is not even built
    except (OSError, SyntaxError, ValueError):
        traceback.print_exc()
        return None, NO_BINARY
    try:
        spec = importlib.util.spec_from_file_location("main__", source)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["main__"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        entry: Callable[[Any], Any] = getattr(module, name)
    except Exception:  # noqa: BLE001 - whatever the action's import raises is the answer to its init
        traceback.print_exc()
        return None, NO_START
    return entry, ""


def call(entry: Callable[[Any], Any], arguments: Any) -> bytes:
    """One activation's result as JSON; an exception is `{"error": its text}`, as in the real launcher."""
    try:
        result = entry(arguments)
    except Exception as exc:  # noqa: BLE001 - the action's own, and the worker serves the next activation
        traceback.print_exc()
        result = {"error": str(exc)}
    # What JSON has no word for (numpy scalars) ends the process: so does the real launcher.
    return json.dumps(result, ensure_ascii=False).encode()


def _environment(context: dict[str, str]) -> None:
    for key, value in context.items():
        os.environ[f"__OW_{key.upper()}"] = value


def _activate(script: Path) -> None:
    if not script.is_file():
        raise FileNotFoundError("Zip file does not include 'activate_this.py'")
    exec(compile(script.read_bytes(), str(script), "exec"), {"__file__": str(script)})  # noqa: S102
