"""What the nodes log is not printed: a world's own story has what matters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of lines per world otherwise."""
    with capture_logs():
        yield
