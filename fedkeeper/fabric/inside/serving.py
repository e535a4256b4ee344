"""Inside a worker that answers HTTP requests, whatever the platform: load once, then several at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any


def serve(runtime: ModuleType, channel: socket.socket, order: dict[str, Any], frames: ModuleType) -> None:
    """Load the function, then answer up to `concurrency` requests at a time until the channel closes.

    `runtime` has `load(order)`, which raises whatever its source raises, and `respond(loaded, head, body,
    answer)`, which calls `answer(head, fields, body)` once.
    """
    sending = threading.Lock()

    def answer(head: dict[str, Any], fields: dict[str, Any], body: bytes = b"") -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed by the function
                stream.flush()
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                os.write(fd, f"{head['marker']}\n".encode())
        with sending:
            channel.sendall(frames.pack({"id": head["id"], **fields}, body))

    head, _ = frames.receive(channel)
    try:
        loaded = runtime.load(order)
    except Exception:  # noqa: BLE001 - whatever the source raises is why the deployment failed
        traceback.print_exc()
        answer(head, {"ok": False, "error": "the function does not load"})
        return
    answer(head, {"ok": True, "error": ""})
    with (
        ThreadPoolExecutor(order["concurrency"]) as threads,
        contextlib.suppress(frames.Closed, ConnectionError),
    ):
        while True:
            head, body = frames.receive(channel)
            threads.submit(runtime.respond, loaded, head, body, answer)
    os._exit(0)
