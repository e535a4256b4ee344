from __future__ import annotations

import subprocess
import sys

import pytest

from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS, describe, part


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_platform_has_all_its_parts(name: str) -> None:
    """And its sections, rules and provider say which platform they are of."""
    assert part(name, "config").Cluster.platform == name
    assert part(name, "config").Function().entry
    assert part(name, "rules").RULES
    assert part(name, "provider")
    assert part(name, "opening").open_cluster


@pytest.mark.parametrize("what", ["title", "a_cluster", "these_clusters", "count_key", "option"])
def test_no_two_platforms_are_called_alike(what: str) -> None:
    """Neither in the config, nor by an option, nor in a message."""
    called = [getattr(describe(name), what) for name in PLATFORMS]
    assert len(set(called)) == len(called)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("openwisk", "did you mean 'openwhisk'?"),
        ("gogle", "did you mean 'google'?"),
        ("x", "known: openwhisk, google, openfaas"),
    ],
)
def test_an_unknown_platform_suggests_the_near_name(name: str, hint: str) -> None:
    """A typo is answered with what was probably meant."""
    with pytest.raises(ConfigError, match=name) as caught:
        describe(name)
    assert caught.value.hint == hint


def test_openwhisk_alone_needs_no_google_sdk() -> None:
    """The SDK takes a third of a second and 40 MB that an OpenWhisk run does not need."""
    code = (
        "import sys; from fedkeeper.platforms import part; part('openwhisk', 'opening'); "
        "print(sorted(m for m in sys.modules if "
        " m.startswith(('google.cloud.functions', 'requests'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
