"""Function folders as the fabric extracts them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path


def write_folder(root: Path, files: Mapping[str, str]) -> str:
    """Write `files` (name with slashes -> text, dedented) under `root`; the folder as a Revision wants it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return str(root)
