"""The page docs/configuration.md: `python -m fedkeeper.config.reference > docs/configuration.md` makes it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from fedkeeper.config.base import Section
from fedkeeper.config.experiment import Config
from fedkeeper.config.faults import shape
from fedkeeper.config.scenario import Learning, Scenario

_HEAD = """# Every key of the config

One YAML file describes one experiment; `config-sample.yaml` is one that runs as it is.
This page is made from the models in the code (a test sees to it): do not edit it, run
`python -m fedkeeper.config.reference > docs/configuration.md`.

- Relative paths are relative to the file. What is not beside it is looked for among the shipped files.
- `${NAME}` in any text is taken from the environment; `$${` stands for the characters themselves.
- `password`, `ow_auth`, `private_key`, `secret`, `reader_token` and `operator_token` may come from a file
  instead: `password_file: path`.
- Numbers may be written as text. Memory: `2048` (MB), `2048MB`, `2Gi`. Times: `300s`, `5m`, `300000ms`;
  a bare `timeout` is milliseconds on OpenWhisk and seconds elsewhere, as those platforms have it.
- A run that is resumed must be the same experiment. Free to change in between are secrets, addresses, ports,
  paths, `logs`, `embedded`, `keepers`, how functions are deployed, and the limits on polling and on what is
  in flight.
- Outdated keys of fl_faas_fabric's files are accepted, with a warning that says what replaced them.
"""


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *_section(Config, "")])


def _section(model: type[Section], at: str) -> Iterator[str]:
    below: list[tuple[type[Section], str]] = []
    yield f"## {f'`{at}`' if at else 'Top level'}"
    # What models call themselves is in the heading already.
    yield re.sub("^`.*?`: ", "", (model.__doc__ or "").splitlines()[0]) + "\n"
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for name, field in model.model_fields.items():
        key = field.alias or name
        path = f"{at}.{key}" if at else key
        kind = shape(field.annotation)
        if isinstance(kind, tuple):
            below.append((kind[0], f"{path}.<name>"))
        elif kind is not None:
            below.append((kind, path))
        yield f"| `{key}` | {_default(field, kind)} | {field.description}{_choices(field)} |"
    yield ""
    for kind, path in below:
        if kind is Scenario:
            yield from _section(Learning, path)
            yield f"A scenario without clients has `functions` alone: `{path}.functions`.\n"
        else:
            yield from _section(kind, path)


def _choices(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not Literal or "`" in (field.description or ""):
        return ""
    return f" ({', '.join(f'`{choice}`' for choice in get_args(field.annotation))})"


def _default(field: FieldInfo, kind: Any) -> str:
    if field.is_required():
        return "**required**"
    if kind is not None:
        return "see below"
    if field.default_factory_takes_validated_data:
        return "it depends"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "" or isinstance(value, SecretStr):
        return "none"
    if isinstance(value, tuple | list | dict):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if isinstance(value, bool | float | int):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
