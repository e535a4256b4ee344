"""Inside a worker: a Cloud Functions instance. The functions framework's own application answers.

Requests come as frames and are given to the WSGI application: there is no HTTP server to start or to reach.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

RESPONSE_BYTES_MAX = 32 << 20


def serve(channel: socket.socket, order: dict[str, Any], frames: ModuleType) -> None:
    """Load the function, then answer up to `concurrency` requests at a time until the channel closes."""
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
        application = _application(order["entry"], Path(order["folder"]) / "main.py")
    except Exception:  # noqa: BLE001 - whatever main.py raises is why the deployment failed
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
            threads.submit(_respond, application, head, body, answer)
    os._exit(0)


def _application(target: str, source: Path) -> Any:
    import functions_framework  # noqa: PLC0415 - a zygote that preloads it has paid for it

    return functions_framework.create_app(target, str(source))


def _respond(application: Any, head: dict[str, Any], body: bytes, answer: Any) -> None:
    from werkzeug.test import EnvironBuilder, run_wsgi_app  # noqa: PLC0415 - as above

    try:
        path, _, query = head["path"].partition("?")
        builder = EnvironBuilder(
            path=path,
            query_string=query,
            method=head["method"],
            headers=list(head["headers"].items()),
            data=body,
            environ_base={"REMOTE_ADDR": "127.0.0.1"},
        )
        parts, status, headers = run_wsgi_app(application, builder.get_environ(), buffered=True)
        content = b"".join(parts)
    except BaseException:  # noqa: BLE001 - SystemExit and the like, past Flask's own handlers
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # they end a real instance too
    if len(content) > RESPONSE_BYTES_MAX:
        text = f"response of {len(content)} bytes, {RESPONSE_BYTES_MAX} are allowed"
        answer(head, {"status": 500, "headers": {"X-Google-Status": "error"}}, text.encode())
        return
    answer(head, {"status": int(status.split()[0]), "headers": dict(headers)}, content)
