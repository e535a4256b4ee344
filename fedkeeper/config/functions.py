"""`functions.<function>.<platform>`: how a function is deployed. Everything has a default."""

from __future__ import annotations

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


class Function(Section):
    """What functions on all platforms have."""

    func_path: ExistingPath | None = Field(
        default=None,
        description="the function's folder, relative to the config file; default `functions/<function>`",
    )
    memory: Memory = Field(default=512, description="memory of one instance: a number of MB, or 2048MB, 2Gi")
    runtime: Text = Field(
        default="", description="the platform's runtime; default `python:default` or `python312`"
    )
    params_file_path: Text | None = Field(
        default=None,
        description="where the function's inputs are written for people to look at; default under `params/`",
    )

    @property
    def timeout_s(self) -> float:
        """Time limit of one activation, in seconds."""
        raise NotImplementedError


class OpenWhiskFunction(Function):
    """`functions.<function>.openwhisk`."""

    timeout: Annotated[float, BeforeValidator(_milliseconds), InSeconds, Field(ge=0.1, le=86_400)] = Field(
        default=300.0,
        validate_default=False,  # it is in seconds already; a number in the file is milliseconds
        description="time limit of one activation: a number of milliseconds as in the ancestor, or 300s, 5m",
    )
    docker_image: Text = Field(
        default="", description="image to run in, with TensorFlow in it; none: the runtime as it is"
    )
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="activations at once in one container (count)"
    )

    @property
    def timeout_s(self) -> float:
        """Time limit of one activation, in seconds."""
        return self.timeout


class GoogleFunction(Function):
    """`functions.<function>.google`."""

    timeout: Annotated[float, BeforeValidator(_seconds), InSeconds, Field(ge=1, le=3600)] = Field(
        default=300.0, description="time limit of one request: a number of seconds, or 300s, 5m"
    )
    entry_point: Text = Field(
        default="main", alias="entry-point", description="the function in main.py that is called"
    )
    concurrency: Annotated[PositiveInt, Number] = Field(
        default=1, description="requests at once in one instance (count)"
    )

    @property
    def timeout_s(self) -> float:
        """Time limit of one request, in seconds."""
        return self.timeout


AnyFunction = OpenWhiskFunction | GoogleFunction


class FunctionPlaces(Section):
    """`functions.<function>`: on which platforms, and how."""

    openwhisk: OpenWhiskFunction | None = Field(default=None, description="how it is deployed on OpenWhisk")
    google: GoogleFunction | None = Field(
        default=None, description="how it is deployed on Google Cloud Functions"
    )

    def on(self, platform: str) -> AnyFunction | None:
        """Its settings on `platform`; None if the file has none."""
        return {"openwhisk": self.openwhisk, "google": self.google}.get(platform)
