"""How tables look."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(title: str) -> Table:
    """An empty one, in ASCII, so that it survives a log file."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.ASCII2,
        show_header=True,
        header_style="",
    )
