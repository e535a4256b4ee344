"""The sections of the config that have a key for every platform: made from the list of platforms."""

from __future__ import annotations

from collections.abc import Mapping
from types import GenericAlias
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, create_model

from fedkeeper.config.base import Number, Section
from fedkeeper.config.functions import Function
from fedkeeper.config.providers import Cluster
from fedkeeper.platforms import PLATFORMS, describe, part


def _nothing_is_empty(value: Any) -> Any:
    return {} if value is None else value


def _clusters(platform: str) -> Any:
    by_name: Any = GenericAlias(Mapping, (str, part(platform, "config").Cluster))
    return Annotated[by_name, BeforeValidator(_nothing_is_empty)]


def _of_all(name: str, fields: Mapping[str, Any]) -> Any:
    return create_model(name, __base__=Section, **fields)


_Clusters = _of_all(
    "_Clusters",
    {
        name: (
            _clusters(name),
            Field(default_factory=dict, description=f"{describe(name).these_clusters} by name"),
        )
        for name in PLATFORMS
    },
)
_Functions = _of_all(
    "_Functions",
    {
        name: (
            part(name, "config").Function | None,
            Field(default=None, description=f"how it is deployed on {describe(name).title}"),
        )
        for name in PLATFORMS
    },
)
ClientCounts = _of_all(
    "ClientCounts",
    {
        describe(name).count_key: (
            Annotated[NonNegativeInt, Number],
            Field(
                default=0,
                description=f"clients on {describe(name).title} (count), spread evenly over its clusters",
            ),
        )
        for name in PLATFORMS
    },
)


class Providers(_Clusters):  # type: ignore[misc, valid-type]
    """`providers`: any number of clusters each, with any names."""

    def of(self, platform: str) -> Mapping[str, Cluster]:
        """The clusters of one platform, in the file's order."""
        found: Mapping[str, Cluster] = getattr(self, platform)
        return found


class FunctionPlaces(_Functions):  # type: ignore[misc, valid-type]
    """`functions.<function>`: on which platforms, and how."""

    def on(self, platform: str) -> Function | None:
        """Its settings on `platform`; None if the file has none."""
        found: Function | None = getattr(self, platform, None)
        return found


def default_function(platform: str) -> Function:
    """How a function is deployed on `platform` if the file does not say."""
    found = part(platform, "config").Function()
    assert isinstance(found, Function)
    return found
