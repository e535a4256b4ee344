"""What fl_faas_fabric's files say differently: taken over, with a warning per outdated key.

Works on plain YAML types, before the models see them. Never puts a value into a warning that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fedkeeper.config.faults import UNFILLED, Fault
from fedkeeper.config.files import shipped
from fedkeeper.config.redaction import Scrubber
from fedkeeper.config.secrets import address_parts, take_credentials
from fedkeeper.errors import ConfigError

# Keras' copy of MNIST: the same images as in the ancestor's four pickles, which nobody should unpickle.
_MNIST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_MNIST_PICKLES = re.compile(r"https?://storage\.googleapis\.com/mnist_fl/mnist_\w+\.obj")
_OLD_IMAGES = re.compile(r"(kkyfury/tensorflow|ansjin/fl_\w+)(:.*)?")
_OLD_RUNTIMES = re.compile(r"(nodejs.*|python:?(2.*|3[0-8]?|3\.[0-8]))")
_OUR_FUNCTION = re.compile(r"(?:\./)?functions/(\w+)/(openwhisk|google)(?:/.*)?")
_GOOGLE_BASE = re.compile(r"https://([a-z]+-[a-z]+\d+)-([a-z0-9-]+)\.cloudfunctions\.net/?")
_MONGO_SET_BY_US = {"retrywrites", "w", "journal", "appname", "directconnection"}
_MONGO_OPTIONS = {  # of a mongodb:// URL, in small letters -> our key
    "replicaset": "replica_set",
    "authsource": "auth_source",
    "tls": "tls",
    "ssl": "tls",
    "tlscafile": "ca_file",
}
_UNUSED = ("prometheus_config", "configurations")


class Upgrade:
    """Brings one file up to date, in place; collects what it found."""

    def __init__(self, raw: dict[Any, Any], scrub: Scrubber) -> None:
        self.raw = raw
        self.scrub = scrub
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def run(self) -> None:
        """Apply every rule. Sections of a wrong type are left for the models to refuse."""
        if str(self.raw.get("version", 1)) == "0.1":
            self.raw["version"] = 1
            self._warn("version", "0.1 is the ancestor's; write 1")
        for at, cluster in _items(self.raw, "providers", "openwhisk"):
            self._openwhisk(at, cluster)
        for at, cluster in _items(self.raw, "providers", "google"):
            self._google(at, cluster)
        for at, scenario in _items(self.raw, "scenarios"):
            self._scenario(at, scenario)

    def _warn(self, at: str, text: str) -> None:
        self.warnings.append(f"{at}: {text}")

    def _drop(self, section: dict[Any, Any], at: str, key: str, why: str) -> None:
        if key in section:
            del section[key]
            self._warn(f"{at}.{key}", why)

    # --- providers -------------------------------------------------------------------------------

    def _openwhisk(self, at: str, cluster: dict[Any, Any]) -> None:
        for key in _UNUSED:
            self._drop(
                cluster,
                at,
                key,
                "is not used; leave it out (`concurrency` of the cluster is a key of its own)",
            )
        auth = cluster.get("auth")
        if isinstance(auth, dict):
            self._drop(
                auth,
                f"{at}.auth",
                "ow_apigw_access_token",
                "is not used, as there is no gateway; leave it out",
            )
            host = auth.get("ow_api_host")
            if isinstance(host, str):
                auth["ow_api_host"] = self._without_credentials(host, f"{at}.auth.ow_api_host", auth)
                self._cleartext(auth["ow_api_host"], f"{at}.auth.ow_api_host")
        if isinstance(cluster.get("base_url"), str):
            auth = cluster.setdefault("auth", {})
            if not isinstance(auth, dict):
                return
            url = self._without_credentials(cluster.pop("base_url"), f"{at}.base_url", auth)
            host, path = address_parts(url)
            auth.setdefault("ow_api_host", host)
            found = re.search(r"/namespaces/([^/]+)", path)
            if found:
                cluster.setdefault("namespace", found[1])
            self._warn(
                f"{at}.base_url",
                "is outdated; write auth.ow_api_host and namespace. Certificates are verified now: give"
                " ca_file if the cluster's is self-signed",
            )
        elif cluster.pop("base_url", None) is UNFILLED:
            auth = cluster.setdefault("auth", {})
            if isinstance(auth, dict):
                auth.setdefault("ow_api_host", UNFILLED)

    def _without_credentials(self, url: str, at: str, auth: dict[Any, Any]) -> str:
        bare, user, password = take_credentials(url)
        if not user:
            return url
        secret = f"{user}:{password}" if password else user
        self.scrub.hide(secret)
        self.scrub.hide(password)
        self._warn(at, "holds credentials, which end up in logs that way; write them as auth.ow_auth")
        known = auth.setdefault("ow_auth", secret) or secret
        auth["ow_auth"] = known
        if isinstance(known, str) and known != secret:
            self.faults.append(Fault(at, "holds other credentials than auth.ow_auth; take them out here"))
        return bare

    def _cleartext(self, host: str, at: str) -> None:
        if host.startswith("http://") and not re.match(r"http://(localhost|127\.|\[::1\])", host):
            self._warn(at, "is http, which sends the credentials in clear; write https")

    def _google(self, at: str, cluster: dict[Any, Any]) -> None:
        for key in _UNUSED:
            self._drop(
                cluster,
                at,
                key,
                "is not used; leave it out (`concurrency` of the cluster is a key of its own)",
            )
        auth = cluster.get("auth")
        if isinstance(auth, dict):
            for key in [key for key, value in auth.items() if value == ""]:
                del auth[key]
        base = cluster.pop("base_url", None)
        if isinstance(base, str):
            found = _GOOGLE_BASE.fullmatch(base)
            if found is None:
                self.faults.append(Fault(f"{at}.base_url", "is outdated; write project and region instead"))
                return
            cluster.setdefault("region", found[1])
            cluster.setdefault("project", found[2])
            self._warn(f"{at}.base_url", f"is outdated; write region: {found[1]} and project: {found[2]}")
        elif base is UNFILLED:
            cluster.setdefault("project", UNFILLED)
            cluster.setdefault("region", UNFILLED)

    # --- scenarios -------------------------------------------------------------------------------

    def _scenario(self, at: str, scenario: dict[Any, Any]) -> None:
        params = scenario.get("model_params")
        if isinstance(params, dict) and params.get("optim") == "ndam":
            params["optim"] = "nadam"
            self._warn(f"{at}.model_params.optim", "ndam is written nadam")
        mongo = scenario.get("mongo_config")
        if isinstance(mongo, dict) and isinstance(mongo.get("url"), str):
            self._mongo(f"{at}.mongo_config", mongo)
        data = scenario.get("training_test_data")
        if isinstance(data, dict):
            self._data(f"{at}.training_test_data", data)
        for path, places in _items(scenario, "functions", at=at):
            self._drop(places, path, "openfaas", "OpenFaaS is not there yet; leave it out")
            for platform in ("openwhisk", "google"):
                settings = places.get(platform, ())
                if settings is None:
                    places[platform] = {}  # `openwhisk:` alone means: there, with the defaults
                if isinstance(settings, dict):
                    self._function(f"{path}.{platform}", settings, platform)

    def _data(self, at: str, data: dict[Any, Any]) -> None:
        for key, url in data.items():
            if isinstance(url, str) and _MNIST_PICKLES.fullmatch(url):
                data[key] = {"url": _MNIST, "sha256": _MNIST_SHA256}
                self._warn(
                    f"{at}.{key}", f"is a pickle, and a pickle can run code; the same data is in {_MNIST}"
                )

    def _function(self, at: str, settings: dict[Any, Any], platform: str) -> None:
        self._drop(settings, at, "blocking_cli", "is not used, as nothing blocks; leave it out")
        self._drop(settings, at, "docker", "is not used; docker_image names an image")
        path = settings.get("func_path")
        found = _OUR_FUNCTION.fullmatch(path) if isinstance(path, str) else None
        if found:
            function = found[1]
            try:
                # Ours, whatever is beside the config: in a clone of the ancestor that is the old one.
                settings["func_path"] = str(shipped(f"functions/{function}"))
            except ConfigError:
                del settings["func_path"]
            self._warn(
                f"{at}.func_path", f"names the function's folder now: functions/{function} (the default)"
            )
        if _OLD_RUNTIMES.fullmatch(str(settings.get("runtime", ""))):
            self._drop(settings, at, "runtime", "is too old for our functions; leave it out for the default")
        if _OLD_IMAGES.fullmatch(str(settings.get("docker_image", ""))):
            self._warn(
                f"{at}.docker_image",
                "was built for the ancestor's functions; ours need Python 3.10 or newer with the function's"
                " requirements.txt installed",
            )
        if platform == "openwhisk" and str(settings.get("concurrency", 1)) != "1":
            self._warn(
                f"{at}.concurrency",
                "more than 1 is refused by most OpenWhisks, and a client needs one; write 1",
            )
        region = settings.get("region")
        if platform == "google" and isinstance(region, str):
            del settings["region"]
            regions = {
                cluster.setdefault("region", region) for _, cluster in _items(self.raw, "providers", "google")
            }
            if regions - {region, UNFILLED}:
                text = (
                    "a cluster has one region; make a second cluster below providers.google for the other one"
                )
                self.faults.append(Fault(f"{at}.region", text))
            else:
                self._warn(f"{at}.region", "is a key of the cluster now: providers.google.<cluster>.region")

    # --- mongo -----------------------------------------------------------------------------------

    def _mongo(self, at: str, mongo: dict[Any, Any]) -> None:
        """`url` may be a connection string; what it says is spread over the keys."""
        path = f"{at}.url"
        url, user, password = take_credentials(mongo["url"])
        if user:
            self.scrub.hide(password)
            self._warn(path, "holds credentials, which end up in logs that way; write username and password")
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


def _items(raw: dict[Any, Any], *keys: str, at: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """The sections below `keys`, with the path to each; nothing where the file has something else."""
    section: Any = raw
    for key in keys:
        section = section.get(key) if isinstance(section, dict) else None
        at = f"{at}.{key}" if at else key
    for name, value in list(section.items()) if isinstance(section, dict) else ():
        if isinstance(value, dict):
            yield f"{at}.{name}", value
