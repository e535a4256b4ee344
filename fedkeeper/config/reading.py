"""Reading a file: YAML → secrets filled in → brought up to date → every fault, or an Experiment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from fedkeeper.config.ancestor import Upgrade
from fedkeeper.config.experiment import Config, Experiment
from fedkeeper.config.faults import Fault, inspect
from fedkeeper.config.files import ROOTS, shipped
from fedkeeper.config.keeper_rules import unwise
from fedkeeper.config.redaction import Scrubber
from fedkeeper.config.rules import RULES
from fedkeeper.config.secrets import Secrets, TooMuch
from fedkeeper.config.yamlfile import HINT, parse
from fedkeeper.errors import ConfigError

_FILE_BYTES_MAX = 1024 * 1024
_UNVERIFIED = "false lets anybody in between read the credentials"


def load(path: Path, *, environment: Mapping[str, str] = os.environ) -> Experiment:
    """The experiment in the file at `path`, with everything in it checked.

    Args:
        path: YAML, UTF-8. Relative paths inside are relative to its folder.
        environment: where `${NAME}` is looked up.

    Raises:
        ConfigError: no such file, no YAML, or any number of faults, all of them named at once.
    """
    text = _read(path)
    raw, twice, lines = parse(path.name, text)
    folder = path.resolve().parent
    if folder == ROOTS[1]:
        folder = Path.cwd()  # the sample inside an installed package: nothing is written there
    secrets = Secrets(environment, folder)
    try:
        raw = secrets.fill(raw)
    except TooMuch:
        raise ConfigError(f"{path.name} nests too deeply or repeats itself too often", hint=HINT) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} has no keys", hint=HINT)
    upgrade = Upgrade(raw, secrets.scrub, folder)
    upgrade.run()
    context = {"folder": folder}
    earlier = (*twice, *secrets.faults, *upgrade.faults)
    # What could not be filled in has been reported: it is not "missing" as well.
    reported = {fault.path for fault in earlier}
    found = [fault for fault in inspect(Config, raw, RULES, context) if fault.path not in reported]
    faults = (*earlier, *found)
    if faults:
        raise _error(path, faults, lines, secrets.scrub)
    try:
        experiment = Experiment.model_validate(raw, context=context)
    except ValidationError as exc:  # a rule of the models that `inspect` does not know: less well worded
        late = [Fault(".".join(map(str, error["loc"])), error["msg"]) for error in exc.errors()]
        raise _error(path, late, lines, secrets.scrub) from None
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


def _error(path: Path, faults: Iterable[Fault], lines: Mapping[str, int], scrub: Scrubber) -> ConfigError:
    """All faults, in the order of the file; one of a key that is not there is where it belongs."""

    def line_of(fault: Fault) -> int:
        at = fault.path
        while at and at not in lines:
            at = at.rpartition(".")[0]
        return lines.get(at, 0)

    found = [
        f"line {lines[fault.path]}: {fault}" if fault.path in lines else str(fault)
        for fault in sorted(dict.fromkeys(faults), key=line_of)
    ]
    title = f"{path.name} has {len(found)} fault{'s' * (len(found) > 1)}"
    return ConfigError("\n  ".join([title, *map(scrub.text, found)]), hint=HINT)


def _unwise(experiment: Experiment) -> Iterable[str]:
    """What is allowed and should be known each time."""
    yield from unwise(experiment)
    for name, cluster in experiment.clusters().items():
        if not getattr(cluster, "tls_verify", True):
            yield f"providers.{cluster.platform}.{name}.tls_verify: {_UNVERIFIED}"
    for name, scenario in experiment.scenarios.items():
        mongo = getattr(scenario, "mongo_config", None)
        if mongo is None or mongo.embedded:
            continue
        if not mongo.username:
            yield f"scenarios.{name}.mongo_config.username: there is none: anybody may read the store"
        if not mongo.tls_verify:
            yield f"scenarios.{name}.mongo_config.tls_verify: {_UNVERIFIED}"
