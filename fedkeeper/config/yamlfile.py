"""YAML to plain types, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from fedkeeper.config.faults import Fault
from fedkeeper.errors import ConfigError

HINT = "config-sample.yaml and docs/configuration.md say what each key means"
_QUOTE = "indent with spaces, and put a text in quotes if it has : # or begins with * & ! % @ ` { ["
_DEPTH_MAX = 20
_KEYS_MAX = 10_000


class _Loader(yaml.SafeLoader):
    """Safe, and tells of keys that are given twice (PyYAML takes the last one silently)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[Fault] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """As PyYAML does, after a look for keys that are given twice."""
        first: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                text = (
                    f"line {line}: key {key.value!r} is on line {first[key.value]} already; keep one of them"
                )
                self.twice.append(Fault("", text))
            first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def parse(name: str, text: str) -> tuple[Any, tuple[Fault, ...], dict[str, int]]:
    """The document, the keys that are given twice, and the line of each key by its dotted path.

    Raises:
        ConfigError: it is not YAML; says where, never what stands there.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None, (), {}
        lines: dict[str, int] = {}
        for path, line in _lines(node, "", 0):
            lines.setdefault(path, line)
            if len(lines) > _KEYS_MAX:
                raise ConfigError(f"{name} nests too deeply or repeats itself too often", hint=HINT)
        return loader.construct_document(node), tuple(dict.fromkeys(loader.twice)), lines
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # What stands in quotes in PyYAML's message is text of the file, and may be a secret.
        problem = re.sub(r"'(?!\\.'|<[a-z ]+>')[^']{2,}'", "'…'", exc.problem or "is not YAML")
        raise ConfigError(f"{name}{where}: {problem}", hint=_QUOTE) from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{name} is not YAML ({type(exc).__name__})", hint=_QUOTE) from None
    finally:
        if loader is not None:
            loader.dispose()


def _lines(node: yaml.Node, at: str, depth: int) -> Iterator[tuple[str, int]]:
    if depth > _DEPTH_MAX:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                path = f"{at}.{key.value}" if at else key.value
                yield path, key.start_mark.line + 1
                yield from _lines(value, path, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield f"{at}.{number}", value.start_mark.line + 1
            yield from _lines(value, f"{at}.{number}", depth + 1)
