"""Types that msgspec knows before there are threads.

msgspec looks at a type when it is first used for reading, and remembers what it found before that is whole:
two threads that meet there crash the interpreter (seen with 0.22.0: SIGSEGV, no traceback, no output).
"""

from __future__ import annotations

from typing import Any

import msgspec


def learn(*kinds: Any) -> None:
    """Have these, and all types in them, looked at now: while a module is imported there is one thread."""
    for kind in kinds:
        msgspec.json.Decoder(kind)
