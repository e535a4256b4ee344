"""What a row of the tables of guards is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.patches import Patch

Behaviour = Callable[[], Any]  # a test; or a coroutine function


@dataclass(frozen=True, kw_only=True)
class Guard:
    """`behaviour` holds, and without the guard it does not: `breaks` is what the test then ends with."""

    fault: str  # what PySyncObj does, and where
    guard: str  # what of ours keeps it away
    behaviour: Behaviour
    without: Patch
    breaks: type[BaseException] | tuple[type[BaseException], ...] = AssertionError
    match: str | None = None


NOT_RAISED = (AssertionError, pytest.fail.Exception)  # what a test ends with that waits for an error in vain
