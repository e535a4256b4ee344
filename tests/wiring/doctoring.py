"""Configs for the doctor, made of the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SAMPLE = Path(__file__).resolve().parents[2] / "config-sample.yaml"


def config(folder: Path, change: Any = None) -> Path:
    """The sample in `folder`, with its data, after `change` has had it as a tree."""
    tree = yaml.safe_load(SAMPLE.read_text())
    data = tree["scenarios"]["federated_learning"]["training_test_data"]
    for key in data:
        data[key] = str(SAMPLE.parent / data[key])
    tree["embedded"] = {}
    if change:
        change(tree)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
