"""PySyncObj as we use it: no threads, no sockets, no files, no pickle of its own. The only importer of it.

The library reads time and chance through two names of its module, so that they can be given to it; `use`
does that for the node that is about to act (in a simulation, several nodes of one process have their own).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

_inet = (socket.inet_ntop, socket.inet_pton)

from pysyncobj import (  # noqa: E402
    FAIL_REASON,
    SyncObj,
    SyncObjConf,
    syncobj,
)
from pysyncobj.node import Node as Peer  # noqa: E402
from pysyncobj.transport import Transport  # noqa: E402

socket.inet_ntop, socket.inet_pton = _inet  # the library replaces them on import, on every platform

__all__ = ["FAIL_REASON", "Peer", "SyncObj", "SyncObjConf", "Transport", "monotonic", "use"]

REGULAR, NO_OP, MEMBERSHIP = 0, 1, 2
monotonic: Callable[[], float] = syncobj.monotonicTime
_create_journal = syncobj.createJournal


def _journal(given: Any) -> Any:
    return _create_journal(given) if given is None or isinstance(given, str) else given


syncobj.createJournal = _journal  # `journalFile` may be the journal itself


def use(clock: Callable[[], float], chance: random.Random) -> None:
    """From now on the library's time is `clock`, and its chance `chance`."""
    syncobj.monotonicTime = clock
    syncobj.random = chance
