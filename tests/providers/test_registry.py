from __future__ import annotations

import subprocess
import sys

import pytest

from fedkeeper.errors import ConfigError
from fedkeeper.providers.registry import PROVIDERS, provider_class


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_entry_of_the_table_can_be_imported(name: str) -> None:
    """And says which platform it speaks to."""
    assert provider_class(name).__name__.lower() == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("openwisk", "did you mean 'openwhisk'?"),
        ("gogle", "did you mean 'google'?"),
        ("x", "known: openwhisk, google"),
    ],
)
def test_an_unknown_provider_suggests_the_near_name(name: str, hint: str) -> None:
    """A typo in the config is answered with what was probably meant."""
    with pytest.raises(ConfigError, match=name) as caught:
        provider_class(name)
    assert caught.value.hint == hint


def test_openwhisk_alone_needs_no_google_sdk() -> None:
    """The SDK takes a third of a second and 40 MB that an OpenWhisk run does not need."""
    code = (
        "import sys; from fedkeeper.providers.registry import provider_class; provider_class('openwhisk'); "
        "print(sorted(m for m in sys.modules if "
        " m.startswith(('google.cloud.functions', 'requests'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
