"""Inside a worker: a replica of an OpenFaaS function, as in an image with of-watchdog in http mode.

The function is an HTTP server, the functions framework's application; the watchdog beside it passes requests
on over HTTP (upstream_url). Here the server listens on a Unix socket in the worker's own directory, since
every replica has the same port in its container, and workers share one machine.
"""

from __future__ import annotations

import contextlib
import http.client
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
INTERNAL = {"X-OpenFaaS-Internal": "of-watchdog"}  # the answer is not the function's


def serve(channel: socket.socket, order: dict[str, Any], frames: ModuleType) -> None:
    """Start the function's server, then pass on up to `concurrency` requests at a time until the end."""
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
        upstream = _start(order["entry"], Path(order["folder"]) / "main.py", Path(os.environ["TMPDIR"]))
    except Exception:  # noqa: BLE001 - whatever main.py raises is why the replica does not get ready
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
            threads.submit(_pass_on, upstream, head, body, answer)
    os._exit(0)


def _start(target: str, source: Path, folder: Path) -> str:
    """The function's server, listening: the path of its socket."""
    import functions_framework  # noqa: PLC0415 - a zygote that preloads it has paid for it
    from werkzeug.serving import make_server  # noqa: PLC0415 - as above

    application = functions_framework.create_app(target, str(source))
    # A socket's path has at most 107 bytes, and the folder may be anywhere.
    path = f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}/http"
    server = make_server(f"unix://{path}", 0, application, threaded=True, request_handler=_quiet())
    threading.Thread(target=server.serve_forever, name="function's server", daemon=True).start()
    return path


def _quiet() -> Any:
    from werkzeug.serving import WSGIRequestHandler  # noqa: PLC0415 - as above

    class Quiet(WSGIRequestHandler):
        """The watchdog logs requests, not the server."""

        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base's name
            del type, message, args

        def address_string(self) -> str:
            return "127.0.0.1"

    return Quiet


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


def _pass_on(upstream: str, head: dict[str, Any], body: bytes, answer: Any) -> None:
    connection = _Connection(upstream)
    try:
        connection.request(head["method"], head["path"], body=body, headers=head["headers"])
        with connection.getresponse() as response:
            content = response.read(RESPONSE_BYTES_MAX + 1)
            status, headers = response.status, dict(response.getheaders())
    except (OSError, http.client.HTTPException):
        traceback.print_exc()
        answer(head, {"status": 500, "headers": INTERNAL})
        return
    finally:
        connection.close()
    if len(content) > RESPONSE_BYTES_MAX:
        print(f"response of more than {RESPONSE_BYTES_MAX} bytes", file=sys.stderr)  # noqa: T201 - its log
        answer(head, {"status": 500, "headers": INTERNAL})
        return
    answer(head, {"status": status, "headers": headers}, content)
