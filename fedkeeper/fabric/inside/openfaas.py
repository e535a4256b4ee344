"""Inside a worker: a replica of an OpenFaaS function, as in an image with of-watchdog in http mode.

The function is an HTTP server, the functions framework's application; the watchdog beside it passes requests
on over HTTP (upstream_url). Here the server listens on a Unix socket in the worker's own directory, since
every replica has the same port in its container, and workers share one machine.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

RESPONSE_BYTES_MAX = 32 << 20
INTERNAL = {"X-OpenFaaS-Internal": "of-watchdog"}  # the answer is not the function's


def load(order: dict[str, Any]) -> str:
    """Start the function's server: the path of its socket."""
    import functions_framework  # noqa: PLC0415 - a zygote that preloads it has paid for it
    from werkzeug.serving import make_server  # noqa: PLC0415 - as above

    folder = os.environ["TMPDIR"]  # before the function's source can change it
    application = functions_framework.create_app(order["entry"], str(Path(order["folder"]) / "main.py"))
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


def respond(upstream: str, head: dict[str, Any], body: bytes, answer: Any) -> None:
    """Pass one request on to it, and its answer back."""
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
