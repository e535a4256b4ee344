"""Which providers there are; each is imported only when it is asked for."""

from __future__ import annotations

import difflib
import pkgutil
from typing import Any, Final

from fedkeeper.errors import ConfigError

PROVIDERS: Final = {
    "openwhisk": "fedkeeper.providers.openwhisk.provider:OpenWhisk",
    "google": "fedkeeper.providers.google.provider:Google",
}


def provider_class(name: str) -> type[Any]:
    """Import the named provider and no other, so that an OpenWhisk run needs no Google SDK.

    The class has an async context manager `open(...)` that takes what its platform needs and gives a
    `fedkeeper.providers.base.Provider`.
    """
    if name not in PROVIDERS:
        near = difflib.get_close_matches(name, PROVIDERS, n=1)
        raise ConfigError(
            f"unknown provider {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PROVIDERS)}",
        )
    found = pkgutil.resolve_name(PROVIDERS[name])
    assert isinstance(found, type)
    return found
