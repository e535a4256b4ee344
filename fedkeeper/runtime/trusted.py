"""Certificates of authorities, for libraries that take nothing but a path."""

from __future__ import annotations

import os
from functools import cache


@cache
def ca_file(pem: str) -> str:
    """A path to `pem` that only this process and its children have, and that leaves nothing behind.

    A file in memory (memfd_create(2)): in a shared temporary folder another user could put a file of that
    name there first, and be trusted. It stays open for as long as the process lives: there is one for each
    authority that the process was told of.
    """
    file = os.memfd_create("fedkeeper-ca")
    with os.fdopen(os.dup(file), "w", encoding="utf-8") as text:
        text.write(pem)
    return f"/proc/self/fd/{file}"
