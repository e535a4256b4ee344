"""What functions on all platforms have. Each platform's own keys are in its folder of `providers/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, PositiveInt

from fedkeeper.config.base import ExistingPath, Number, Section, Text, memory_mb, seconds

# Written with its unit, so that a config that was written out reads back as it was.
InSeconds = PlainSerializer(lambda value: f"{value:g}s", when_used="json")
Memory = Annotated[int, BeforeValidator(memory_mb), Field(ge=128, le=32_768)]


def _milliseconds(value: Any) -> float:
    return seconds(value, bare="ms")


def _seconds(value: Any) -> float:
    return seconds(value, bare="s")


Milliseconds = Annotated[float, BeforeValidator(_milliseconds), InSeconds]  # a bare number is milliseconds
Seconds = Annotated[float, BeforeValidator(_seconds), InSeconds]  # a bare number is seconds


class Function(Section):
    """What functions on all platforms have."""

    func_path: ExistingPath | None = Field(
        default=None,
        description="the function's folder or file, relative to the config file; default"
        " `functions/<function>`",
    )
    memory: Memory = Field(default=512, description="memory of one instance: a number of MB, or 2048MB, 2Gi")
    timeout: float  # seconds; what a bare number in the file means is the platform's way
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="activations at once in one instance (count)"
    )
    runtime: Text = Field(default="", description="the platform's runtime; default: its usual one for Python")
    params_file_path: Text | None = Field(
        default=None,
        description="where the function's inputs are written for people to look at; default under `params/`",
    )

    @property
    def timeout_s(self) -> float:
        """Time limit of one activation, in seconds."""
        return self.timeout

    @property
    def node(self) -> bool:
        """Whether it is JavaScript for Node.js."""
        return self.runtime.startswith("nodejs")

    @property
    def entry(self) -> str:
        """The Python function that is called."""
        return "main"

    @property
    def image(self) -> str:
        """The image that it runs in; empty: the platform's own."""
        return ""

    @property
    def requirements(self) -> bool:
        """Whether the package must name what it requires."""
        return True

    @property
    def extras(self) -> Mapping[str, Any]:
        """What only this platform's provider knows; JSON types."""
        return {}
