"""OpenWhisk in the config: rules between its keys, and what the ancestor's files say differently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fedkeeper.config.ancestor import Upgrade
from fedkeeper.config.faults import UNFILLED, AtFaultItself, Fault
from fedkeeper.config.secrets import address_parts, take_credentials


def address(cluster: Any) -> str:
    """Where the cluster is reached; empty if the file does not say."""
    return cluster.auth.ow_api_host or ""


def tenant(name: str, cluster: Any) -> str:
    """Whose functions an embedded cluster holds: a namespace."""
    del cluster
    return name


def openwhisk_can_be_reached(config: Any) -> Iterator[Fault]:
    """A cluster that is not ours needs an address and credentials; one of ours must have neither."""
    for name, cluster in config.providers.openwhisk.items():
        at = f"providers.openwhisk.{name}"
        try:
            embedded, host, key = cluster.embedded, cluster.auth.ow_api_host, cluster.auth.ow_auth
        except AtFaultItself:
            continue
        if embedded and (host or key):
            yield Fault(
                f"{at}.auth", "an embedded cluster makes its own; leave auth out, or set embedded: false"
            )
        elif not embedded:
            if not host:
                yield Fault(
                    f"{at}.auth.ow_api_host", "is missing; write https://host:port, or embedded: true above"
                )
            if not key:
                yield Fault(
                    f"{at}.auth.ow_auth", "is missing; write uuid:key as ${OW_AUTH}, or use ow_auth_file"
                )
        if key and ":" not in key.get_secret_value():
            yield Fault(f"{at}.auth.ow_auth", "is not of the form uuid:key (AUTH in ~/.wskprops)")


def upgrade_cluster(upgrade: Upgrade, at: str, cluster: dict[Any, Any]) -> None:
    """Take over what the ancestor wrote: an address with credentials in it, keys that are not used."""
    auth = cluster.get("auth")
    if isinstance(auth, dict):
        upgrade.drop(
            auth,
            f"{at}.auth",
            "ow_apigw_access_token",
            "is not used, as there is no gateway; leave it out",
        )
        host = auth.get("ow_api_host")
        if isinstance(host, str):
            auth["ow_api_host"] = _without_credentials(upgrade, host, f"{at}.auth.ow_api_host", auth)
            _cleartext(upgrade, auth["ow_api_host"], f"{at}.auth.ow_api_host")
    if isinstance(cluster.get("base_url"), str):
        auth = cluster.setdefault("auth", {})
        if not isinstance(auth, dict):
            return
        url = _without_credentials(upgrade, cluster.pop("base_url"), f"{at}.base_url", auth)
        host, path = address_parts(url)
        auth.setdefault("ow_api_host", host)
        found = re.search(r"/namespaces/([^/]+)", path)
        if found:
            cluster.setdefault("namespace", found[1])
        upgrade.warn(
            f"{at}.base_url",
            "is outdated; write auth.ow_api_host and namespace. Certificates are verified now: give"
            " ca_file if the cluster's is self-signed",
        )
    elif cluster.pop("base_url", None) is UNFILLED:
        auth = cluster.setdefault("auth", {})
        if isinstance(auth, dict):
            auth.setdefault("ow_api_host", UNFILLED)


def _without_credentials(upgrade: Upgrade, url: str, at: str, auth: dict[Any, Any]) -> str:
    bare, user, password = take_credentials(url)
    if not user:
        return url
    secret = f"{user}:{password}" if password else user
    upgrade.scrub.hide(secret)
    upgrade.scrub.hide(password)
    upgrade.warn(at, "holds credentials, which end up in logs that way; write them as auth.ow_auth")
    known = auth.setdefault("ow_auth", secret) or secret
    auth["ow_auth"] = known
    if isinstance(known, str) and known != secret:
        upgrade.faults.append(Fault(at, "holds other credentials than auth.ow_auth; take them out here"))
    return bare


def _cleartext(upgrade: Upgrade, host: str, at: str) -> None:
    if host.startswith("http://") and not re.match(r"http://(localhost|127\.|\[::1\])", host):
        upgrade.warn(at, "is http, which sends the credentials in clear; write https")


def upgrade_function(upgrade: Upgrade, at: str, settings: dict[Any, Any]) -> None:
    """Warn of a number of activations per container that the ancestor wrote."""
    if str(settings.get("concurrency", 1)) != "1":
        upgrade.warn(
            f"{at}.concurrency",
            "more than 1 is refused by most OpenWhisks, and a client needs one; write 1",
        )


RULES = (openwhisk_can_be_reached,)
