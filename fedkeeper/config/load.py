"""Reading a file: YAML → secrets filled in → brought up to date → every fault, or an Experiment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedkeeper.config.ancestor import Upgrade
from fedkeeper.config.experiment import Config, Experiment
from fedkeeper.config.faults import Fault, inspect
from fedkeeper.config.redaction import Scrubber
from fedkeeper.config.rules import RULES
from fedkeeper.config.secrets import Secrets, TooMuch
from fedkeeper.config.shipped import ROOTS, shipped
from fedkeeper.errors import ConfigError

_FILE_BYTES_MAX = 1024 * 1024
_UNVERIFIED = "false lets anybody in between read the credentials"
_HINT = "config-sample.yaml and docs/configuration.md say what each key means"


def load(path: Path, *, environment: Mapping[str, str] = os.environ) -> Experiment:
    """The experiment in the file at `path`, with everything in it checked.

    Args:
        path: YAML, UTF-8. Relative paths inside are relative to its folder.
        environment: where `${NAME}` is looked up.

    Raises:
        ConfigError: no such file, no YAML, or any number of faults, all of them named at once.
    """
    text = _read(path)
    raw, twice = _parse(path, text)
    folder = path.resolve().parent
    if folder == ROOTS[1]:
        folder = Path.cwd()  # the sample inside an installed package: nothing is written there
    secrets = Secrets(environment, folder)
    try:
        raw = secrets.fill(raw)
    except TooMuch:
        raise ConfigError(f"{path.name} nests too deeply or repeats itself too often", hint=_HINT) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} has no keys", hint=_HINT)
    upgrade = Upgrade(raw, secrets.scrub)
    upgrade.run()
    context = {"folder": folder}
    earlier = (*twice, *secrets.faults, *upgrade.faults)
    # What could not be filled in has been reported: it is not "missing" as well.
    reported = {fault.path for fault in earlier}
    found = [fault for fault in inspect(Config, raw, RULES, context) if fault.path not in reported]
    faults = (*earlier, *found)
    if faults:
        raise _error(path, faults, secrets.scrub)
    experiment = Experiment.model_validate(raw, context=context)
    experiment._path = path
    experiment._folder = folder
    experiment._scrub = secrets.scrub
    experiment._warnings = tuple(
        secrets.scrub.text(line) for line in (*secrets.warnings, *upgrade.warnings, *_unwise(experiment))
    )
    return experiment


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {_FILE_BYTES_MAX // 1024} KB: that is no config")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        sample = Path("config-sample.yaml")
        source = sample if sample.exists() else shipped("config-sample.yaml")
        raise ConfigError(f"{path} is not there", hint=f"copy the sample: cp {source} {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from None


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
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if key.value in first:
                text = (
                    f"line {line}, column {column}: key {key.value!r} is on line {first[key.value]} already"
                )
                self.twice.append(Fault("", f"{text}; keep one"))
            first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def _parse(path: Path, text: str) -> tuple[Any, tuple[Fault, ...]]:
    loader = _Loader(text)
    try:
        return loader.get_single_data(), tuple(dict.fromkeys(loader.twice))
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # What stands in quotes in PyYAML's message is text of the file, and may be a secret.
        problem = re.sub(r"'[^']{2,}'", "'…'", exc.problem or "is not YAML")
        raise ConfigError(
            f"{path.name}{where}: {problem}",
            hint="indent with spaces, and put a text in quotes if it has : # or begins with * & ! % @ ` { [",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path.name} is not YAML ({type(exc).__name__})", hint=_HINT) from None
    finally:
        loader.dispose()


def _error(path: Path, faults: Iterable[Fault], scrub: Scrubber) -> ConfigError:
    lines = [scrub.text(str(fault)) for fault in dict.fromkeys(faults)]
    title = f"{path.name} has {len(lines)} fault{'s' * (len(lines) > 1)}"
    return ConfigError("\n  ".join([title, *lines]), hint=_HINT)


def _unwise(experiment: Experiment) -> Iterable[str]:
    """What is allowed and should be known each time."""
    for name, cluster in experiment.clusters().items():
        if not cluster.tls_verify:
            yield f"providers.{cluster.platform}.{name}.tls_verify: {_UNVERIFIED}"
    for name, scenario in experiment.scenarios.items():
        mongo = getattr(scenario, "mongo_config", None)
        if mongo is None or mongo.embedded:
            continue
        if not mongo.username:
            yield f"scenarios.{name}.mongo_config.username: there is none: anybody may read the store"
        if not mongo.tls_verify:
            yield f"scenarios.{name}.mongo_config.tls_verify: {_UNVERIFIED}"
