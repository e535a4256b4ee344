"""What fl_faas_fabric's files say differently: taken over, with a warning per outdated key.

Works on plain YAML types, before the models see them. Never puts a value into a warning that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fedkeeper.config.faults import UNFILLED, Fault
from fedkeeper.config.files import shipped
from fedkeeper.config.redaction import Scrubber
from fedkeeper.config.secrets import take_credentials
from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS, describe, part

# Keras' copy of MNIST: the same images as in the ancestor's four pickles, which nobody should unpickle.
_MNIST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_MNIST_PICKLES = re.compile(r"https?://storage\.googleapis\.com/mnist_fl/mnist_\w+\.obj")
_OLD_IMAGES = re.compile(r"(kkyfury/tensorflow|ansjin/fl_\w+)(:.*)?")
_OLD_RUNTIMES = re.compile(r"python:?(2.*|3[0-8]?|3\.[0-8])")
_NODE_RUNTIME = re.compile(r"nodejs:?(\d*).*")
_OLDEST_NODE = 18  # that platforms still have
_OUR_FUNCTION = re.compile(rf"(?:\./)?functions/(\w+)/({'|'.join(PLATFORMS)})(?:/.*)?")
_MONGO_SET_BY_US = {"retrywrites", "w", "journal", "appname", "directconnection"}
_MONGO_OPTIONS = {  # of a mongodb:// URL, in small letters -> our key
    "replicaset": "replica_set",
    "authsource": "auth_source",
    "tls": "tls",
    "ssl": "tls",
    "tlscafile": "ca_file",
}
_UNUSED = ("prometheus_config", "configurations")
_NOT_USED = "is not used; leave it out (`concurrency` of the cluster is a key of its own)"


class Upgrade:
    """Brings one file up to date, in place; collects what it found."""

    def __init__(self, raw: dict[Any, Any], scrub: Scrubber, folder: Path) -> None:
        self.raw = raw
        self.scrub = scrub
        self.folder = folder  # that paths in it are relative to
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def run(self) -> None:
        """Apply every rule. Sections of a wrong type are left for the models to refuse."""
        if str(self.raw.get("version", 1)) == "0.1":
            self.raw["version"] = 1
            self.warn("version", "0.1 is the ancestor's; write 1")
        for platform in PLATFORMS:
            for at, cluster in items(self.raw, "providers", platform):
                for key in _UNUSED:
                    self.drop(cluster, at, key, _NOT_USED)
                part(platform, "rules").upgrade_cluster(self, at, cluster)
        for at, scenario in items(self.raw, "scenarios"):
            self._scenario(at, scenario)

    def warn(self, at: str, text: str) -> None:
        """Say that what is written at `at` is outdated or unused, and what to write."""
        self.warnings.append(f"{at}: {text}")

    def drop(self, section: dict[Any, Any], at: str, key: str, why: str) -> None:
        """Take a key away, and say why."""
        if key in section:
            del section[key]
            self.warn(f"{at}.{key}", why)

    # --- scenarios -------------------------------------------------------------------------------

    def _scenario(self, at: str, scenario: dict[Any, Any]) -> None:
        params = scenario.get("model_params")
        if isinstance(params, dict) and params.get("optim") == "ndam":
            params["optim"] = "nadam"
            self.warn(f"{at}.model_params.optim", "ndam is written nadam")
        mongo = scenario.get("mongo_config")
        if isinstance(mongo, dict) and isinstance(mongo.get("url"), str):
            self._mongo(f"{at}.mongo_config", mongo)
        data = scenario.get("training_test_data")
        if isinstance(data, dict):
            self._data(f"{at}.training_test_data", data)
        for path, places in items(scenario, "functions", at=at):
            for platform in PLATFORMS:
                settings = places.get(platform, ())
                if settings is None:
                    places[platform] = {}  # `openwhisk:` alone means: there, with the defaults
                if isinstance(settings, dict):
                    self._function(f"{path}.{platform}", settings, platform)

    def _data(self, at: str, data: dict[Any, Any]) -> None:
        for key, url in data.items():
            if isinstance(url, str) and _MNIST_PICKLES.fullmatch(url):
                data[key] = {"url": _MNIST, "sha256": _MNIST_SHA256}
                self.warn(
                    f"{at}.{key}", f"is a pickle, and a pickle can run code; the same data is in {_MNIST}"
                )

    def _function(self, at: str, settings: dict[Any, Any], platform: str) -> None:
        self.drop(settings, at, "blocking_cli", "is not used, as nothing blocks; leave it out")
        self.drop(settings, at, "docker", "is not used; docker_image names an image")
        path = settings.get("func_path")
        found = _OUR_FUNCTION.fullmatch(path) if isinstance(path, str) else None
        if self._node(at, settings, platform, ours=found is not None):
            found = None
        if found:
            function = found[1]
            try:
                # Ours, whatever is beside the config: in a clone of the ancestor that is the old one.
                settings["func_path"] = str(shipped(f"functions/{function}"))
            except ConfigError:
                del settings["func_path"]
            self.warn(
                f"{at}.func_path", f"names the function's folder now: functions/{function} (the default)"
            )
        if _OLD_RUNTIMES.fullmatch(str(settings.get("runtime", ""))):
            self.drop(settings, at, "runtime", "is too old for our functions; leave it out for the default")
        if _OLD_IMAGES.fullmatch(str(settings.get("docker_image", ""))):
            self.warn(
                f"{at}.docker_image",
                "was built for the ancestor's functions; ours need Python 3.10 or newer with the function's"
                " requirements.txt installed",
            )
        part(platform, "rules").upgrade_function(self, at, settings)

    def _node(self, at: str, settings: dict[Any, Any], platform: str, *, ours: bool) -> bool:
        """Whether it is a function for Node.js that can run; `ours`: its path is one of our functions'."""
        runtime = _NODE_RUNTIME.fullmatch(str(settings.get("runtime", "")))
        if runtime is None:
            return False
        path = str(settings.get("func_path", ""))
        if not describe(platform).node_entry_file or (ours and not (self.folder / path).exists()):
            self.drop(settings, at, "runtime", "is Node.js, and the function is Python; leave it out")
            return False
        if runtime[1] and int(runtime[1]) < _OLDEST_NODE:
            settings["runtime"] = "nodejs:default"
            self.warn(f"{at}.runtime", f"{runtime[0]} is too old; write nodejs:default")
        return True

    # --- mongo -----------------------------------------------------------------------------------

    def _mongo(self, at: str, mongo: dict[Any, Any]) -> None:
        """`url` may be a connection string; what it says is spread over the keys."""
        path = f"{at}.url"
        url, user, password = take_credentials(mongo["url"])
        if user:
            self.scrub.hide(password)
            self.warn(path, "holds credentials, which end up in logs that way; write username and password")
            for key, value in (("username", user), ("password", password)):
                known = mongo.setdefault(key, value) or value
                mongo[key] = known
                if value and isinstance(known, str) and known != value:
                    self.faults.append(
                        Fault(path, f"holds another {key} than the key {key}; take it out here")
                    )
        if url.startswith("mongodb+srv://"):
            text = "mongodb+srv is not supported; write the hosts it stands for, and replica_set"
            self.faults.append(Fault(path, text))
            mongo["url"] = UNFILLED
            return
        if url.startswith("mongodb://"):
            parts = urlsplit(url)
            if parts.path.strip("/"):
                mongo.setdefault("auth_source", parts.path.strip("/"))
            for option, value in parse_qsl(parts.query):
                self._mongo_option(path, mongo, option, value)
            url = parts.netloc
        mongo["url"] = url

    def _mongo_option(self, at: str, mongo: dict[Any, Any], option: str, value: str) -> None:
        if option.lower() in _MONGO_SET_BY_US:
            return
        key = _MONGO_OPTIONS.get(option.lower())
        if key is None:
            self.faults.append(Fault(at, f"has the option {option}, which is not supported; take it out"))
        else:
            mongo[key] = value


def items(raw: dict[Any, Any], *keys: str, at: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """The sections below `keys`, with the path to each; nothing where the file has something else."""
    section: Any = raw
    for key in keys:
        section = section.get(key) if isinstance(section, dict) else None
        at = f"{at}.{key}" if at else key
    for name, value in list(section.items()) if isinstance(section, dict) else ():
        if isinstance(value, dict):
            yield f"{at}.{name}", value
