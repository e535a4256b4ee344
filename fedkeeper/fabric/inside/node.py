"""Inside a worker: hands the process over to Node.js, which serves a node action by `runner.js`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

RUNNER = Path(__file__).with_name("runner.js")
CHANNEL = 3


def serve(channel: socket.socket, order: dict[str, Any], frames: ModuleType) -> NoReturn:
    """Replace this program by Node.js; limits, session, parent and pipes stay. The channel becomes fd 3."""
    del frames  # the runner has its own
    os.dup2(channel.fileno(), CHANNEL)
    os.set_inheritable(CHANNEL, True)  # noqa: FBT003 - the os module's own signature
    node = order["node"]
    os.execve(node, [node, str(RUNNER), order["folder"]], dict(os.environ))  # noqa: S606 - there is no shell
