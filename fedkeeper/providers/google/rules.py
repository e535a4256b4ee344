"""Cloud Functions in the config: rules between keys, and what the ancestor's files say differently."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from fedkeeper.config.ancestor import Upgrade, items
from fedkeeper.config.faults import UNFILLED, AtFaultItself, Fault

_BASE = re.compile(r"https://([a-z]+-[a-z]+\d+)-([a-z0-9-]+)\.cloudfunctions\.net/?")


def address(cluster: Any) -> str:
    """Where the project is reached."""
    return str(cluster.api_endpoint)


def tenant(name: str, cluster: Any) -> str:
    """Whose functions an embedded cluster holds: a project."""
    del name
    return str(cluster.project_id)


def google_has_a_project(config: Any) -> Iterator[Fault]:
    """A project that is not ours needs its name."""
    for name, cluster in config.providers.google.items():
        with contextlib.suppress(AtFaultItself):
            if not (cluster.embedded or cluster.project or cluster.auth.project_id):
                text = "is missing; write the Google Cloud project's ID, or embedded: true above"
                yield Fault(f"providers.google.{name}.project", text)


def google_account_is_whole(config: Any) -> Iterator[Fault]:
    """A service account's keys are there all or not at all."""
    for name, cluster in config.providers.google.items():
        at = f"providers.google.{name}.auth"
        with contextlib.suppress(AtFaultItself):
            account = {key: getattr(cluster.auth, key) for key in ("private_key", "client_email")}
            if cluster.embedded and (any(account.values()) or cluster.auth.anonymous):
                yield Fault(at, "an embedded cluster makes its own; leave auth out, or set embedded: false")
            elif any(account.values()) and cluster.auth.anonymous:
                yield Fault(f"{at}.anonymous", "is true beside an account's keys; leave one of them out")
            elif any(account.values()) or cluster.auth.type:
                for key, value in account.items():
                    if not value:
                        text = (
                            "is missing; write the account's keys, or service_account_file alone,"
                            " or no auth for application default credentials"
                        )
                        yield Fault(f"{at}.{key}", text)


def upgrade_cluster(upgrade: Upgrade, at: str, cluster: dict[Any, Any]) -> None:
    """Take over what the ancestor wrote: region and project in an address, empty keys."""
    auth = cluster.get("auth")
    if isinstance(auth, dict):
        for key in [key for key, value in auth.items() if value == ""]:
            del auth[key]
    base = cluster.pop("base_url", None)
    if isinstance(base, str):
        found = _BASE.fullmatch(base)
        if found is None:
            upgrade.faults.append(Fault(f"{at}.base_url", "is outdated; write project and region instead"))
            return
        cluster.setdefault("region", found[1])
        cluster.setdefault("project", found[2])
        upgrade.warn(f"{at}.base_url", f"is outdated; write region: {found[1]} and project: {found[2]}")
    elif base is UNFILLED:
        cluster.setdefault("project", UNFILLED)
        cluster.setdefault("region", UNFILLED)


def upgrade_function(upgrade: Upgrade, at: str, settings: dict[Any, Any]) -> None:
    """Move the region, which is the cluster's."""
    region = settings.get("region")
    if not isinstance(region, str):
        return
    del settings["region"]
    regions = {
        cluster.setdefault("region", region) for _, cluster in items(upgrade.raw, "providers", "google")
    }
    if regions - {region, UNFILLED}:
        text = "a cluster has one region; make a second cluster below providers.google for the other one"
        upgrade.faults.append(Fault(f"{at}.region", text))
    else:
        upgrade.warn(f"{at}.region", "is a key of the cluster now: providers.google.<cluster>.region")


RULES = (google_has_a_project, google_account_is_whole)
