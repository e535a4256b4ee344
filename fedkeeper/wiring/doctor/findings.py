"""One line of the doctor's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    NOTE = "note"  # it runs, and this should be known
    MISSING = "missing"  # the config could not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, what was found, and the way out where something is missing. Holds no secret."""

    topic: str
    verdict: Verdict
    found: str
    way_out: str = ""


def ok(topic: str, found: str) -> Finding:
    """As it should be."""
    return Finding(topic=topic, verdict=Verdict.OK, found=found)


def note(topic: str, found: str, way_out: str = "") -> Finding:
    """Worth knowing."""
    return Finding(topic=topic, verdict=Verdict.NOTE, found=found, way_out=way_out)


def missing(topic: str, found: str, way_out: str) -> Finding:
    """In the way of the config."""
    return Finding(topic=topic, verdict=Verdict.MISSING, found=found, way_out=way_out)


def required(topic: str, found: str, way_out: str, *, needed: bool) -> Finding:
    """Missing where the config needs it, else only a note."""
    return missing(topic, found, way_out) if needed else note(topic, found, way_out)
