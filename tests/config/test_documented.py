"""Every key is written about where users look."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml

from fedkeeper.config import Aggregation, Config, Embedded, Keepers, Limits, Logs
from fedkeeper.config.base import Section
from fedkeeper.config.faults import shape
from fedkeeper.config.reference import reference
from fedkeeper.config.scenario import Learning, Partition, Scenario

from .conftest import ROOT

SAMPLE = (ROOT / "config-sample.yaml").read_text(encoding="utf-8")


def sections(model: type[Section]) -> Iterator[type[Section]]:
    """`model` and all below it."""
    yield model
    for field in model.model_fields.values():
        kind = shape(field.annotation)
        kind = kind[0] if isinstance(kind, tuple) else kind
        for below in (Learning, Scenario) if kind is Scenario else (kind,):
            if below is not None:
                yield from sections(below)


# Keys that are a secret, or whose default depends on another one.
NO_DEFAULT = {"keepers": {"secret", "secret_file", "data_dir"}}
ALL = list(dict.fromkeys(sections(Config)))


def test_the_reference_is_made_from_the_models():
    """If not: python -m fedkeeper.config.reference > docs/configuration.md."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.__name__)
def test_every_key_is_in_the_sample(model: type[Section]):
    """In use, or commented out with its default."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        assert field.description, key
        if not key.endswith("_file") or key in {"password_file", "ow_auth_file", "secret_file"}:
            assert re.search(rf"\b{key}\b", SAMPLE), f"{model.__name__}.{key}"


@pytest.mark.parametrize(
    ("heading", "model"),
    {
        "limits": Limits,
        "aggregation": Aggregation,
        "embedded": Embedded,
        "logs": Logs,
        "partition": Partition,
        "keepers": Keepers,
    }.items(),
)
def test_what_the_sample_calls_a_default_is_one(heading: str, model: type[Section]):
    """The commented-out values of whole sections, read as YAML."""
    begin = re.search(rf"^\s*# {heading}:", SAMPLE, re.MULTILINE)
    assert begin
    section = SAMPLE[begin.end() :].split("only for keepers on hosts of their own")[0]
    for name, field in model.model_fields.items():
        if shape(field.annotation) is not None or name in NO_DEFAULT.get(heading, ()):
            continue
        found = re.search(rf"^\s*#\s+{name}: +([^#\n]+?) *(#|$)", section, re.MULTILINE)
        assert found, name
        if name == "min_updates":
            continue  # half of the sample's ten
        default = model.model_validate({}).model_dump()[name]
        shown = model.model_validate({name: yaml.safe_load(found[1])}).model_dump()[name]
        assert shown == default, name


def test_units_are_said():
    """Whatever ends in a unit has it in its description as well."""
    units = {"_s": "seconds", "_mb": "(MB)", "_max": "", "_ms": "milliseconds"}
    for model in ALL:
        for name, field in model.model_fields.items():
            unit = next((unit for end, unit in units.items() if name.endswith(end)), "")
            assert unit in (field.description or ""), f"{model.__name__}.{name}"
