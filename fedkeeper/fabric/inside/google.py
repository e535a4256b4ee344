"""Inside a worker: a Cloud Functions instance. The functions framework's own application answers.

Requests come as frames and are given to the WSGI application: there is no HTTP server to start or to reach.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

RESPONSE_BYTES_MAX = 32 << 20


def load(order: dict[str, Any]) -> Any:
    """The function's application."""
    import functions_framework  # noqa: PLC0415 - a zygote that preloads it has paid for it

    return functions_framework.create_app(order["entry"], str(Path(order["folder"]) / "main.py"))


def respond(application: Any, head: dict[str, Any], body: bytes, answer: Any) -> None:
    """Give it one request."""
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
